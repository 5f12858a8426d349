"""Parts ceilings, times and sweep: what the hardware reaches, and what single kernels reach."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import numpy as np

from benchmarks.gpu_parts.context import CheckContext, raise_if
from jaxs1.config import one_line
from kernels.bench import KERNELS
from kernels.benchmarking import timing
from kernels.benchmarking.cases import KernelCase, make
from kernels.benchmarking.program import Program
from kernels.benchmarking.timing import TimedStep, timed_step
from kernels.matmul_tile import Tiling
from kernels.shapes import kernel_work

#: Tilings of each product to try at the smallest batch; part `times` covers the kernels' defaults.
TILINGS: dict[str, list[Tiling]] = {
    "gate_up": [
        *(Tiling(128, stages, warps=warps) for stages in (3, 4) for warps in (4, 8)),
        Tiling(64, 6),
    ],
    "down": [
        *(Tiling(64, stages, slices) for stages in (5, 6) for slices in (4, 5, 6)),
        *(Tiling(128, 4, slices) for slices in (6, 9)),
    ],
    "out": [
        *(Tiling(64, stages, slices) for stages in (5, 6) for slices in (3, 4)),
        Tiling(128, 4, 6),
    ],
    "qkv": [
        *(Tiling(64, stages, slices) for stages in (5, 6) for slices in (3, 4)),
        Tiling(128, 4, 5),
    ],
    "head": [
        *(Tiling(64, stages) for stages in (4, 6)),
        Tiling(128, 4),
        Tiling(128, 3, warps=8),
    ],
}


def ceilings_programs(ctx: CheckContext) -> Iterator[Program]:
    """Work and inputs of each ceiling."""
    for work in _ceiling_work(ctx).values():
        yield from (work.make, work.program)


def ceilings(ctx: CheckContext) -> None:
    """What memory and tensor cores reach on simple work; seconds of the smallest kernel."""
    problems = []
    for name, work in _ceiling_work(ctx).items():
        try:
            if name == "node" and not ctx.loads_in_graphs:
                outside = dataclasses.replace(work.program, options=ctx.without_graph)
                outside.compile()(work.make.compile()(np.int32(0)))
            rate = timing.measure_rate(work, ctx.samples)
        except Exception as error:  # the other ceilings are still measured
            problems.append(f"{name}: {one_line(error)[:200]}")
            continue
        ctx.facts.add(f"ceiling {name}", per_second=rate)
    raise_if(problems)


def times_programs(ctx: CheckContext) -> Iterator[Program]:
    """Inputs, kernel and XLA's plain formula, each repeated."""
    for name in KERNELS:
        case, steps = _steps(ctx, name)
        yield timing.input_program(case, ctx.device)
        yield from (step.program for step in steps.values())


def times(ctx: CheckContext) -> None:
    """The six kernels at the smallest batch, compared with XLA on the plain formula."""
    problems = []
    for name in KERNELS:
        work = kernel_work(ctx.shape, ctx.batches[0], ctx.context)[name]
        case, steps = _steps(ctx, name)
        inputs = timing.draw_inputs(case, ctx.device, steps["kernel"].copies)
        found: dict[str, Any] = {}
        try:
            _load(ctx, case, inputs[0])
            for who, step in steps.items():
                found[who] = dataclasses.asdict(timing.time_step(step, inputs, ctx.samples))
        except Exception as error:  # the other kernels are still timed
            problems.append(f"{name}: {one_line(error)[:200]}")
        if "kernel" in found:
            xla = found.get("XLA", {}).get("median")
            ctx.facts.add(f"time of {name}", kernel=name, batch=ctx.batches[0],
                          context=ctx.context, **found["kernel"], xla=xla, bytes=work.bytes,
                          flops=work.flops)  # fmt: skip
    raise_if(problems)


def sweep_programs(ctx: CheckContext) -> Iterator[Program]:
    """Inputs of the products, and each tiling repeated."""
    for name, tilings in TILINGS.items():
        case, _ = _steps(ctx, name)
        yield timing.input_program(case, ctx.device)
        yield from (_tiled(ctx, name, tiling).program for tiling in tilings)


def sweep(ctx: CheckContext) -> None:
    """The products in other tilings: the effect of other constants."""
    failed = tried = 0
    for name, tilings in TILINGS.items():
        case, _ = _steps(ctx, name)
        num_bytes = kernel_work(ctx.shape, ctx.batches[0], ctx.context)[name].bytes
        inputs = timing.draw_inputs(case, ctx.device, _tiled(ctx, name, tilings[0]).copies)
        for tiling in tilings:
            if ctx.is_late():
                ctx.facts.add("sweep cut short", deadline_s=ctx.deadline)
                return
            tried += 1
            try:
                _load(ctx, case, inputs[0], tiling=tiling)
                step = _tiled(ctx, name, tiling)
                taken = timing.time_step(step, inputs, max(1, ctx.samples // 2))
                found: dict[str, Any] = {"median": taken.median, "bytes": num_bytes}
            except Exception as error:  # a tiling may need more than an SM has
                found, failed = {"error": one_line(error)[:200]}, failed + 1
            ctx.facts.add(f"sweep of {name}, {_described(tiling)}", kernel=name,
                          **dataclasses.asdict(tiling), **found)  # fmt: skip
    raise_if([f"no tiling of {tried} could be run"] if failed == tried else [])


def _described(tiling: Tiling) -> str:
    given = {k: v for k, v in dataclasses.asdict(tiling).items() if v is not None}
    return ", ".join(f"{name} {value}" for name, value in given.items())


def _steps(ctx: CheckContext, name: str) -> tuple[KernelCase, dict[str, TimedStep]]:
    case = _case(ctx, name)
    num_bytes = kernel_work(ctx.shape, ctx.batches[0], ctx.context)[name].bytes
    steps = {"kernel": partial(case.launches, ctx.runner), "XLA": case.plain}
    return case, {
        who: timed_step(who, case, step, num_bytes, ctx.device) for who, step in steps.items()
    }


def _tiled(ctx: CheckContext, name: str, tiling: Tiling) -> TimedStep:
    case = _case(ctx, name)
    num_bytes = kernel_work(ctx.shape, ctx.batches[0], ctx.context)[name].bytes
    step = partial(case.launches, ctx.runner, tiling=tiling)
    return timed_step(f"kernel in {_described(tiling)}", case, step, num_bytes, ctx.device)


def _case(ctx: CheckContext, name: str) -> KernelCase:
    return make(name, ctx.shape, ctx.batches[0], ctx.context, ctx.dtype)


def _load(ctx: CheckContext, case: KernelCase, inputs: Any, **options: Any) -> None:
    """Run a kernel outside of any graph, if it cannot be loaded inside."""
    if not ctx.loads_in_graphs:
        function = jax.jit(partial(case.launches, ctx.runner, **options))
        program = Program(f"load {case.label}", function, inputs, options=ctx.without_graph)
        jax.block_until_ready(program.compile()(*inputs))


def _ceiling_work(ctx: CheckContext) -> dict[str, timing.CeilingWork]:
    return timing.ceiling_work(ctx.run, ctx.device, **ctx.ceiling_sizes)
