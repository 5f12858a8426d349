"""The parts in order of importance; runs them, or only compiles their programs."""

from __future__ import annotations

import dataclasses
import gc
import os
import time
import traceback
from collections.abc import Iterable, Sequence
from typing import Any

import jax

from benchmarks.gpu_parts import (
    correctness,
    cublas,
    decoding,
    environment,
    generating,
    int8,
    speed,
    training,
)
from benchmarks.gpu_parts.context import CheckContext, Part
from jaxs1.config import UserError, one_line
from kernels.benchmarking.program import Program

#: Estimates for one H100, including compilation; the first includes the start of the process.
PARTS: tuple[Part, ...] = (
    Part("env", 20, "a GPU", environment.env, environment.env_programs, essential=True),
    Part("kernels", 20, "6.2 GB for the head in float64", correctness.kernels,
         correctness.kernels_programs, essential=True),
    Part("probe", 3, "nothing", correctness.probe, correctness.probe_programs, essential=True),
    Part("slice", 60, "8 layers: 12 GB", decoding.slice_, decoding.slice_programs, essential=True),
    Part("ceilings", 8, "1 GiB", speed.ceilings, speed.ceilings_programs, essential=True),
    Part("model", 58, "all weights: 67 GB", decoding.model, decoding.model_programs,
         essential=True),
    Part("times", 30, "3 GB", speed.times, speed.times_programs, essential=True),
    Part("int8", 35, "all weights in 8 bits: 35 GB; part model for the ratio", int8.int8,
         int8.int8_programs),
    Part("sweep", 24, "3 GB", speed.sweep, speed.sweep_programs),
    Part("batches", 53, "all weights: 75 GB", decoding.batches, decoding.batches_programs),
    Part("training", 95, "2 layers and AdamW: 65 GB; cuDNN", training.training,
         training.training_programs),
    Part("prefill", 20, "8 layers: 12 GB", decoding.prefill, decoding.prefill_programs),
    Part("generate", 50, "transformers; 1 GB of disk", generating.generate,
         generating.generate_programs, host_only="the engine's programs, and the folder"),
    Part("cublas", 25, "torch with CUDA; 2.5 GB outside JAX's pool", cublas.cublas,
         cublas.cublas_programs, host_only="everything, since it runs in torch"),
    Part("shapes", 36, "6.2 GB for the head in float64", correctness.shapes,
         correctness.shapes_programs),
)  # fmt: skip


def choose(text: str, parts: Sequence[Part] = PARTS) -> list[Part]:
    """Parts by their comma-separated names, in the order of importance; all for "".

    Raises:
        UserError: no such part.
    """
    known = [part.name for part in parts]
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise UserError(f"parts={name}: must be among {', '.join(known)}")
    return [part for part in parts if not names or part.name in names]


def estimates(parts: Iterable[Part], deadline: float) -> str:
    """A table of the parts' estimated times."""
    lines, total = [], 0
    for part in parts:
        total += part.seconds
        mark = "essential" if part.essential else ""
        lines.append(f"{part.name:10}{part.seconds:5} s{total:6} s   {mark:11}needs {part.needs}")
    lines.append(
        f"estimated: {total} s in total; parts that would end after {deadline:g} s are skipped"
    )
    return "\n".join(lines)


def run_parts(ctx: CheckContext, parts: Sequence[Part]) -> bool:
    """Run parts one after another, whether or not earlier ones fail; returns whether all passed."""
    passed = True
    for part in parts:
        ctx.facts.begin(part.name)
        started = ctx.facts.clock()
        if started + part.seconds > ctx.deadline:
            why = f"not begun: {started:.0f} s have passed and it is estimated at {part.seconds} s"
            ctx.facts.end(part.name, passed=False, skipped=why, seconds=0)
            passed = False
            continue
        before = environment.memory(ctx.device)["in_use_bytes"]
        outcome: dict[str, Any] = {"passed": True}
        try:
            part.run(ctx)
        except Exception as error:  # the other parts are still run
            traceback.print_exc()
            outcome = {
                "passed": False,
                "error": f"{type(error).__name__}: {one_line(error)[:1000]}",
            }
        passed &= outcome["passed"]
        gc.collect()  # arrays that a failed part's traceback held
        ctx.facts.end(
            part.name,
            **outcome,
            seconds=round(ctx.facts.clock() - started, 1),
            before_bytes=before,
            **environment.memory(ctx.device),
            clocks=environment.clocks() if ctx.on_gpu else None,
        )
    return passed


@dataclasses.dataclass(frozen=True)
class DryPart:
    """Cost of compiling a part's programs.

    Args:
        part: the part
        programs: number of programs that no earlier part has
        seconds: wall time of tracing and compiling them
        cpu_seconds: CPU time of all cores, including the assembler that XLA starts
        temporary_bytes: most memory that one of them needs in addition to its arguments
        failures: programs that could not be compiled, with the reason
    """

    part: Part
    programs: int
    seconds: float
    cpu_seconds: float
    temporary_bytes: int
    failures: tuple[str, ...]


def compile_part(ctx: CheckContext, part: Part, seen: set[str]) -> DryPart:
    """Compile the programs of a part for a device that may be absent.

    Args:
        ctx: context with that device
        part: part to compile
        seen: names of compiled programs; new ones are added
    """
    count = temporary = 0
    failures = []
    start, cpu_start = time.perf_counter(), _cpu_seconds()
    for program in part.programs(ctx):
        if program.name in seen:
            continue
        seen.add(program.name)
        count += 1
        try:
            temporary = max(temporary, _temporary_bytes(program))
        except Exception as error:  # the other programs are still compiled
            failures.append(f"{program.name}: {one_line(error)[:300]}")
    seconds = time.perf_counter() - start
    jax.clear_caches()
    cpu_seconds = _cpu_seconds() - cpu_start
    return DryPart(part, count, seconds, cpu_seconds, temporary, tuple(failures))


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _temporary_bytes(program: Program) -> int:
    return program.compile().memory_analysis().temp_size_in_bytes


def dry_run(ctx: CheckContext, parts: Sequence[Part]) -> bool:
    """Compile every program of every part and run nothing; returns whether all compiled."""
    seen: set[str] = set()
    done = []
    print(f"{'part':10}{'programs':>9}{'compile s':>11}{'CPU s':>8}{'largest temporaries':>21}")
    for part in parts:
        found = compile_part(ctx, part, seen)
        done.append(found)
        print(f"{part.name:10}{found.programs:9}{found.seconds:11.1f}{found.cpu_seconds:8.1f}"
              f"{found.temporary_bytes / 1e9:18.2f} GB"
              + (f"   omitted: {part.host_only}" * bool(part.host_only)), flush=True)  # fmt: skip
        for failure in found.failures:
            print(f"  FAILED {failure}", flush=True)
    programs, cpu = sum(d.programs for d in done), sum(d.cpu_seconds for d in done)
    seconds = sum(d.seconds for d in done)
    print(f"{'all':10}{programs:9}{seconds:11.1f}{cpu:8.1f}   for {ctx.device.device_kind}; "
          "nothing was run")  # fmt: skip
    return not any(d.failures for d in done)
