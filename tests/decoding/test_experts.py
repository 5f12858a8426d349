"""A mixture of experts in the decoding loop."""

import random

import pytest

from jaxs1.config import UserError
from jaxs1.decoding import loading
from jaxs1.decoding.loading import EngineConfig, load_engine
from jaxs1.decoding.params import Request, ThinkingParams
from tests.decoding.engines import (
    LIMITS,
    complete_all,
    encode,
    new_tokens,
    open_tiny,
    tokenizer,
    write_model,
)

KIND = "qwen3_moe-untied-8-2"


def test_greedy_is_transformers(tmp_path):
    """Alone, where a step gathers the chosen experts, and together, where it computes all."""
    model = write_model(tmp_path, kind=KIND, num_experts=16, num_experts_per_tok=3)
    engine = open_tiny(tmp_path, max_seq_len=128, kv_cache_tokens=2048)
    rng = random.Random(0)
    thinking = ThinkingParams(mode="off", max_answer_tokens=24, min_answer_tokens=1)
    prompts = [[rng.randrange(4, len(tokenizer()) - 2) for _ in range(n)] for n in (1, 9, 70)]
    ends = [encode(text)[0] for text in ("<|im_end|>", "<|endoftext|>")]
    requests = [Request(prompt, thinking) for prompt in prompts]
    together = complete_all(engine, requests)
    alone = [complete_all(engine, [request])[0] for request in requests[:2]]
    for prompt, (mine,) in zip(prompts + prompts[:2], together + alone, strict=True):
        expected = new_tokens(model, prompt, ends=ends, max_tokens=24)
        assert mine.tokens == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"impl": "triton"},
            r"impl=triton: .*\(only xla decodes a mixture of experts\); give --impl xla",
        ),
        (
            {"impl": "pallas"},
            r"impl=pallas: .*\(only xla decodes a mixture of experts\); give --impl xla",
        ),
        ({"weights": "int8"}, "weights=int8: experts cannot be quantized; give --weights auto"),
    ],
)
def test_what_is_not_supported_is_refused_in_one_line(settings, message, tmp_path, monkeypatch):
    write_model(tmp_path, kind=KIND)
    monkeypatch.setattr(loading, "load_decode_params", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(UserError, match=message) as error:
        load_engine(EngineConfig(str(tmp_path), limits=LIMITS, **settings))
    assert "\n" not in str(error.value)
