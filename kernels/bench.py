"""How close the kernels come to the memory's bandwidth: python -m kernels.bench.

Needs an NVIDIA GPU. Every kernel is compared with float64 before it is timed. Without a GPU:

    python -m kernels.bench --interpret true     checks the kernels' results on small shapes
    python -m kernels.bench --resources true     shows their registers, spills and instructions

Bytes are counted once for each tensor (`kernels.shapes`). Percentages are of the read ceiling that
is measured in the same run, not of the data sheet.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from jaxs1.config import UserError, parse, run_command
from kernels.launch import Run
from kernels.shapes import BATCHES, MODELS, Shape, Work, kernel_work

KERNELS = ("qkv", "attention", "out", "gate_up", "down", "head")
#: Largest cache that results are checked on; the oracle needs it in float64 [bytes].
CHECKED = 1 << 30
#: Largest accepted errors against float64: rounding of bfloat16, and of float32 where interpreted.
LARGEST_ERROR = {"bfloat16": 2e-2, "float32": 1e-5}


@dataclass(frozen=True)
class Bench:
    """Time the decoding kernels on this GPU and compare them with its limits.

    Args:
        kernel: names of the kernels to time
        model: published model, e.g. qwen2.5-32b
        devices: number of tensor-parallel devices; one device's shard is timed
        batch: batch sizes
        context: numbers of tokens that a new token attends to
        step: also time a complete decoding step of the model, with random weights
        samples: number of samples of each timing
        output: file for the results, FILE.json, with a roofline plot in FILE.png; null writes none
        interpret: check results on small shapes in Triton's interpreter; needs no GPU
        resources: show registers, spills and instructions of the kernels; needs no GPU
    """

    kernel: list[str] = field(default_factory=lambda: list(KERNELS))
    model: str = "qwen2.5-32b"
    devices: int = 1
    batch: list[int] = field(default_factory=lambda: [1, 4, 16, 32, 64])
    context: list[int] = field(default_factory=lambda: [1024, 4096, 32768])
    step: bool = False
    samples: int = 50
    output: str | None = None
    interpret: bool = False
    resources: bool = False

    def __post_init__(self) -> None:
        """Reject what cannot be run."""
        for name in self.kernel:
            if name not in KERNELS:
                raise UserError(f"kernel={name}: must be among {', '.join(KERNELS)}")
        if self.model not in MODELS:
            raise UserError(f"model={self.model}: must be one of {', '.join(MODELS)}")
        low, high = BATCHES
        for batch in self.batch:
            if not low <= batch <= high:
                raise UserError(f"batch={batch}: must be {low} to {high}")
        for name in ("context", "samples", "devices"):
            value = getattr(self, name)
            if min(value if isinstance(value, list) else [value]) < 1:
                raise UserError(f"{name}={value}: must be at least 1")
        if self.output is not None and not self.output.endswith(".json"):
            raise UserError(f"output={self.output}: must end with .json")


@dataclass(frozen=True)
class BenchResult:
    """One kernel at one batch and context. Times in seconds."""

    kernel: str
    batch: int
    context: int
    error: float
    repeatable: bool
    bytes: int
    flops: int
    median: float | None = None
    low: float | None = None
    high: float | None = None
    floor: float | None = None
    xla: float | None = None


def check_kernels(
    options: Bench, shape: Shape, run: Any, device: Any, dtype: str
) -> list[BenchResult]:
    """Correctness of every kernel, nothing timed. Raises RuntimeError where one is wrong."""
    from kernels.benchmarking import timing
    from kernels.benchmarking.cases import make

    results = []
    for name, batch, context in points(options):
        case = make(name, shape, batch, checked_context(shape, batch, context), dtype)
        error, same = timing.correctness(timing.check_of(case, run, device))
        if not error <= LARGEST_ERROR[dtype]:
            raise RuntimeError(
                f"{name} at batch {batch}, context {context}: differs from float64 by {error:.1e} "
                f"of the largest value, more than {LARGEST_ERROR[dtype]:.0e}; nothing is timed"
            )
        work = kernel_work(shape, batch, context)[name]
        results.append(BenchResult(name, batch, context, error, same, work.bytes, work.flops))
    return results


def checked_context(shape: Shape, batch: int, context: int) -> int:
    """The context that a kernel is checked at: shorter if its cache would be too large."""
    return min(context, max(1, CHECKED // kernel_work(shape, batch, 1)["attention"].cache))


def time_kernel(
    result: BenchResult, shape: Shape, run: Any, device: Any, ceilings: Any, number: int, dtype: str
) -> BenchResult:
    """The result with its times: the kernel, the floor, and XLA for the plain formula."""
    from kernels.benchmarking import timing
    from kernels.benchmarking.cases import make

    case = make(result.kernel, shape, result.batch, result.context, dtype)
    steps: dict[str, Any] = {"kernel": partial(case.launches, run), "XLA": case.plain}
    timed = [timing.timed_step(n, case, s, result.bytes, device) for n, s in steps.items()]
    inputs = timing.draw_inputs(case, device, timed[0].copies)
    times, xla = (timing.time_step(t, inputs, number) for t in timed)
    work = Work(activations=result.bytes, flops=result.flops)
    return dataclasses.replace(
        result, **dataclasses.asdict(times), xla=xla.median,
        floor=work.floor(ceilings.read, ceilings.matmul),
    )  # fmt: skip


def small(shape: Shape) -> Shape:
    """A small shape with the same features, which the interpreter runs in seconds."""
    return dataclasses.replace(
        shape, layers=1, width=600, mlp=200, heads=shape.heads // shape.kv_heads, kv_heads=1,
        head_dim=32, vocabulary=333,
    )  # fmt: skip


def table(rows: Sequence[BenchResult], ceilings: Any | None) -> Any:
    """A rich table; without ceilings it has no columns of times."""
    from rich.table import Table

    drawn = Table("kernel", "batch", "context", "error", "repeatable")
    if ceilings is not None:
        for name in ("us", "p10-p90", "floor", "GB/s", "of read", "of matmul", "vs XLA"):
            drawn.add_column(name, justify="right")
    for r in rows:
        context = str(r.context) if r.kernel == "attention" else "any"
        cells = [r.kernel, str(r.batch), context, f"{r.error:.0e}",
                 "yes" if r.repeatable else "NO"]  # fmt: skip
        if ceilings is not None and r.median and r.low and r.high and r.floor and r.xla:
            speed, flops = r.bytes / r.median, r.flops / r.median
            cells += [f"{1e6 * r.median:.1f}", f"{1e6 * r.low:.1f}-{1e6 * r.high:.1f}",
                      f"{1e6 * r.floor:.1f}", f"{speed / 1e9:.0f}", f"{speed / ceilings.read:.0%}",
                      f"{flops / ceilings.matmul:.0%}", f"{r.xla / r.median:.2f} x"]  # fmt: skip
        drawn.add_row(*cells)
    return drawn


def picture(rows: Sequence[BenchResult], ceilings: Any, title: str, path: Path) -> None:
    """A roofline plot: all results under the measured limits of memory and tensor cores."""
    import matplotlib

    matplotlib.use("Agg")
    import numpy as np
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    intensity = np.geomspace(0.5, 2000, 200)
    roof = np.minimum(intensity * ceilings.read, ceilings.matmul)
    label = (
        f"limit: read {ceilings.read / 1e12:.2f} TB/s, matmul {ceilings.matmul / 1e12:.0f} Tflop/s"
    )
    axes.loglog(intensity, roof / 1e12, color="black", label=label)
    for name, mark in zip(KERNELS, "osD^vP", strict=True):
        timed = [r for r in rows if r.kernel == name and r.median]
        if timed:
            axes.plot([r.flops / r.bytes for r in timed],
                      [r.flops / (r.median or 1) / 1e12 for r in timed],
                      mark, alpha=0.7, label=name)  # fmt: skip
    axes.set(xlabel="flop per byte of memory traffic", ylabel="Tflop/s", title=title)
    axes.grid(which="both", alpha=0.2)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def points(options: Bench) -> list[tuple[str, int, int]]:
    """(kernel, batch, context); only attention depends on the context."""
    return [
        (name, batch, context)
        for name in options.kernel
        for batch in options.batch
        for context in (options.context if name == "attention" else options.context[:1])
    ]


def _interpret(options: Bench, shape: Shape) -> None:
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported, which is below
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax
    from rich.console import Console

    from kernels.interpreted import on_jax

    device = jax.devices()[0]
    rows = check_kernels(options, small(shape), on_jax, device, "float32")
    text = f"{options.model}, small shapes with its features, interpreted in float32: results only"
    Console(width=120).print(text, table(rows, None))


def find_gpu(otherwise: str) -> tuple[Any, Run]:
    """The default GPU, and what runs kernels on it.

    Raises:
        UserError: there is no GPU (the message ends with `otherwise`), or the GPU or an installed
            version is not supported.
    """
    import jax

    from kernels import xla_call

    device = jax.devices()[0]
    if device.platform != "gpu":
        raise UserError(f"device={device.platform}: {otherwise}")
    try:
        capability = xla_call.compute_capability()
        xla_call.check_versions()
        xla_call.check_capability(capability)
    except ValueError as error:
        raise UserError(str(error)) from None
    return device, xla_call.Compiled(capability)


def _measure(options: Bench, shape: Shape) -> None:
    """Check and time the kernels on a GPU, print the results, save them."""
    import jax
    import triton
    from rich.console import Console

    from kernels.benchmarking.decode_step import step_times
    from kernels.benchmarking.timing import ceilings

    device, run = find_gpu(
        "timing needs an NVIDIA GPU; without one, --interpret true checks the kernels' results and "
        "--resources true shows their registers, spills and instructions"
    )
    console = Console(width=140)
    rows = check_kernels(options, shape, run, device, "bfloat16")
    limits = ceilings(run, device, options.samples)
    rows = [time_kernel(r, shape, run, device, limits, options.samples, "bfloat16") for r in rows]
    steps = [
        step_times(shape, run, b, c, max(3, options.samples // 10))
        for b in options.batch for c in options.context if options.step
    ]  # fmt: skip
    header = {
        "gpu": device.device_kind, "driver": device.client.platform_version,
        "jax": jax.__version__, "triton": triton.__version__, "model": options.model,
        "devices": options.devices, "ceilings": dataclasses.asdict(limits),
    }  # fmt: skip
    console.print_json(data=header)
    console.print(table(rows, limits))
    for s in steps:
        console.print(
            f"step at batch {s['batch']}, context {s['context']}: {1e3 * s['median']:.2f} ms, "
            f"{s['bytes_per_second'] / 1e9:.0f} GB/s, "
            f"{s['bytes_per_second'] / limits.read:.0%} of the read ceiling"
        )
    if options.output:
        write(Path(options.output), header, rows, steps)
        picture(rows, limits, f"{options.model} on {device.device_kind}",
                Path(options.output).with_suffix(".png"))  # fmt: skip


def write(
    path: Path, header: dict[str, Any], rows: Sequence[BenchResult], steps: Sequence[Any]
) -> None:
    """All figures as JSON."""
    data = {**header, "rows": [dataclasses.asdict(r) for r in rows], "steps": list(steps)}
    path.write_text(json.dumps(data, indent=1) + "\n")


def main(argv: Sequence[str]) -> None:
    """The command."""
    options = parse(Bench, argv, command="python -m kernels.bench")
    try:
        shape = MODELS[options.model].split(options.devices)
    except ValueError as error:
        raise UserError(f"devices={options.devices}: {error}") from None
    if options.resources:
        from kernels import resources

        resources.main(["--model", options.model, "--devices", str(options.devices),
                        "--batches", str(options.batch)])  # fmt: skip
    elif options.interpret:
        _interpret(options, shape)
    else:
        _measure(options, shape)


if __name__ == "__main__":
    run_command(main)
