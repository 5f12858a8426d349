"""The printed page of a plan, and its figures as JSON."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

from jaxs1.model.architecture import Architecture
from jaxs1.planning.compile import TrainProgram
from jaxs1.planning.decode import DecodeProgram
from jaxs1.planning.estimate import SPREAD, assumptions_for
from jaxs1.planning.grpo import GrpoPrograms, PlannedGrpo
from jaxs1.planning.planned_run import PlannedRun
from jaxs1.planning.search import describe
from jaxs1.planning.targets import Target
from jaxs1.planning.workload import S1K_SPREAD


@dataclass(frozen=True)
class Outcome:
    """A compiled run.

    Args:
        run: the planned run
        typical: program of the step of average length
        longest: program of the step with the longest rows, if these are longer than the average
        price: price of a device-hour [$]
    """

    run: PlannedRun
    typical: TrainProgram
    longest: TrainProgram | None
    price: float

    @property
    def peak(self) -> float:
        """Bytes on a device in the largest compiled step."""
        return max(c.peak for c in (self.typical, self.longest) if c is not None)

    @property
    def fits(self) -> bool:
        """Whether all compiled steps fit."""
        compiled = (self.typical, self.longest)
        refused = any(c.refusal for c in compiled if c is not None)
        return not refused and self.peak <= self.run.target.available

    @property
    def step_seconds(self) -> float:
        """Estimated seconds of an average step."""
        return self.run.time(self.typical).total

    @property
    def run_seconds(self) -> float:
        """Estimated seconds of all steps."""
        return self.step_seconds * self.run.workload.steps

    @property
    def device_hours(self) -> float:
        """Device-hours of the run."""
        return self.run_seconds * self.run.target.devices / 3600

    @property
    def utilization(self) -> float:
        """Share of the peak FLOP/s that the model itself needs (MFU)."""
        run, workload = self.run, self.run.workload
        useful = run.model.architecture.train_flops(workload.tokens, workload.pairs)  # type: ignore[arg-type]
        return useful / (self.step_seconds * run.target.devices * run.target.accelerator.flops)


def print_run(run: PlannedRun, origin: str) -> None:
    """Print what is planned, including every choice made automatically."""
    a, c, w = run.model.architecture, run.model.compute, run.workload
    mesh = ", ".join(f"{k} {v}" for k, v in run.model.rules.mesh.shape.items())
    kept = {"none": "nothing", "attention": "all but attention", "full": "everything"}[c.remat]
    print(f"model     {a.size} ({origin})")
    print(f"target    {run.target.devices} x {run.target.accelerator.device_kind}: {mesh}")
    print(f"compute   attention {c.attention}, {c.dtype}; the backward pass recomputes {kept}")
    packed = (
        f"{w.gradient_accumulation_steps} x {w.rows} rows"
        if w.gradient_accumulation_steps > 1
        else f"{w.rows} rows"
    )
    print(
        f"steps     {w.steps:,} of {run.config.batch_size} sequences in {packed} of "
        f"{min(w.lengths):,} to {w.longest:,} tokens, {w.mean:,.0f} on average, {w.fill:.0%} filled"
    )


def print_outcome(outcome: Outcome) -> None:
    """Print memory, communication, time and cost of the recipe."""
    run, first = outcome.run, outcome.typical
    columns = [(run.typical, first)]
    if outcome.longest is not None:
        columns.append((run.workload.longest, outcome.longest))
    lengths = "".join(f"{length:>10,}" for length, _ in columns)
    print(f"memory    GB on each device, rows of{lengths} tokens")
    for name in ("parameters", "optimizer", "batch", "temporaries", "peak"):
        figures = "".join(f"{getattr(c, name) / 1e9:10.1f}" for _, c in columns)
        print(f"          {name:24}{figures}")
        if name == "temporaries":
            for part in ("gradients", "activations"):
                estimated = (getattr(run.memory(length), part) for length, _ in columns)
                figures = "".join(f"{value / 1e9:10.1f}" for value in estimated)
                print(f"            of which {part:13}{figures}")
    print(f"          {verdict(outcome)}")
    if first.collectives:
        parts = (f"{k} {c.received / 1e9:.1f} ({c.times:,}x)" for k, c in first.collectives.items())
        print(f"exchange  GB that a device receives in a step: {', '.join(parts)}")
    print(
        f"products  {first.products / 1e12:,.0f} TFLOP a device and step, recomputed ones included"
    )
    if _unknown(run):
        print("time      no estimate for a CPU")
        return
    seconds = run.time(first)
    print(
        f"time      {seconds.total:.2f} s a step ({spread(run)}): products "
        f"{seconds.products:.2f}, attention {seconds.attention:.2f}, elementwise "
        f"{seconds.elementwise:.2f}, exposed communication {seconds.exposed:.2f} of "
        f"{seconds.communication:.2f}"
    )
    print(
        f"run       {_clock(outcome.run_seconds)} for {run.workload.steps:,} steps, MFU "
        f"{outcome.utilization:.0%}; {outcome.device_hours:,.1f} device-hours, "
        f"${outcome.device_hours * outcome.price:,.2f} at ${outcome.price:.2f} an hour (--price)"
    )
    print("assumes   " + assumptions(run).replace("\n", "\n          "))


def verdict(outcome: Outcome) -> str:
    """Whether it fits, and by what margin."""
    return _verdict(outcome.run.target, outcome.peak, outcome.fits)


def _verdict(target: Target, peak: float, fits: bool) -> str:
    if math.isinf(target.available):
        return "the memory of a CPU is not checked"
    of = f"of {target.available / 1e9:.1f}"
    if target.accelerator.reserved_memory:
        memory, reserved = target.accelerator.memory, target.accelerator.reserved_memory
        of += f" ({memory / 1e9:.1f} less {reserved / 1e9:.1f} for the driver and libraries)"
    share = peak / target.available - 1
    return (
        f"{of}: fits, {-share:.0%} to spare"
        if fits
        else f"{of}: DOES NOT FIT, {share:.0%} too much"
    )


def print_grpo(run: PlannedGrpo, origin: str) -> None:
    """Print what is planned of a run of reinforcement learning."""
    c, target, limits = run.config, run.target, run.config.limits
    mesh = ", ".join(f"{k} {v}" for k, v in run.model.rules.mesh.shape.items())
    print(f"model     {run.model.architecture.size} ({origin})")
    print(f"target    {target.devices} x {target.accelerator.device_kind}: {mesh}")
    print(
        f"roll-out  {target.devices // c.tensor} copies of the model on {c.tensor} each; "
        f"{limits.max_num_seqs} sequences of {limits.max_seq_len:,} tokens at a time in a copy, "
        f"{limits.decode_steps} steps between two synchronisations with the host"
    )
    print(
        f"steps     {c.steps:,} of {c.prompts} questions x {c.group} samples; if all are as long "
        f"as possible, in {run.micro_batches} x {c.rows} rows of {run.row:,} tokens"
    )


def print_grpo_memory(run: PlannedGrpo, programs: GrpoPrograms) -> None:
    """Print the memory of the roll-out and of the train step, apart."""
    step, scoring = programs.step, programs.scoring
    working = {
        "casting weights": programs.converting,
        "prompts": programs.prefilling,
        "decode steps": programs.decoding,
    }
    print("memory    GB on each device       roll-out      step")
    for name, in_rollout, in_step in (
        ("parameters", step.parameters, step.parameters),
        ("optimizer", step.optimizer, step.optimizer),
        ("reference", programs.reference, programs.reference),
        ("weights of decoding", programs.weights, 0.0),
        ("keys and values", programs.cache, 0.0),
        ("batch", 0.0, step.batch),
        ("temporaries", max(programs.prefilling, programs.decoding), step.temporaries),
        ("peak", programs.rollout_peak, programs.step_peak),
    ):
        print(f"          {name:24}{in_rollout / 1e9:8.1f}{in_step / 1e9:10.1f}")
    parts = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in working.items())
    print(f"          temporaries of {parts}" + (f", scores {scoring / 1e9:.1f}" * bool(scoring)))
    longest = programs.cache_tokens // (run.config.limits.max_seq_len or 1)
    print(
        f"cache     {programs.cache_tokens:,} tokens in a copy: {longest} of "
        f"{run.config.limits.max_num_seqs} sequences at their full length"
    )
    print(f"fits      {_verdict(run.target, programs.peak, programs.fits(run.target.available))}")


def grpo_to_json(run: PlannedGrpo, programs: GrpoPrograms) -> dict[str, Any]:
    """All figures of a plan of reinforcement learning."""
    target, limits = run.target, run.config.limits
    return {
        "target": str(target),
        "devices": target.devices,
        "device_kind": target.accelerator.device_kind,
        "mesh": dict(run.model.rules.mesh.shape),
        "tensor": run.config.tensor,
        "rows": run.config.rows,
        "row_length": run.row,
        "micro_batches": run.micro_batches,
        "sequences": limits.max_num_seqs,
        "context": limits.max_seq_len,
        "fits": programs.fits(target.available),
        "available_bytes": target.available if math.isfinite(target.available) else None,
        "rollout_peak_bytes": programs.rollout_peak,
        "step_peak_bytes": programs.step_peak,
        "peak_bytes": programs.peak,
        **dataclasses.asdict(programs),
    }


def print_change(outcome: Outcome, first: Outcome) -> None:
    """Print an alternative, compared with the recipe."""
    run = outcome.run
    fits = "fits" if outcome.fits else "DOES NOT FIT"
    more = (outcome.peak - first.peak) / 1e9
    print(f"change    {describe(run.config)}")
    print(
        f"          {fits}, {outcome.peak / 1e9:.1f} GB ({more:+.1f}) with rows of "
        f"{run.workload.longest:,}" + _time_of_change(outcome, first)
    )


def _time_of_change(outcome: Outcome, first: Outcome) -> str:
    if _unknown(outcome.run):
        return ""
    change = outcome.run_seconds / first.run_seconds - 1
    return f"; {_clock(outcome.run_seconds)} ({change:+.0%})"


def assumptions(run: PlannedRun) -> str:
    """Assumptions of the time estimate."""
    a, w = run.target.accelerator, run.workload
    share = assumptions_for(a)
    drawn = (
        f"{w.tokens:,.0f} tokens a step; lengths log-normal with spread {S1K_SPREAD} as in s1K "
        "(--mean_length, --examples)"
    )
    if len(w.lengths) == 1:
        drawn = f"{w.tokens:,.0f} tokens a step in rows of a given length"
    return (
        f"products at {share.products:.0%} and attention at {share.attention:.0%} of "
        f"{a.flops / 1e12:,.0f} TFLOP/s, memory at {share.bandwidth:.0%} of "
        f"{a.bandwidth / 1e12:.2f} TB/s,\n"
        f"collectives at {a.interconnect_bandwidth / 1e9:,.0f} GB/s a device, "
        f"{share.overlap:.0%} of them hidden;\n"
        f"{drawn};\nloading, compiling and checkpoints are not counted"
    )


def spread(run: PlannedRun) -> str:
    """How far published runs are from their estimates on this platform."""
    low, high = SPREAD[run.target.accelerator.platform]
    return f"published runs: {100 * low:+.0f} % to {100 * high:+.0f} %"


def print_decoding(
    program: DecodeProgram, a: Architecture, origin: str, target: Target, work: str
) -> None:
    """Print memory, copies, launches and the lower bound of a decode loop.

    Args:
        program: the compiled loop
        a: architecture of the model
        origin: where the shapes come from
        target: accelerators that it was compiled for
        work: settings of the loop, in one line
    """
    in_place = min(1.0, program.in_place / program.cache)
    fits = "yes" if program.peak <= target.available else "NO"
    print(f"model       {a.size}, {origin}")
    print(f"target      {target}: {target.devices} x {target.accelerator.device_kind}")
    print(f"loop        {work} between two synchronisations with the host")
    print(f"weights     {program.weights / 1e9:8.2f} GB on each device")
    print(f"KV cache    {program.cache / 1e9:8.2f} GB, {in_place:.0%} of it updated in place")
    print(f"temporaries {program.temporaries / 2**20:8.2f} MiB")
    print(f"copies      {_copies(program.copies)} in every step")
    print(f"            {_copies(program.copies_once)} in every call of the loop")
    if program.launches:
        graph = "is one CUDA graph" if program.is_one_graph else "is NOT one CUDA graph"
        counts = ", ".join(f"{n} {kind}" for kind, n in program.launches.items())
        print(f"launches    the loop {graph}; the host launches {counts} for a call")
    for kind, (times, received) in program.collectives.items():
        print(f"{kind:11} {times:8} x, {received / 1e6:.2f} MB received by a device in a step")
    print(f"peak        {program.decoding_peak / 1e9:8.2f} GB while decoding")
    print(
        f"            {program.loading_peak / 1e9:8.2f} GB loading peak: weights, a layer, a piece"
    )
    print(f"fits        {fits}: {program.peak / 1e9:.1f} of {target.available / 1e9:.1f} GB")
    print(
        f"floor       {program.floor * 1e3:8.2f} ms a step: time to read the weights and the full "
        "contexts once at the data sheet's bandwidth"
    )


def _copies(copies: list[str]) -> str:
    kinds = ", ".join(f"{n} x {kind}" for kind, n in Counter(copies).items())
    return f"{len(copies)} of at least 1 MiB" + (f" ({kinds})" if kinds else "")


def to_json(outcomes: list[Outcome]) -> dict[str, Any]:
    """All figures: the recipe first, then the alternatives."""
    first = outcomes[0]
    return {
        "target": str(first.run.target),
        "devices": first.run.target.devices,
        "device_kind": first.run.target.accelerator.device_kind,
        "assumptions": assumptions(first.run),
        "spread": None if _unknown(first.run) else SPREAD[first.run.target.accelerator.platform],
        **_figures(first),
        "changes": [_figures(outcome) for outcome in outcomes[1:]],
    }


def _figures(outcome: Outcome) -> dict[str, Any]:
    run, workload = outcome.run, outcome.run.workload
    return {
        "arguments": describe(run.config),
        "mesh": dict(run.model.rules.mesh.shape),
        "attention": run.model.compute.attention,
        "remat": run.model.compute.remat,
        "rows": workload.rows,
        "gradient_accumulation_steps": workload.gradient_accumulation_steps,
        "row_length": run.typical,
        "longest_row": workload.longest,
        "fits": outcome.fits,
        "available_bytes": run.target.available if math.isfinite(run.target.available) else None,
        "peak_bytes": outcome.peak,
        "typical": dataclasses.asdict(outcome.typical),
        "longest": outcome.longest and dataclasses.asdict(outcome.longest),
        "steps": workload.steps,
        "seconds": None if _unknown(run) else dataclasses.asdict(run.time(outcome.typical)),
        "step_seconds": None if _unknown(run) else outcome.step_seconds,
        "run_seconds": None if _unknown(run) else outcome.run_seconds,
        "utilization": None if _unknown(run) else outcome.utilization,
        "device_hours": None if _unknown(run) else outcome.device_hours,
        "dollars": None if _unknown(run) else outcome.device_hours * outcome.price,
    }


def _unknown(run: PlannedRun) -> bool:
    """Whether the accelerator's speed is unknown, so that no time can be estimated."""
    return math.isnan(run.target.accelerator.flops)


def _clock(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
