"""Plan every recipe for its hardware: python -m benchmarks.plans docs/plans.md

Compiles the train step of every recipe, and some decode loops, with `jaxs1.plan` (about a minute
each for GPUs, up to 20 for TPUs, on two idle cores), checks the limits that each must meet, and
writes tables, followed by the calibration of the time estimate. Exit status 1 if a limit is
exceeded. `--folder` keeps the plans as JSON; a plan that is already there is not compiled again.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import calibration
from jaxs1.config import UserError, parse, run_command
from jaxs1.planning.targets import parse_target


@dataclass(frozen=True)
class RecipePlan:
    """A recipe on its hardware and the limits that its plan must meet.

    Args:
        name: first column of the table
        recipe: name of the recipe
        target: accelerators
        arguments: further arguments of `jaxs1.plan`
        fits: whether it must fit
        peak: most memory on a device [GB]
        minutes: longest estimated run [min]
    """

    name: str
    recipe: str
    target: str
    arguments: tuple[str, ...] = ()
    fits: bool = True
    peak: float | None = None
    minutes: float | None = None


S1 = ("--rows", "16", "--length", "32768", "--mesh.fsdp", "16", "--mesh.context", "1")
PLANS = (
    RecipePlan("32B, the recipe", "s1_32b", "h100:2x8", peak=72, minutes=16),
    RecipePlan("32B, rows of 49,152", "s1_32b", "h100:2x8", ("--length", "49152"), peak=64),
    RecipePlan("32B, s1's layout", "s1_32b", "h100:2x8", (*S1, "--compute.remat", "full")),
    RecipePlan("32B, s1's layout, attention kept", "s1_32b", "h100:2x8", S1, fits=False),
    RecipePlan("32B", "s1_32b_v5p", "v5p:2x2x4", ("--mesh.context", "4")),
    RecipePlan("32B", "s1_32b_v5p", "v5p:2x4x4"),
    RecipePlan("32B", "s1_32b_v6e", "v6e:8x8"),
    RecipePlan("72B", "s1_72b", "h100:4x8"),
    RecipePlan("30B-A3B", "s1_30b_a3b", "h100:1x8"),
    RecipePlan("Llama 70B, adapters", "s1_llama_70b", "h100:2x8"),
    RecipePlan("Llama 70B", "s1_llama_70b", "h100:2x8", ("--lora.rank", "0"), fits=False),
    RecipePlan("7B", "s1_7b", "h100:1x8"),
    RecipePlan("7B, adapters", "s1_7b_h200", "h200:1x1"),
    RecipePlan("32B, adapters", "s1_32b_lora", "h200:1x1"),
    RecipePlan("7B, adapters", "s1_7b_lora", "rtx4090:1x1"),
)

GRPO = (RecipePlan("7B", "grpo_7b", "h100:1x8"), RecipePlan("32B", "grpo_32b", "h100:2x8"))


@dataclass(frozen=True)
class DecodingPlan:
    """A model that is decoded on some hardware; it must fit.

    Args:
        model: name of its shapes
        target: accelerators
        tensor: devices that share a copy of the model
        sequences: sequences decoded at the same time by a copy
    """

    model: str
    target: str
    tensor: int
    sequences: int


CONTEXT = 4096
DECODING = (
    DecodingPlan("qwen3-30b-a3b", "h100:1x1", 1, 8),
    DecodingPlan("llama3.1-70b", "h100:2x8", 8, 16),
)

HEADER = """# Plans

Made by `make aot`: the real train step of each recipe, compiled ahead of time for the target
without the hardware. Memory and communication are the compiler's figures, for the longest row of
the run. Times are roofline estimates over the compiled step, with the assumptions of the section
Calibration; they were **not measured**. Unless stated otherwise, sequences have random lengths
distributed as in s1K (5,500 tokens on average), in 5 epochs of 1,000. v5p and v6e count chips.
Experts are assumed to be equally loaded and to be multiplied as fast as other matrices, which no
published run confirms.

| recipe | target | fsdp x context, rows, recomputes | GB a device | of | fits | s/step | run | $ |
|---|---|---|---|---|---|---|---|---|
"""
DECODING_HEADER = f"""
Decoding with XLA: sequences of {CONTEXT:,} tokens, 32 steps a call. Memory is the compiler's, or
that of loading if it is larger. The time of a step is a lower bound: reading weights and full
contexts once at the data sheet's bandwidth, but only experts that the sequences can choose.

| model | target, devices of a copy | sequences | weights | cache | GB a device | of | fits | ms |
|---|---|---|---|---|---|---|---|---|
"""
GRPO_HEADER = """
## Reinforcement learning

Roll-out and train step of each recipe of `jaxs1.grpo`, compiled as above; GB on a device. Both find
parameters and moments there (held). The roll-out adds decoding's weights, keys and values, and the
temporaries of prefill and decode steps; the step adds gradients and activations.

| recipe | target | fsdp x context, rows | sequences in a copy | held | decoding's weights | keys and values | roll-out | step | of | fits |
|---|---|---|---|---|---|---|---|---|---|---|
"""  # noqa: E501
NOTE = "\n\\* rescaled from a plan that assumed products at 63 % of the peak.\n"


@dataclass(frozen=True)
class Options:
    """Plan every recipe for its hardware and write a table.

    Args:
        output: Markdown file to write
        folder: Folder to keep the plans in as JSON; null uses a temporary folder
        only: Target whose plans are made; null makes all
    """

    output: str
    folder: str | None = None
    only: str | None = None


def main(argv: Sequence[str]) -> int:
    """The command; returns 1 if a plan exceeds its limits."""
    options = parse(Options, argv, command="python -m benchmarks.plans", positionals=("output",))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.folder or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        chosen = [plan for plan in PLANS if options.only in (None, plan.target)]
        plans = [(plan, read_figures(plan, folder, "--changes", "0")) for plan in chosen]
        rollouts = [plan for plan in GRPO if options.only in (None, plan.target)]
        grpo = [(plan, read_figures(plan, folder)) for plan in rollouts]
        targets = [plan for plan in DECODING if options.only in (None, plan.target)]
        decoding = [(plan, read_decoding(plan, folder)) for plan in targets]
    Path(options.output).parent.mkdir(parents=True, exist_ok=True)
    Path(options.output).write_text(page(plans, grpo, decoding))
    both = [*plans, *grpo]
    wrong = [f"{plan.name} on {plan.target}: {e}" for plan, x in both for e in errors(plan, x)]
    wrong += [f"{p.model} on {p.target} does not fit" for p, x in decoding if not _fits(p, x)]
    print("\n".join(wrong) or f"all {len(both) + len(decoding)} plans meet their limits")
    return 1 if wrong else 0


def read_figures(plan: RecipePlan, folder: Path, *more: str) -> dict[str, Any]:
    """Figures of a plan, compiled in a separate process unless they are in the folder.

    Args:
        plan: recipe and target
        folder: folder of the figures
        more: further arguments, which are not part of the file's name
    """
    words = "".join(word.replace("--", "_").replace(".", "") for word in plan.arguments)
    file = folder / f"{plan.recipe}_{plan.target.replace(':', '_')}{words}.json"
    arguments = ["--config", plan.recipe, "--target", plan.target, *plan.arguments, *more]
    return _figures(f"{plan.name} for {plan.target}", file, arguments)


def read_decoding(plan: DecodingPlan, folder: Path) -> dict[str, Any]:
    """Figures of a decode loop, as `read_figures`."""
    file = folder / f"decode_{plan.model}_{plan.target.replace(':', '_')}.json"
    arguments = ["--decode", "--architecture", plan.model, "--target", plan.target]
    arguments += ["--tensor", str(plan.tensor), "--sequences", str(plan.sequences)]
    arguments += ["--context", str(CONTEXT)]
    return _figures(f"decoding {plan.model} for {plan.target}", file, arguments)


def _figures(name: str, file: Path, arguments: Sequence[str]) -> dict[str, Any]:
    if not file.exists():
        print(f"compiling {name}", flush=True)
        command = [sys.executable, "-m", "jaxs1.plan", *arguments, "--output", str(file)]
        done = subprocess.run(command, capture_output=True, text=True)
        if not file.exists():
            raise UserError(f"{name}: {done.stderr.strip().split(chr(10))[-1]}")
    return json.loads(file.read_text())


def decoding_line(plan: DecodingPlan, figures: dict[str, Any]) -> str:
    """One line of the table of decoding."""
    cells = [
        plan.model,
        f"`{plan.target}`, {plan.tensor}",
        str(plan.sequences),
        f"{figures['weights'] / 1e9:.1f}",
        f"{figures['cache'] / 1e9:.1f}",
        f"{_peak(figures) / 1e9:.1f}",
        f"{parse_target(plan.target).available / 1e9:.1f}",
        "yes" if _fits(plan, figures) else "**no**",
        f"{figures['floor'] * 1e3:.1f}",
    ]
    return "| " + " | ".join(cells) + " |\n"


def _peak(figures: dict[str, Any]) -> float:
    decoding = figures["weights"] + figures["cache"] + figures["temporaries"]
    return max(decoding, figures["loading_peak"])


def _fits(plan: DecodingPlan, figures: dict[str, Any]) -> bool:
    return _peak(figures) <= parse_target(plan.target).available


def page(
    plans: Sequence[tuple[RecipePlan, dict[str, Any]]],
    grpo: Sequence[tuple[RecipePlan, dict[str, Any]]],
    decoding: Sequence[tuple[DecodingPlan, dict[str, Any]]],
) -> str:
    """The document, of plans of training, of decoding and of reinforcement learning."""
    table = HEADER + "".join(line(plan, figures) for plan, figures in plans)
    if any(figures.get("rescaled") for _, figures in plans):
        table += NOTE
    if decoding:
        table += DECODING_HEADER + "".join(decoding_line(*plan) for plan in decoding)
    rollouts = GRPO_HEADER + "".join(grpo_line(plan, figures) for plan, figures in grpo)
    return f"{table}\n{details(plans[0][1])}{rollouts}\n{calibration.section()}"


def grpo_line(plan: RecipePlan, figures: dict[str, Any]) -> str:
    """One line of the table of reinforcement learning."""
    names = ("held", "weights", "cache", "rollout_peak_bytes", "step_peak_bytes")
    mesh, rows = figures["mesh"], f"{figures['rows']} x {figures['row_length']:,}"
    cells = [
        plan.name,
        f"`{figures['target']}`, {figures['devices']} x {figures['device_kind']}",
        f"{mesh['fsdp']} x {mesh['context']}, {rows}",
        f"{figures['sequences']} of {figures['context']:,} tokens on {figures['tensor']}",
        *[f"{figures[name] / 1e9:.1f}" for name in (*names, "available_bytes")],
        "yes" if figures["fits"] else "**no**",
    ]
    return "| " + " | ".join(cells) + " |\n"


def line(plan: RecipePlan, figures: dict[str, Any]) -> str:
    """One line of the table."""
    mesh = f"{figures['mesh']['fsdp']} x {figures['mesh']['context']}"
    if figures["mesh"].get("expert", 1) > 1:
        mesh += f" x {figures['mesh']['expert']} (expert)"
    rows = f"{figures['rows']} x {figures['row_length']:,}"
    if figures["gradient_accumulation_steps"] > 1:
        rows = f"{figures['gradient_accumulation_steps']} x {rows}"
    if figures["longest_row"] > figures["row_length"]:
        rows += f" (longest {figures['longest_row']:,})"
    kept = {"full": "all", "attention": "not attention", "none": "nothing"}[figures["remat"]]
    cells = [
        plan.name,
        f"`{figures['target']}`, {figures['devices']} x {figures['device_kind']}",
        f"{mesh}, {rows}, {kept}",
        f"{figures['peak_bytes'] / 1e9:.1f}",
        f"{figures['available_bytes'] / 1e9:.1f}",
        "yes" if figures["fits"] else "**no**",
    ]
    return "| " + " | ".join([*cells, *_times(figures)]) + " |\n"


def _times(figures: dict[str, Any]) -> list[str]:
    """Seconds of a step, duration and price of the run; empty if it does not fit."""
    if not figures["fits"]:
        return ["", "", ""]
    minutes = figures["run_seconds"] / 60
    clock = f"{minutes:.1f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
    star = "\\*" if figures.get("rescaled") else ""
    return [f"{figures['step_seconds']:.2f}{star}", clock, f"{figures['dollars']:.2f}"]


def details(figures: dict[str, Any]) -> str:
    """Communication, parts of the time and assumptions of one plan."""
    received = figures["typical"]["collectives"].items()
    parts = ", ".join(f"{kind} {received / 1e9:.1f}" for kind, (_, received) in received)
    s = figures["seconds"]
    return (
        f"The 32B on `{figures['target']}`: a device receives, in GB a step: {parts}. A step of "
        f"{figures['step_seconds']:.2f} s consists of products {s['products']:.2f}, attention "
        f"{s['attention']:.2f}, elementwise operations {s['elementwise']:.2f} and exposed "
        f"communication {s['exposed']:.2f} (of {s['communication']:.2f}). Assumptions: "
        f"{' '.join(figures['assumptions'].split())}.\n\n"
        "To plan one recipe and see the changes that help most: `python -m jaxs1.plan --config "
        "s1_32b --target h100:2x8`; `--search` looks for the fastest layout that fits.\n"
    )


def errors(plan: RecipePlan, figures: dict[str, Any]) -> list[str]:
    """Limits that a plan exceeds."""
    found = []
    if figures["fits"] != plan.fits:
        found.append(f"fits is {figures['fits']}")
    if plan.peak is not None and figures["peak_bytes"] > plan.peak * 1e9:
        found.append(f"{figures['peak_bytes'] / 1e9:.1f} GB, more than {plan.peak}")
    if plan.minutes is not None and figures["run_seconds"] > plan.minutes * 60:
        found.append(f"{figures['run_seconds'] / 60:.1f} minutes, more than {plan.minutes}")
    return found


if __name__ == "__main__":
    run_command(main)
