"""`make gpu-check` as far as a CPU goes: every part on a tiny model, and what is wrong is seen."""

import contextlib
import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

pytest.importorskip("triton", reason="Triton has wheels for Linux only")

from benchmarks import gpu_summary
from benchmarks.gpu_check import main
from benchmarks.gpu_parts import decoding, int8, training
from benchmarks.gpu_parts.context import Part, raise_if
from benchmarks.gpu_parts.decoding import LARGEST_GAP
from benchmarks.gpu_parts.registry import PARTS, choose, compile_part, estimates, run_parts
from benchmarks.gpu_summary import read_results, summary
from benchmarks.random_weights_loop import (
    SPARE,
    RandomWeightsLoop,
    logit_gap,
    make_thinking,
    required_bytes,
)
from jaxs1.config import UserError
from jaxs1.decoding.budget import TokenKind
from jaxs1.decoding.decode_loop import ChunkOutput
from jaxs1.model.architecture import Architecture, read_config
from kernels.benchmarking import timing
from kernels.benchmarking.program import Program
from tests.conftest import ONE_DEVICE, ROOT
from tests.planning.cases import needs
from tests.tiny_gpu_check import HEADER, TINY, facts_on_disk, tiny_context

pytestmark = pytest.mark.slow

PROMPTS = [[5, 6, 7], list(range(20, 90))]
#: Parts that run single kernels, which no CPU can; see kernels/interpreted/test_gpu_check.py.
KERNEL_PARTS = {"kernels", "probe", "ceilings", "times", "sweep", "shapes"}


@pytest.fixture(scope="module")
def loop():
    loop = RandomWeightsLoop(TINY, jax.devices()[0], "float32", rows=2, context=256).fill()
    loop.prefill(PROMPTS)
    return loop


@pytest.fixture(scope="module")
def full_run(tmp_path_factory):
    """Every part on a tiny model."""
    output = tmp_path_factory.mktemp("full")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "ROTATED", 30_000)
        patch.setattr(timing, "LEAST_SECONDS", 0)
        assert not run_parts(tiny_context(output), PARTS)
    return output, read_results([output / "facts.jsonl"])[1]


def test_without_a_gpu_one_line_says_so(run_module):
    with pytest.raises(UserError, match="device=cpu: this check needs an NVIDIA GPU") as error:
        main([])
    assert "\n" not in str(error.value)
    done = run_module("benchmarks.gpu_check")
    assert done.returncode == 2 and done.stderr.startswith("error: device=cpu")
    for arguments, message in (
        (["--model", "gpt2"], "model=gpt2: must be"),
        (["--parts", "env,speed"], "parts=speed: must be among env, kernels"),
        (["--deadline", "0"], "deadline=0"),
        (["--batch", "[0]"], r"batch=\[0\]: must be a list of batch sizes from 1 to 64"),
    ):
        with pytest.raises(UserError, match=message):
            main(arguments)


# --- what is written ------------------------------------------------------------------------


def test_what_runs_passes_and_what_cannot_run_loses_nothing_else(full_run):
    output, parts = full_run
    assert {name for name, part in parts.items() if not part["passed"]} == KERNEL_PARTS, {
        name: part.get("error") for name, part in parts.items()
    }
    assert "no kernel can be run here" in parts["kernels"]["error"]
    # the other ceilings are measured although the smallest kernel cannot be
    assert {"ceiling read", "ceiling copy", "ceiling write", "ceiling matmul"} == set(
        parts["ceilings"]["facts"]
    )
    file = next(output.glob("cpu/*.json"))
    assert json.loads(file.read_text())["passed"] is False
    text = file.with_suffix(".md").read_text()
    assert "| kernels | NO |" in text and "| slice | yes |" in text
    assert "| batch 2 |" in text and "| training, remat |" in text


def test_the_slice(full_run):
    facts = full_run[1]["slice"]["facts"]
    assert facts["slice without graph"]["tokens"] == 4 * 64
    assert facts["slice without graph"]["forced"] >= 16
    assert facts["slice as graph"]["same_as_without_graph"]
    assert facts["slice as graph"]["three_runs_equal"]
    assert facts["slice on XLA"]["equal_tokens"] == 1
    assert facts["slice against XLA's logits"]["largest_gap"] <= 1e-3
    for name in ("as graph", "without graph", "XLA"):
        assert facts[f"slice step {name}"]["least_s"] > 0


def test_steps_of_the_model(full_run):
    facts = full_run[1]["model"]["facts"]
    steps = [facts[f"step, batch 1, decode_steps {n}"] for n in (10, 20)]
    assert all(r["forced_s"] > 0 and r["unforced_s"] > 0 for r in steps)
    slope = facts["slope, batch 1, forced"]
    # a call costs a constant and its steps
    for r in steps:
        total = slope["per_call_s"] + r["steps"] * slope["step_s"]
        assert total == pytest.approx(r["steps"] * r["forced_s"])
    assert list(full_run[1]["batches"]["facts"]) == ["model filled, batch 2",
                                                      "step, batch 2, decode_steps 10"]  # fmt: skip


def test_int8_weights(full_run):
    facts, of_model = (full_run[1][part]["facts"] for part in ("int8", "model"))
    assert facts["int8 layer and head against float64"]["difference"] <= 1e-5
    step, whole = (
        found[f"step, {label}batch 1, decode_steps 10"]
        for found, label in ((facts, "int8, "), (of_model, ""))
    )
    assert 0.5 < step["bytes"] / whole["bytes"] < 0.6  # the cache and the biases stay as they are
    ratio = facts["int8 and unquantized weights"]["ratio"]
    assert ratio == pytest.approx(whole["unforced_s"] / step["unforced_s"])
    assert "| batch 1, int8 |" in next(full_run[0].glob("cpu/*.md")).read_text()


def test_int8_scales_of_other_outputs_are_seen(monkeypatch, tmp_path):
    from jaxs1.model.linear import Int8Linear

    right = Int8Linear.product
    monkeypatch.setattr(
        Int8Linear,
        "product",
        lambda self, x, w, *rest: right(self, x, w._replace(scale=w.scale[::-1]), *rest),
    )
    ctx = tiny_context(tmp_path)
    (problem,) = int8.compare_logits(ctx, int8._one_layer(ctx).fill())
    assert problem.startswith("logits differ from float64 by")


def test_prefill_training_and_generation(full_run):
    facts = {k: v for part in full_run[1].values() for k, v in part["facts"].items()}
    assert facts["prefill of 20 tokens"]["seconds"] > 0
    steps = [facts[f"training step, remat {remat}"] for remat in ("none", "attention", "full")]
    # the losses before and after the first policy's steps are those of one run
    assert steps[2]["loss"] > steps[1]["loss"] > steps[0]["loss"] > steps[0]["last_loss"]
    assert sum(steps[0]["lengths"]) == 256 and len(steps[0]["lengths"]) == 4
    lengths, tokens = steps[0]["lengths"], 256
    matrices = TINY.num_parameters - 64 * 512  # the embedding is looked up
    layers = 64 * (8 + 2 * 4 + 8) * 8 + 3 * 64 * 192 + 2 * 64 + (8 + 2 * 4) * 8  # one of two
    pairs = sum(n * (n + 1) // 2 for n in lengths)
    expected = 6 * (matrices - layers) * tokens + 12 * 8 * 8 * pairs
    assert steps[0]["flops"] == pytest.approx(expected, rel=1e-9)
    assert facts["xla against XLA's attention"]["gradient_difference"] == 0
    command = facts["jaxs1.generate"]
    assert command["status"] == 0 and command["completions"] == 8
    assert 0 < command["longest_thinking"] <= 256 and command["forced"] > 0
    assert facts["engine"]["tokens_per_s"] > 0
    assert facts["torch copy"]["per_second"] > 0
    assert facts["cuBLAS down, batch 2, inputs first"]["median"] > 0


def test_a_run_that_is_killed_keeps_all_earlier_facts(tmp_path):
    command = [sys.executable, "-m", "tests.tiny_gpu_check", str(tmp_path), "env,slice,model"]
    environment = {**os.environ, "XLA_FLAGS": ONE_DEVICE}
    printed = []
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True,
                          stderr=subprocess.DEVNULL) as child:  # fmt: skip
        for line in child.stdout:
            printed.append(json.loads(line))
            if printed[-1].get("fact") == "slice as graph":
                child.send_signal(signal.SIGKILL)
                break
    assert child.returncode == -signal.SIGKILL
    facts = [r["fact"] for r in printed if r["kind"] == "fact"]
    assert facts == [
        "machine", "smallest program", "slice without graph", "slice as graph",
    ]  # fmt: skip
    on_disk = facts_on_disk(tmp_path)
    assert on_disk["env"] == facts[:2] and on_disk["slice"][:2] == facts[2:]
    # the summary of the part that had ended is there, and can be made again
    (file,) = tmp_path.glob("cpu/*.json")
    assert json.loads(file.read_text())["parts"]["env"]["passed"]
    assert gpu_summary.main([str(tmp_path), str(tmp_path / "facts.jsonl")]) == 1
    parts = json.loads(file.read_text())["parts"]
    assert parts["slice"]["error"] == "not finished"
    assert parts["slice"]["facts"]["slice as graph"]["three_runs_equal"]
    assert "model" not in parts


def test_a_torn_last_line_is_left_out(tmp_path):
    ctx = tiny_context(tmp_path)
    ctx.facts.begin("env")
    ctx.facts.add("machine", cpus=2)
    with (tmp_path / "facts.jsonl").open("a") as file:
        file.write('{"kind": "fact", "part": "env", "fa')
    assert read_results([tmp_path / "facts.jsonl"])[1]["env"]["facts"].keys() == {"machine"}


def test_two_calls_are_one_result(tmp_path):
    def part(name, passed=True):
        def run(ctx):
            ctx.facts.add(f"fact of {name}", value=1)
            if not passed:
                raise RuntimeError("wrong")

        return Part(name, 1, "nothing", run, lambda _: ())

    assert not run_parts(tiny_context(tmp_path / "a"), [part("one"), part("two", passed=False)])
    late = tiny_context(tmp_path / "b", deadline=0)
    assert not run_parts(late, [part("one")])
    assert run_parts(tiny_context(tmp_path / "b"), [part("two"), part("three")])
    files = [tmp_path / folder / "facts.jsonl" for folder in "ab"]
    parts = read_results(files)[1]
    assert {name: p["passed"] for name, p in parts.items()} == dict.fromkeys(
        ("one", "two", "three"), True
    )
    # another commit's facts are not mixed in
    with files[1].open("a") as file:
        file.write(json.dumps({"kind": "header", **HEADER, "commit": "def"}) + "\n")
    assert read_results(files)[1] == {}


def test_percentages_of_the_ceiling():
    step = {"batch": 1, "context": 4096, "steps": 32, "unforced_s": 0.016, "forced_s": 0.01602,
            "bytes": 57.6e9}  # fmt: skip
    kernel = {"kernel": "down", "batch": 8, "median": 80e-6, "xla": 100e-6, "bytes": 240e6,
              "flops": 1e9}  # fmt: skip
    facts = {"ceiling read": {"per_second": 4e12}, "ceiling matmul": {"per_second": 8e14},
             "step, batch 1, decode_steps 32": step, "time of down": kernel,
             "cuBLAS": {**kernel, "layout": "inputs first", "median": 90e-6}}  # fmt: skip
    parts = {"model": {"passed": True, "seconds": 2.0, "facts": facts}}
    text = summary({"gpu": "NVIDIA H200", "date": "today"}, parts)
    assert "| batch 1 | 16.00 | 16.02 | +0.1% | 90% |" in text
    assert "| down, batch 8 | 80.0 | 60.0 | 75% | 100.0 | 90.0 |" in text
    del facts["ceiling read"]
    assert "no ceiling measured" in summary({"gpu": "NVIDIA H200", "date": "today"}, parts)


# --- which parts, and when ------------------------------------------------------------------


def test_estimates_fit_the_minutes():
    assert sum(part.seconds for part in PARTS) <= 540
    essential = [part for part in PARTS if part.essential]
    assert sum(part.seconds for part in essential) <= 300
    assert list(PARTS[: len(essential)]) == essential  # they come first
    text = estimates(PARTS, 540)
    assert all(part.name in text for part in PARTS)


def test_parts_are_chosen_by_name_and_keep_their_order():
    assert [part.name for part in choose("model, env")] == ["env", "model"]
    assert choose("") == list(PARTS)


def test_a_part_that_would_end_after_the_deadline_is_skipped_and_said(tmp_path):
    order = []
    parts = [
        Part(name, seconds, "nothing", lambda _, name=name: order.append(name), lambda _: ())
        for name, seconds in (("first", 5), ("long", 5000), ("last", 5))
    ]
    ctx = tiny_context(tmp_path, deadline=1000)
    assert not run_parts(ctx, parts)
    assert order == ["first", "last"]
    found = read_results([tmp_path / "facts.jsonl"])[1]
    assert "not begun" in found["long"]["skipped"] and found["last"]["passed"]
    assert "| long | skipped |" in next(tmp_path.glob("cpu/*.md")).read_text()


def test_a_dry_run_compiles_without_running(tmp_path):
    """Each program once, though several parts have it; one that cannot be compiled is named."""
    ctx = tiny_context(tmp_path)
    seen = set()
    found = {name: compile_part(ctx, choose(name)[0], seen) for name in ("prefill", "batches")}
    drawn = [name for name in seen if name.startswith("draw")]
    assert (
        len(drawn) < 13
    )  # matrices and biases of a layer and the head, of the many that there are
    assert found["prefill"].programs == len(drawn)  # with the prefill, without batches' pages
    assert found["batches"].programs == 2  # pages and the chunk: the matrices are prefill's
    assert not found["prefill"].failures and not found["batches"].failures
    broken = Part("broken", 1, "", lambda _: None, lambda _: [Program("x", jax.jit(len), ())])
    assert compile_part(ctx, broken, seen).failures[0].startswith("x: ")
    assert facts_on_disk(tmp_path) == {}


def test_a_dry_run_for_an_h100(capsys):
    needs("gpu")
    assert main(["--dry", "--parts", "env,probe"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["env", "1"], ["probe", "1"], ["all", "2"]]


# --- memory ---------------------------------------------------------------------------------


def test_bytes_of_the_32b_counted_by_hand():
    path = ROOT / "configs/models/qwen2.5-32b.json"
    a = Architecture.from_hf(read_config(path), str(path))
    # parameters of 2 bytes; tokens of 256 KiB, and page 0
    expected = 32_763_876_352 * 2 + (4096 + 64) * 2**18 + SPARE
    assert required_bytes(a, "bfloat16", rows=1, context=4096) == pytest.approx(expected)
    h100, h200 = 0.95 * 84.93e9, 0.95 * 150.75e9
    assert required_bytes(a, "bfloat16", rows=8, context=4096 + 32) < h100
    assert required_bytes(a, "bfloat16", rows=32, context=1024 + 32) < h100
    assert h100 < required_bytes(a, "bfloat16", rows=32, context=4096 + 32) < h200


def test_a_draw_takes_nothing_beside_its_array():
    needs("gpu")
    from jaxs1.planning.targets import parse_target
    from jaxs1.planning.topology import make_devices
    from kernels.benchmarking.program import draw_program

    (device,) = make_devices(parse_target("h100:1x1"))
    place = jax.sharding.SingleDeviceSharding(device)
    memory = draw_program((5120, 27648), "bfloat16", place).compile().memory_analysis()
    assert memory.output_size_in_bytes == 2 * 5120 * 27648
    assert memory.temp_size_in_bytes < 1 << 20


def test_a_memory_that_does_not_do_is_said(tmp_path):
    ctx = tiny_context(tmp_path, free_bytes=lambda: 1e3)
    with pytest.raises(RuntimeError, match=r"batch 2 needs \d+ GB of 0; give --model"):
        decoding.batches(ctx)
    assert facts_on_disk(tmp_path) == {"": ["batch 2 does not fit"]}


def test_a_shorter_context_that_fits_is_taken(tmp_path):
    free = required_bytes(TINY, "float32", rows=2, context=128 + 20)
    ctx = tiny_context(tmp_path, free_bytes=lambda: free, context=512)
    assert decoding.fitting_context(ctx, 2) == 128


# --- what is wrong is seen ------------------------------------------------------------------


def test_forcing_as_requested(loop):
    output = loop.run("xla", PROMPTS, [make_thinking(), make_thinking(budget=8)], steps=24)
    assert not output.forced_NB[:, 0].any()
    assert output.forced_NB[:, 1].tolist() == [False] * 8 + [True] * 8 + [False] * 8
    assert output.token_NB[8:16, 1].tolist() == [11, 12, 13, 14, 15, 16, 17, 18]
    end = int(output.token_NB[4, 0])
    waiting = make_thinking(budget=20, waits=1, end=end)
    again = loop.run("xla", PROMPTS, [waiting, make_thinking()], steps=24)
    assert (again.kind_NB[:, 0] == TokenKind.WAIT).sum() == 1 and 19 in again.token_NB[:, 0]
    assert logit_gap(loop, PROMPTS, again) <= 1e-3


def test_a_wrong_token_is_seen(loop):
    output = loop.run("xla", PROMPTS, [make_thinking(), make_thinking()], steps=24)
    assert logit_gap(loop, PROMPTS, output) <= 1e-3
    wrong = output._replace(token_NB=output.token_NB.copy())
    wrong.token_NB[11, 1] = (wrong.token_NB[11, 1] + 7) % 512
    assert logit_gap(loop, PROMPTS, wrong) > LARGEST_GAP


def test_attention_to_wrong_keys_is_seen(loop):
    loop.cache = jax.tree.map(lambda pages: pages[:, ::-1], loop.cache)
    output = loop.run("xla", PROMPTS, [make_thinking(), make_thinking()], steps=24)
    assert logit_gap(loop, PROMPTS, output) > LARGEST_GAP


def test_a_loop_that_is_not_repeatable_fails():
    rng = np.random.default_rng(0)
    none = rng.random((64, 4))

    class Restless:
        def call(self, program, state):
            return ChunkOutput(64, rng.random((64, 4)), none, none)

    _, problems = decoding.three_runs(Restless(), None, None)
    with pytest.raises(RuntimeError, match="three runs generated different tokens"):
        raise_if(problems)


def test_a_wrong_training_attention_is_seen(monkeypatch, tmp_path):
    from jaxs1.model import ops

    def blind(q, k, v, segments, **options):
        """Sequences of a row see each other."""
        return ops.attention_xla(q, k, v, segments * 0 + 1)

    monkeypatch.setitem(ops.IMPLS["attention"], "blind", blind)
    ctx = tiny_context(tmp_path, attention="blind")
    problems = training.compare_attention(ctx, training.random_params(ctx))
    with pytest.raises(RuntimeError, match="gradients differ by"):
        raise_if(problems)


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch")
def test_a_failing_child_is_a_failing_part(monkeypatch, tmp_path):
    from benchmarks.gpu_parts import cublas

    ctx = dataclasses.replace(tiny_context(tmp_path), device=FakeGpu())
    with contextlib.suppress(ImportError), pytest.raises(RuntimeError, match="finds no CUDA"):
        cublas.cublas(ctx)


class FakeGpu:
    platform = "gpu"
