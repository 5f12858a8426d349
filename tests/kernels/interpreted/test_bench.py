"""Every path of the benchmark that a CPU can take, with interpreted kernels."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels import bench
from kernels.benchmarking import cases, decode_step, timing
from kernels.benchmarking.program import random_values
from kernels.interpreted import on_jax
from kernels.matmul_tile import Tiling
from kernels.shapes import MODELS

DEVICE = jax.devices()[0]
OPTIONS = bench.Bench(batch=[2], context=[70])
#: Of no other test: cases are made once.
WRONG = bench.small(MODELS["qwen2.5-32b"])


def test_results_equal_float64():
    rows = bench.check_kernels(OPTIONS, bench.small(MODELS["qwen3-4b"]), on_jax, DEVICE, "float32")
    assert [r.kernel for r in rows] == list(bench.KERNELS)
    assert all(r.error <= 1e-5 and r.repeatable for r in rows)


def test_a_wrong_kernel_is_not_timed(monkeypatch):
    wrong = lambda run, x, scale, gate, up, eps: 1.001 * real(run, x, scale, up, gate, eps=eps)  # noqa: E731
    real = cases.gate_up
    monkeypatch.setattr(cases, "gate_up", wrong)
    options = dataclasses.replace(OPTIONS, kernel=["gate_up"])
    with pytest.raises(RuntimeError, match="gate_up at batch 2, context 70: differs from float64"):
        bench.check_kernels(options, WRONG, on_jax, DEVICE, "float32")


def test_timing(monkeypatch):
    monkeypatch.setattr(timing, "ROTATED", 30_000)
    monkeypatch.setattr(timing, "LEAST_SECONDS", 0)
    monkeypatch.setattr(timing, "TURNS", 1)
    shape = bench.small(MODELS["qwen2.5-32b"])
    limits = timing.ceilings(on_jax, DEVICE, 1, size=1 << 16, width=64, nodes=1)
    assert all(value > 0 for value in dataclasses.astuple(limits))
    for name in ("attention", "out"):
        options = dataclasses.replace(OPTIONS, kernel=[name])
        (row,) = bench.check_kernels(options, shape, on_jax, DEVICE, "float32")
        row = bench.time_kernel(row, shape, on_jax, DEVICE, limits, 1, "float32")
        assert 0 < row.low <= row.median <= row.high and row.xla > 0
        floor = max(row.bytes / limits.read, row.flops / limits.matmul)
        assert math.isclose(row.floor, floor)


def test_a_step_is_repeated_over_all_cases():
    """Every round takes over what the last one left; nothing is left out."""
    step = lambda fixed, state: (state * fixed, state + fixed)  # noqa: E731
    fixed, state = [jnp.float32(2), jnp.float32(5)], [jnp.float32(1), jnp.float32(10)]
    outputs, state = jax.jit(timing.repeated(step, 4))(fixed, state)
    assert [float(x) for x in state] == [9, 30]
    assert [float(x) for x in outputs] == [14, 125]  # of the last round


def test_random_values_are_uniform_and_independent():
    x, y = (np.asarray(random_values(seed, (200, 300), jnp.float32, 0.5)) for seed in (0, 1))
    assert abs(x.mean()) < 0.01 and x.std() == pytest.approx(0.5, rel=0.01)
    assert np.abs(x).max() == pytest.approx(0.5 * 3**0.5, rel=1e-3)
    counts, _ = np.histogram(x, 20)
    assert counts.min() > 2700 and counts.max() < 3300  # 3,000 each, 53 more or less
    for other in (y, np.roll(x, 1, 0), np.roll(x, 1, 1)):
        assert abs(np.corrcoef(x.ravel(), other.ravel())[0, 1]) < 0.02
    again = random_values(0, (200, 300), jnp.float32, 0.5)
    assert (x == np.asarray(again)).all() and len(np.unique(x)) > 59_000


def test_ceilings_do_what_they_are_named(monkeypatch):
    monkeypatch.setattr(timing, "TURNS", 3)
    work = timing.ceiling_work(on_jax, DEVICE, size=1 << 12, width=8, nodes=1)
    found = {}
    for name in ("copy", "read", "write", "matmul"):
        before = jax.tree.map(np.asarray, work[name].make.compile()(np.int32(0)))
        found[name] = before, work[name].program.compile()(work[name].make.compile()(np.int32(0)))
    (x, _), (y, _) = found["copy"]
    assert (np.asarray(y) == x + np.uint32(3)).all()
    (x, _), (_, highest) = found["read"]
    expected = np.uint32(0)
    for _ in range(3):
        expected = np.max(x ^ expected)
    assert highest == expected
    assert (np.asarray(found["write"][1][0]) == 2).all()
    a = np.asarray(found["matmul"][0][0], np.float64)
    expected = np.linalg.matrix_power(a, 7)
    assert np.abs(np.asarray(found["matmul"][1][1], np.float64) - expected).max() < 0.05


@pytest.mark.parametrize("name", ["qkv", "out", "gate_up", "head"])
def test_tilings_that_differ_in_stages_and_warps_give_the_same_bits(name):
    shape = bench.small(MODELS["qwen2.5-32b"])
    case = cases.make(name, shape, 2, 70, "float32")
    ((fixed, state),) = timing.draw_inputs(case, DEVICE)
    first, *others = (
        np.asarray(case.kernel(on_jax, fixed, state, tiling=tiling)[0])
        for tiling in (Tiling(), Tiling(stages=2), Tiling(stages=5, warps=8), Tiling(stages=3))
    )
    assert np.isfinite(first).all()
    assert all(first.tobytes() == other.tobytes() for other in others)


@pytest.mark.parametrize("name", ["qkv", "out"])
def test_another_number_of_slices_is_as_exact(name):
    shape = bench.small(MODELS["qwen2.5-32b"])
    case = cases.make(name, shape, 2, 70, "float32")
    ((fixed, state),) = timing.draw_inputs(case, DEVICE)
    exact = np.asarray(case.plain(fixed, state)[0])
    for slices in (1, 3):
        got = np.asarray(case.kernel(on_jax, fixed, state, tiling=Tiling(slices=slices))[0])
        assert np.abs(got - exact).max() / np.abs(exact).max() <= 1e-5


def test_step(monkeypatch):
    monkeypatch.setattr(decode_step, "TOKENS", 1)
    shape = bench.small(MODELS["qwen3-0.6b"])
    times = decode_step.step_times(shape, on_jax, 2, 65, 1, jnp.float32)
    assert times["median"] > 0 and times["bytes"] / times["median"] == times["bytes_per_second"]
