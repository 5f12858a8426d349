"""The real decode loop on interpreted kernels writes the same tokens as on XLA, with forcing."""

import dataclasses

import pytest

from jaxs1.decoding.loading import EngineConfig, load_engine
from jaxs1.decoding.params import Request, ThinkingParams
from jaxs1.decoding.scheduler import Limits
from tests.decoding.engines import VOCAB, encode, tokenizer, write_model
from tests.tiny_models import hf_model

#: The interpreter takes about half a second for a step of two layers: few and short.
ASKED = [
    ThinkingParams(max=2, max_answer_tokens=2, min_answer_tokens=2),
    ThinkingParams(max=6, num_waits=1, max_answer_tokens=2, min_answer_tokens=2),
    ThinkingParams(mode="off", max_answer_tokens=4, min_answer_tokens=4),
]


@pytest.mark.parametrize("kind", ["qwen2-untied-4-4", "qwen3-tied-8-2"])
def test_same_tokens_as_xla(kind, tmp_path):
    if "untied" in kind:
        write_model(tmp_path, {encode("<|im_start|>")[0]: 9.0}, kind=kind)
    else:  # the head is the embedding
        hf_model(kind, vocab=VOCAB, layers=1).save_pretrained(tmp_path)
        tokenizer().save_pretrained(tmp_path)
    prompts = [encode("What is 12 and 30?"), encode("Wait"), encode("the answer " * 3)]
    requests = [Request(*pair) for pair in zip(prompts, ASKED, strict=True)]
    limits = Limits(max_num_seqs=4, kv_cache_tokens=256, max_seq_len=64, decode_steps=4)
    written = {}
    for impl in ("xla", "triton-interpreted"):
        engine = load_engine(EngineConfig(str(tmp_path), impl=impl, limits=limits)).engine
        done = dict(engine.run(requests))
        written[impl] = [dataclasses.asdict(done[i][0]) for i in range(len(requests))]
    assert written["xla"] == written["triton-interpreted"]
    assert all(len(record["tokens"]) >= 4 for record in written["xla"])
    kinds = {entry.kind for record in written["xla"] for entry in record["interventions"]}
    assert "close" in kinds
    assert "untied" not in kind or "wait" in kinds
