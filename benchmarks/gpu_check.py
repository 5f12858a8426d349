"""Everything that needs an NVIDIA GPU, in one command: python -m benchmarks.gpu_check.

Parts, each of which may fail without losing the others:

* kernels: every kernel in bfloat16 against float64
* tokens: the real decode loop on Triton against XLA, with forcing in the batch
* graph: the loop is one CUDA graph; run three times, it writes the same tokens
* ceilings: what the memory and the tensor cores reach with plain work
* times: kernels against these ceilings
* steps: a step of the 32B inside the real loop, forced and unforced

Writes benchmarks/gpu/NAME/DATE.json and .md. Exit status: 0 all passed, 1 some did not, 2 no GPU.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jax
import numpy as np

from benchmarks.gpu_summary import Figures, header, write
from benchmarks.random_loop import Loop, ask, needs, regret, room
from jaxs1.config import UserError, one_line, parse, run_command
from jaxs1.model.architecture import Architecture, read_config
from kernels import bench, measure
from kernels.launch import Run
from kernels.shapes import MODELS, Shape, step_work

#: A token that Triton chose may be so much less likely than XLA's likeliest, in standard deviations
#: of the logits. Rounding in bfloat16 gave 0.01 on a CPU; a token at random is about 4 away.
LARGEST_REGRET = 0.25
#: Where kernels of the model "odd" are checked.
ODD = bench.Bench(batch=[3, 17, 64], context=[65, 4097])
#: No part is begun later than this [s].
LATEST = 480


@dataclass(frozen=True)
class GpuCheck:
    """Check and time the Triton decoding on this NVIDIA GPU.

    Args:
        model: whose kernels and steps are timed, e.g. qwen2.5-32b
        small: whose loop is compared with XLA's
        batch: numbers of sequences
        context: tokens that a new token attends to, in timed steps
        samples: of each timing
        output: folder that takes NAME/DATE.json and .md
    """

    model: str = "qwen2.5-32b"
    small: str = "qwen2.5-7b"
    batch: list[int] = field(default_factory=lambda: [1, 8, 32])
    context: int = 4096
    samples: int = 20
    output: str = "benchmarks/gpu"

    def __post_init__(self) -> None:
        """Refuse models whose shapes are not known."""
        for name in ("model", "small"):
            if getattr(self, name) not in MODELS:
                raise UserError(f"{name}={getattr(self, name)}: must be one of {', '.join(MODELS)}")


@dataclass(frozen=True)
class Bed:
    """What is checked, and where.

    Args:
        options: of the command
        device: where it runs
        run: who runs single kernels
        impl: of the loop, compared with xla
        dtype: of weights and cache
        architectures, shapes: of the models by name, and of "odd", whose kernels are only checked
    """

    options: GpuCheck
    device: jax.Device
    run: Run
    impl: str
    dtype: str
    architectures: dict[str, Architecture]
    shapes: dict[str, Shape]


def kernels(bed: Bed, _: Figures) -> Figures:
    """Raises RuntimeError where a kernel differs from float64."""
    o = bed.options
    real = bench.Bench(batch=o.batch, context=[o.context])
    timed = bench.check_rows(real, bed.shapes[o.model], bed.run, bed.dtype)
    rows = [*timed, *bench.check_rows(ODD, bed.shapes["odd"], bed.run, bed.dtype)]
    return {
        "checked": len(rows),
        "largest_error": max(r.error for r in rows),
        "repeatable": all(r.repeatable for r in rows),
        "rows": [dataclasses.asdict(r) for r in timed],
    }


def tokens(bed: Bed, _: Figures) -> Figures:
    """Both loops on the same sequences; what ends a thinking is what the model says there."""
    loop, prompts = _small(bed)
    free, _ = loop.run(bed.impl, prompts, [ask()] * len(prompts), steps=64)
    said = [int(ids[20]) for ids in free.token_NB.T]
    waits = [ask(thinking=48, waits=2, end=said[2]), ask(thinking=40, waits=1, end=said[3])]
    asked = [ask(), ask(thinking=24), *waits]
    ours, _ = loop.run(bed.impl, prompts, asked, steps=64)
    xla, _ = loop.run("xla", prompts, asked, steps=64)
    worst = regret(loop, prompts, ours)
    found = {
        "tokens": int(ours.token_NB.size),
        "forced": int(ours.forced_NB.sum()),
        "equal_to_xla": float((ours.token_NB == xla.token_NB).mean()),
        "largest_regret": worst,
    }
    if not worst <= LARGEST_REGRET or not found["forced"]:
        raise RuntimeError(f"regret above {LARGEST_REGRET}, or nothing forced: {found}")
    return found


def graph(bed: Bed, _: Figures) -> Figures:
    """The same sequences three times; raises where tokens differ or the loop is no graph."""
    loop, prompts = _small(bed)
    runs, launches = [], {}
    for _ in range(3):
        written, launches = loop.run(bed.impl, prompts, [ask(thinking=24)] * 4, steps=64)
        runs.append(written.token_NB)
    found = {"same_tokens": all((r == runs[0]).all() for r in runs), "launches": launches}
    if not found["same_tokens"]:
        raise RuntimeError(f"three runs wrote different tokens: {found}")
    if bed.device.platform == "gpu" and ("kWhile" in launches or "kCommandBuffer" not in launches):
        raise RuntimeError(f"the loop is no CUDA graph: {found}")
    return found


def ceilings(bed: Bed, _: Figures) -> Figures:
    """Bytes and floating-point operations per second, seconds of an empty node."""
    return dataclasses.asdict(measure.ceilings(bed.run, bed.options.samples))


def times(bed: Bed, parts: Figures) -> Figures:
    """Each kernel's median and its floor; only of kernels that passed."""
    o, shape = bed.options, bed.shapes[bed.options.model]
    limits = measure.Ceilings(**_figures(parts, "ceilings"))
    checked = [bench.Row(**row) for row in _figures(parts, "kernels")["rows"]]
    rows = [bench.time_row(r, shape, bed.run, limits, o.samples, bed.dtype) for r in checked]
    return {"rows": [dataclasses.asdict(r) for r in rows]}


def steps(bed: Bed, parts: Figures) -> Figures:
    """Seconds of a step of the real chunk; a batch that does not fit is skipped."""
    o, a = bed.options, bed.architectures[bed.options.model]
    read = parts.get("ceilings", {}).get("read")
    rows, skipped = [], []
    for batch in o.batch:
        need, free = needs(a, bed.dtype, rows=batch, context=o.context + 32), room(bed.device)
        if need > free:
            skipped.append(f"batch {batch} needs {need / 1e9:.0f} GB of {free / 1e9:.0f}")
            continue
        # the context in the middle of a chunk
        work = step_work(bed.shapes[o.model], batch, o.context + 16)
        floor = work.bytes / read if read else None
        rows.append({"batch": batch, **_step(bed, a, batch), "bytes": work.bytes, "floor": floor})
    if not rows:
        raise RuntimeError(f"{', '.join(skipped)}; give --model qwen2.5-7b or --batch [1]")
    return {"rows": rows, "skipped": skipped}


def _step(bed: Bed, a: Architecture, batch: int) -> dict[str, float]:
    """Median seconds of a step; forced and unforced chunks take turns."""
    context = bed.options.context
    loop = Loop(a, bed.device, bed.dtype, rows=batch, context=context + 32)
    prompts = [[1] * context] * batch
    starts = {"unforced": [ask()] * batch, "forced": [ask(thinking=8)] * batch}
    slots = {name: loop.place(prompts, asked) for name, asked in starts.items()}
    taken: dict[str, list[float]] = {name: [] for name in starts}
    for _ in range(bed.options.samples // 2 + 2):
        for name, begun in slots.items():
            begin = time.perf_counter()
            written, _ = loop.chunk(bed.impl, begun, steps=32)
            taken[name].append((time.perf_counter() - begin) / 32)
            if written.count != 32 or written.forced_NB.any() != (name == "forced"):
                raise RuntimeError(f"a chunk of {written.count} steps, {name}: not what was asked")
    # the first two compile and warm up
    return {name: float(np.median(values[2:])) for name, values in taken.items()}


Part = Callable[[Bed, Figures], Figures]
PARTS: dict[str, Part] = {f.__name__: f for f in (tokens, graph, ceilings, steps, kernels, times)}


def check(bed: Bed, named: dict[str, Part] = PARTS) -> Figures:
    """All parts: name -> figures, with `passed`, `seconds` and, where it failed, `error`."""
    found: Figures = {}
    begin = time.perf_counter()
    for name, part in named.items():
        started = time.perf_counter()
        print(f"{name} ...", flush=True)
        try:
            if started - begin > LATEST:
                raise TimeoutError(f"not begun: {LATEST} s are over")
            found[name] = {**part(bed, found), "passed": True}
        except Exception as error:  # whatever it is, the other parts go on
            found[name] = {"passed": False, "error": f"{type(error).__name__}: {one_line(error)}"}
        found[name]["seconds"] = round(time.perf_counter() - started, 1)
        print(f"{name}: {found[name].get('error', 'passed')}", flush=True)
    return found


def _small(bed: Bed) -> tuple[Loop, list[list[int]]]:
    """A loop of four sequences whose prompts are cached."""
    loop = Loop(bed.architectures[bed.options.small], bed.device, bed.dtype, rows=4, context=256)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(20, 300, n).tolist() for n in (1, 63, 64, 130)]
    loop.prefill(prompts)
    return loop, prompts


def _figures(parts: Figures, name: str) -> Figures:
    if not parts[name]["passed"]:
        raise RuntimeError(f"needs {name}, which failed")
    return {k: v for k, v in parts[name].items() if k not in ("passed", "seconds")}


def main(argv: Sequence[str]) -> int:
    """The command."""
    options = parse(GpuCheck, argv, command="python -m benchmarks.gpu_check")
    device, run = bench.find_gpu(
        "this check needs an NVIDIA GPU; without one, "
        "python -m jaxs1.plan --decode --impl triton compiles the loop for an H200"
    )
    configs = Path(__file__).parents[1] / "configs" / "models"
    named = {options.model, options.small}
    architectures = {n: Architecture.from_hf(read_config(configs / f"{n}.json"), n) for n in named}
    shapes = {**MODELS, "odd": MODELS["qwen2.5-0.5b"]}
    bed = Bed(options, device, run, "triton", "bfloat16", architectures, shapes)
    said = header(device, **vars(options), impl=bed.impl)
    return 0 if write(options.output, said, check(bed)) else 1


if __name__ == "__main__":
    run_command(main)
