"""Every path of the benchmark that a CPU can take, with interpreted kernels."""

import dataclasses
import math

import jax.numpy as jnp
import pytest

from kernels import bench, cases, measure, step
from kernels.interpreted import on_jax
from kernels.shapes import MODELS

OPTIONS = bench.Bench(batch=[2], context=[70])


def test_results_equal_float64():
    rows = bench.check_rows(OPTIONS, bench.small(MODELS["qwen3-4b"]), on_jax, "float32")
    assert [r.kernel for r in rows] == list(bench.KERNELS)
    assert all(r.error <= 1e-5 and r.repeatable for r in rows)


def test_a_wrong_kernel_is_not_timed(monkeypatch):
    wrong = lambda run, x, scale, gate, up, eps: 1.001 * real(run, x, scale, up, gate, eps=eps)  # noqa: E731
    real = cases.gate_up
    monkeypatch.setattr(cases, "gate_up", wrong)
    options = dataclasses.replace(OPTIONS, kernel=["gate_up"])
    with pytest.raises(RuntimeError, match="gate_up at batch 2, context 70: differs from float64"):
        bench.check_rows(options, bench.small(MODELS["qwen2.5-32b"]), on_jax, "float32")


def test_timing(monkeypatch):
    monkeypatch.setattr(measure, "ROTATED", 30_000)
    shape = bench.small(MODELS["qwen2.5-32b"])
    limits = measure.ceilings(on_jax, 1, size=1 << 16, width=64, nodes=1)
    assert all(value > 0 for value in dataclasses.astuple(limits))
    for name in ("attention", "out"):
        options = dataclasses.replace(OPTIONS, kernel=[name])
        (row,) = bench.check_rows(options, shape, on_jax, "float32")
        row = bench.time_row(row, shape, on_jax, limits, 1, "float32")
        assert 0 < row.low <= row.median <= row.high and row.xla > 0
        floor = max(row.bytes / limits.read, row.flops / limits.matmul)
        assert math.isclose(row.floor, floor)


def test_step(monkeypatch):
    monkeypatch.setattr(step, "TOKENS", 1)
    shape = bench.small(MODELS["qwen3-0.6b"])
    times = step.step_times(shape, on_jax, 2, 65, 1, jnp.float32)
    assert times["median"] > 0 and times["bytes"] / times["median"] == times["bytes_per_second"]
