"""The real decode loop on interpreted kernels writes the same tokens as on XLA, with forcing."""

import dataclasses

import pytest

from jaxs1.decoding.completion import Request
from jaxs1.decoding.engine import Limits
from jaxs1.decoding.opening import EngineConfig, open_engine
from jaxs1.decoding.presets import Thinking
from tests.decoding.engines import encode, write_model

ASKED = [
    Thinking(max=6, max_answer=4, min_answer=4, cue="\nFinal Answer:"),
    Thinking(max=12, num_waits=2, max_answer=3, min_answer=3),
    Thinking(max=-1, min=3, num_waits=1, max_answer=4, min_answer=4),
    Thinking(mode="off", max_answer=8, min_answer=8),
]


@pytest.mark.parametrize("kind", ["qwen2-untied-4-4", "qwen2-tied-14-2", "qwen3-tied-8-2"])
def test_same_tokens_as_xla(kind, tmp_path):
    likes = {encode("<|im_start|>")[0]: 4.0} if "untied" in kind else {}
    if likes:
        write_model(tmp_path, likes, kind=kind)
    else:
        write_plain(tmp_path, kind)
    prompts = [encode("What is 12 and 30?"), encode("Wait"), encode("the answer " * 20)]
    requests = [Request(prompts[i % len(prompts)], thinking) for i, thinking in enumerate(ASKED)]
    limits = Limits(max_sequences=4, kv_tokens=1024, context=120, chunk=8)
    written = {}
    for impl in ("xla", "triton-interpreted"):
        engine = open_engine(EngineConfig(str(tmp_path), impl=impl, limits=limits)).engine
        done = dict(engine.run(requests))
        written[impl] = [dataclasses.astuple(done[i][0]) for i in range(len(requests))]
    assert written["xla"] == written["triton-interpreted"]
    forced = [sum(record[13]) for record in written["xla"]]
    assert forced[0] > 0
    assert not likes or sum(len(record[5]) for record in written["xla"]) >= 4


def write_plain(folder, kind):
    """A folder with random weights whose head is the embedding."""
    from tests.decoding.engines import VOCAB, tokenizer
    from tests.tiny_models import hf_model

    hf_model(kind, vocab=VOCAB, layers=2).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
