"""`make gpu-check` as far as a CPU goes: the real loop on XLA, a tiny model, what is written."""

import json
from functools import partial

import jax
import numpy as np
import pytest

pytest.importorskip("triton", reason="Triton has wheels for Linux only")

from benchmarks import gpu_check
from benchmarks.gpu_check import LARGEST_REGRET, Bed, GpuCheck, check, main
from benchmarks.gpu_summary import header, summary, write
from benchmarks.random_loop import Loop, ask, needs, regret
from jaxs1.config import UserError
from jaxs1.decoding import budget
from jaxs1.decoding.decode_loop import ChunkOutput
from jaxs1.model.architecture import Architecture
from kernels import measure
from kernels.shapes import Shape

TINY = Architecture(512, 64, 192, 2, 8, 4, 8, 4096, 1e4, 1e-6, False, True, False, 0.02)
SHAPE = Shape(2, 64, 192, 8, 4, 8, 512, tied=False, bias=True)
OPTIONS = GpuCheck(model="qwen2.5-0.5b", small="qwen2.5-7b", batch=[2], context=100, samples=2)
BED = Bed(OPTIONS, jax.devices()[0], None, "xla", "float32",
          dict.fromkeys((OPTIONS.model, OPTIONS.small), TINY),
          dict.fromkeys((OPTIONS.model, "odd"), SHAPE))  # fmt: skip
PROMPTS = [[5, 6, 7], list(range(20, 90))]


@pytest.fixture(scope="module")
def loop():
    loop = Loop(TINY, BED.device, "float32", rows=2, context=256)
    loop.prefill(PROMPTS)
    return loop


def test_without_a_gpu_one_line_says_so(run_module):
    with pytest.raises(UserError, match="device=cpu: this check needs an NVIDIA GPU") as error:
        main([])
    assert "\n" not in str(error.value)
    done = run_module("benchmarks.gpu_check")
    assert done.returncode == 2 and done.stderr.startswith("error: device=cpu")
    with pytest.raises(UserError, match="model=gpt2: must be"):
        main(["--model", "gpt2"])


def test_what_runs_passes_and_what_cannot_run_loses_nothing_else(tmp_path, monkeypatch):
    small = partial(measure.ceilings, size=1 << 16, width=64, nodes=1)
    monkeypatch.setattr(measure, "ceilings", small)
    parts = check(BED)  # no kernel runs here
    assert {name: part["passed"] for name, part in parts.items()} == {
        "tokens": True, "graph": True, "ceilings": False, "steps": True, "kernels": False,
        "times": False,
    }  # fmt: skip
    assert parts["tokens"]["tokens"] == 4 * 64
    assert parts["tokens"]["equal_to_xla"] == 1 and parts["tokens"]["forced"] >= 16
    assert parts["graph"]["same_tokens"]
    assert [r["batch"] for r in parts["steps"]["rows"]] == [2]
    assert all(r["forced"] > 0 and r["unforced"] > 0 for r in parts["steps"]["rows"])
    assert "needs ceilings, which failed" in parts["times"]["error"]
    assert not write(str(tmp_path), header(BED.device, model="tiny"), parts)
    (file,) = tmp_path.glob("cpu/*.json")
    found = json.loads(file.read_text())
    assert found["passed"] is False and found["gpu"] == "cpu"
    text = file.with_suffix(".md").read_text()
    assert "| kernels | NO |" in text and "| batch 2 |" in text and "no ceiling measured" in text


def test_a_memory_that_does_not_do_is_said(monkeypatch):
    monkeypatch.setattr(gpu_check, "room", lambda _: 1e3)
    with pytest.raises(RuntimeError, match=r"batch 2 needs \d+ GB of 0; give --model"):
        gpu_check.steps(BED, {})


def test_needs_of_the_32b():
    from jaxs1.model.architecture import read_config
    from tests.conftest import ROOT

    path = str(ROOT / "configs/models/qwen2.5-32b.json")
    a = Architecture.from_hf(read_config(path), path)
    # 32.76e9 parameters of 2 bytes, and 4096 tokens of 256 KiB and page 0
    expected = 1.1 * (32_763_876_352 * 2 + (4096 + 64) * 2**18)
    assert needs(a, "bfloat16", rows=1, context=4096) == pytest.approx(expected)


def test_forcing_as_asked(loop):
    written, _ = loop.run("xla", PROMPTS, [ask(), ask(thinking=8)], steps=24)
    assert not written.forced_NB[:, 0].any()
    assert written.forced_NB[:, 1].tolist() == [False] * 8 + [True] * 8 + [False] * 8
    assert written.token_NB[8:16, 1].tolist() == [11, 12, 13, 14, 15, 16, 17, 18]
    end = int(written.token_NB[4, 0])
    waiting = ask(thinking=20, waits=1, end=end)
    again, _ = loop.run("xla", PROMPTS, [waiting, ask()], steps=24)
    assert (again.kind_NB[:, 0] == budget.TokenKind.WAIT).sum() == 1 and 19 in again.token_NB[:, 0]
    assert regret(loop, PROMPTS, again) <= 1e-3


def test_a_wrong_token_is_seen(loop):
    written, _ = loop.run("xla", PROMPTS, [ask(), ask()], steps=24)
    assert regret(loop, PROMPTS, written) <= 1e-3
    wrong = written._replace(token_NB=written.token_NB.copy())
    wrong.token_NB[11, 1] = (wrong.token_NB[11, 1] + 7) % 512
    assert regret(loop, PROMPTS, wrong) > LARGEST_REGRET


def test_attention_to_wrong_keys_is_seen(loop):
    loop.cache = jax.tree.map(lambda pages: pages[:, ::-1], loop.cache)
    written, _ = loop.run("xla", PROMPTS, [ask(), ask()], steps=24)
    assert regret(loop, PROMPTS, written) > LARGEST_REGRET


def test_a_loop_that_is_not_repeatable_fails(monkeypatch):
    rng = np.random.default_rng(0)
    none = rng.random((64, 4))

    class Restless:
        def run(self, *_, **__):
            return ChunkOutput(64, rng.random((64, 4)), none, none), {}

    monkeypatch.setattr(gpu_check, "_small", lambda _: (Restless(), PROMPTS))
    with pytest.raises(RuntimeError, match="three runs wrote different tokens"):
        gpu_check.graph(BED, {})


def test_percentages_of_the_floor():
    rows = [{"batch": 1, "unforced": 0.016, "forced": 0.01602, "bytes": 64e9, "floor": 0.0144}]
    kernel = {"kernel": "down", "batch": 8, "median": 80e-6, "floor": 60e-6, "xla": 100e-6}
    parts = {"steps": {"passed": True, "seconds": 2.0, "rows": rows, "skipped": []},
             "times": {"passed": True, "seconds": 1.0, "rows": [kernel]}}  # fmt: skip
    text = summary({"gpu": "NVIDIA H200", "date": "today"}, parts)
    assert "| batch 1 | 16.00 | 16.02 | +0.1% | 90% |" in text
    assert "| down, batch 8 | 80.0 | 60.0 | 75% | 100.0 |" in text
