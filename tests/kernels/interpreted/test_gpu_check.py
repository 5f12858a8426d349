"""The parts of `make gpu-check` that run single kernels, interpreted in the place of a GPU."""

from functools import partial

import jax

from benchmarks import gpu_check
from benchmarks.gpu_check import PARTS, Bed, GpuCheck, check
from benchmarks.gpu_summary import header, write
from kernels import bench, measure
from kernels.interpreted import on_jax
from kernels.shapes import MODELS

MODEL = "qwen2.5-32b"


def test_kernels_ceilings_and_times(monkeypatch, tmp_path):
    monkeypatch.setattr(measure, "ROTATED", 30_000)
    small = partial(measure.ceilings, size=1 << 16, width=64, nodes=1)
    monkeypatch.setattr(measure, "ceilings", small)
    monkeypatch.setattr(gpu_check, "ODD", bench.Bench(batch=[3], context=[65]))
    shape = bench.small(MODELS[MODEL])
    options = GpuCheck(batch=[1], context=70, samples=1)
    bed = Bed(options, jax.devices()[0], on_jax, "none", "float32", {},
              {MODEL: shape, "odd": shape})  # fmt: skip
    parts = check(bed, {name: PARTS[name] for name in ("ceilings", "kernels", "times")})
    assert [part.get("error") for part in parts.values()] == [None] * 3
    assert parts["kernels"]["largest_error"] <= 1e-5 and parts["kernels"]["checked"] == 12
    assert [r["kernel"] for r in parts["times"]["rows"]] == list(bench.KERNELS)
    assert write(str(tmp_path), header(bed.device), parts)
    assert "| down, batch 1 |" in next(tmp_path.glob("*/*.md")).read_text()
