"""The parts of `make gpu-check` that run single kernels, interpreted in the place of a GPU."""

import dataclasses

import pytest

from benchmarks.gpu_parts import int8, speed
from benchmarks.gpu_parts.registry import choose, run_parts
from benchmarks.gpu_summary import read_results
from kernels import bench
from kernels.benchmarking import cases, timing
from kernels.interpreted import on_jax
from kernels.matmul_tile import Tiling
from kernels.shapes import MODELS
from tests.tiny_gpu_check import TINY, tiny_context

SHAPE = bench.small(MODELS["qwen2.5-32b"])
NAMES = "kernels,probe,ceilings,times,sweep,shapes"


@pytest.fixture
def context(monkeypatch, tmp_path):
    monkeypatch.setattr(timing, "ROTATED", 30_000)
    monkeypatch.setattr(timing, "LEAST_SECONDS", 0)
    monkeypatch.setattr(timing, "TURNS", 1)
    tilings = {"out": [Tiling(64, 5, 2)], "gate_up": [Tiling(128, 3)]}
    monkeypatch.setattr(speed, "TILINGS", tilings)
    return tiny_context(tmp_path, run=on_jax, shape=SHAPE, odd_shape=SHAPE, context=70,
                        batches=(1,))  # fmt: skip


def test_the_parts_that_run_single_kernels(context, tmp_path):
    assert run_parts(context, choose(NAMES))
    parts = read_results([tmp_path / "facts.jsonl"])[1]
    for name, number in (("kernels", 6), ("shapes", 6)):
        facts = parts[name]["facts"].values()
        assert len(facts) == number
        assert all(f["difference"] <= 1e-5 and f["repeatable"] for f in facts)
    assert parts["probe"]["facts"]["kernel loaded in a graph"]["value"] == 512
    assert len(parts["ceilings"]["facts"]) == 5
    assert [f["kernel"] for f in parts["times"]["facts"].values()] == list(bench.KERNELS)
    assert [f["slices"] for f in parts["sweep"]["facts"].values()] == [2, None]
    assert "| down, batch 1 |" in next(tmp_path.glob("cpu/*.md")).read_text()


@pytest.mark.parametrize("tied", [True, False])
def test_int8_kernels_against_the_check_s_float64(tied, tmp_path):
    architecture = dataclasses.replace(
        TINY, hidden_size=128, intermediate_size=192, num_heads=4, num_kv_heads=2, head_dim=64,
        tie_word_embeddings=tied,
    )  # fmt: skip
    ctx = tiny_context(tmp_path, impl="triton-interpreted", architecture=architecture)
    assert not int8.compare_logits(ctx, int8._one_layer(ctx).fill())


def test_a_wrong_kernel_fails_and_the_others_are_checked(context, tmp_path, monkeypatch):
    real = cases.head
    monkeypatch.setattr(cases, "head", lambda *given, **options: 1.001 * real(*given, **options))
    cases.make.cache_clear()
    assert not run_parts(context, choose("kernels"))
    part = read_results([tmp_path / "facts.jsonl"])[1]["kernels"]
    assert "head at batch 1, context 70: differs from float64 by 1.0e-03" in part["error"]
    assert sum(not f["passed"] for f in part["facts"].values()) == 1


def test_a_tiling_that_cannot_run_does_not_end_the_sweep(context, tmp_path, monkeypatch):
    tilings = {"out": [Tiling(48), Tiling(64, 5, 2)]}  # a tile is a power of two
    monkeypatch.setattr(speed, "TILINGS", tilings)
    assert run_parts(context, choose("sweep"))
    first, second = read_results([tmp_path / "facts.jsonl"])[1]["sweep"]["facts"].values()
    assert "error" in first and second["median"] > 0
