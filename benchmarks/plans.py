"""Plans of all recipes as a table: python -m benchmarks.plans docs/plans.md

Compiles every recipe for its hardware with `jaxs1.plan` (a minute each for GPUs, some for TPUs, on
two quiet cores), checks what each must reach, and writes the table. Exit status 1 where one fails.
`--folder` keeps each plan's JSON; a plan that lies there is not compiled again.
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

from jaxs1.config import UserError, parse, run_command


@dataclass(frozen=True)
class Row:
    """A plan and what it must reach. peak: most GB on a device; minutes: of the whole run."""

    name: str
    recipe: str
    target: str
    arguments: tuple[str, ...] = ()
    fits: bool = True
    peak: float | None = None
    minutes: float | None = None


S1 = ("--rows", "16", "--length", "32768", "--mesh.fsdp", "16", "--mesh.context", "1")
ROWS = (
    Row("32B, the recipe", "s1_32b", "h100:2x8", peak=72, minutes=16),
    Row("32B, rows of 49,152", "s1_32b", "h100:2x8", ("--length", "49152"), peak=64),
    Row("32B, s1's layout", "s1_32b", "h100:2x8", (*S1, "--compute.remat", "full")),
    Row("32B, s1's layout, attention kept", "s1_32b", "h100:2x8", S1, fits=False),
    Row("32B", "s1_32b_v5p", "v5p:2x2x4", ("--mesh.context", "4")),
    Row("32B", "s1_32b_v5p", "v5p:2x4x4"),
    Row("32B", "s1_32b_v6e", "v6e:8x8"),
    Row("72B", "s1_72b", "h100:4x8"),
    Row("7B", "s1_7b", "h100:1x8"),
    Row("7B, adapters", "s1_7b_h200", "h200:1x1"),
    Row("32B, adapters", "s1_32b_lora", "h200:1x1"),
    Row("7B, adapters", "s1_7b_lora", "rtx4090:1x1"),
)

HEADER = """# Plans

Made by `make aot`: the real train step of each recipe, compiled for hardware that was not there.
Memory and exchanged bytes are the compiler's, for the longest row of the run; times are a roofline
over the compiled step and were **not measured**. Lengths of sequences are drawn as in s1K (5,500
tokens on average), 5 epochs of 1,000, unless a row says otherwise. v5p and v6e count chips.

| what | target | fsdp x context, rows, recomputes | GB a device | of | fits | s/step | run | $ |
|---|---|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Options:
    """Compile the plans of all recipes and write them as a table.

    Args:
        output: the Markdown file
        folder: keeps the plans as JSON; null for a temporary folder
        only: target whose rows are compiled; null for all
    """

    output: str
    folder: str | None = None
    only: str | None = None


def main(argv: Sequence[str]) -> int:
    """The command; 1 where a plan is not what it must be."""
    options = parse(Options, argv, command="python -m benchmarks.plans", positionals=("output",))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.folder or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        rows = [row for row in ROWS if options.only in (None, row.target)]
        plans = [(row, read_plan(row, folder)) for row in rows]
    table = HEADER + "".join(line(row, plan) for row, plan in plans) + "\n" + details(plans[0][1])
    Path(options.output).parent.mkdir(parents=True, exist_ok=True)
    Path(options.output).write_text(table)
    wrong = [f"{row.name} on {row.target}: {e}" for row, plan in plans for e in errors(row, plan)]
    print("\n".join(wrong) or f"all {len(plans)} plans are as they must be")
    return 1 if wrong else 0


def read_plan(row: Row, folder: Path) -> dict[str, Any]:
    """The plan's figures; compiled in a process of its own unless they are in the folder."""
    words = "".join(word.replace("--", "_").replace(".", "") for word in row.arguments)
    file = folder / f"{row.recipe}_{row.target.replace(':', '_')}{words}.json"
    if not file.exists():
        print(f"compiling {row.name} for {row.target}", flush=True)
        command = [sys.executable, "-m", "jaxs1.plan", "--config", f"configs/{row.recipe}.yaml"]
        command += ["--target", row.target, "--changes", "0", "--output", str(file)]
        done = subprocess.run([*command, *row.arguments], capture_output=True, text=True)
        if not file.exists():
            reason = done.stderr.strip().split("\n")[-1]
            raise UserError(f"{row.recipe} for {row.target}: {reason}")
    return json.loads(file.read_text())


def line(row: Row, plan: dict[str, Any]) -> str:
    """One line of the table."""
    mesh = f"{plan['mesh']['fsdp']} x {plan['mesh']['context']}"
    rows = f"{plan['rows']} x {plan['row_length']:,}"
    if plan["gradient_accumulation_steps"] > 1:
        rows = f"{plan['gradient_accumulation_steps']} x {rows}"
    if plan["longest_row"] > plan["row_length"]:
        rows += f" (longest {plan['longest_row']:,})"
    kept = {"full": "all", "attention": "not attention", "none": "nothing"}[plan["remat"]]
    cells = [
        row.name,
        f"`{plan['target']}`, {plan['devices']} x {plan['device_kind']}",
        f"{mesh}, {rows}, {kept}",
        f"{plan['peak_bytes'] / 1e9:.1f}",
        f"{plan['available_bytes'] / 1e9:.1f}",
        "yes" if plan["fits"] else "**no**",
    ]
    times = ["", "", ""]
    if plan["fits"]:
        minutes = plan["run_seconds"] / 60
        clock = f"{minutes:.1f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
        times = [f"{plan['step_seconds']:.2f}", clock, f"{plan['dollars']:.2f}"]
    return "| " + " | ".join([*cells, *times]) + " |\n"


def details(plan: dict[str, Any]) -> str:
    """The assumptions, and what the first plan's devices exchange."""
    received = plan["typical"]["collectives"].items()
    parts = ", ".join(f"{kind} {received / 1e9:.1f}" for kind, (_, received) in received)
    return (
        f"The 32B on `{plan['target']}`: a device receives in a step, in GB: {parts}. Assumed "
        f"there: {' '.join(plan['assumptions'].split())}.\n\n"
        "One plan, with the changes that help most: `python -m jaxs1.plan --config "
        "configs/s1_32b.yaml --target h100:2x8`; `--search` looks for the fastest layout that "
        "fits.\n"
    )


def errors(row: Row, plan: dict[str, Any]) -> list[str]:
    """In what a plan differs from what it must be."""
    found = []
    if plan["fits"] != row.fits:
        found.append(f"fits is {plan['fits']}")
    if row.peak is not None and plan["peak_bytes"] > row.peak * 1e9:
        found.append(f"{plan['peak_bytes'] / 1e9:.1f} GB, more than {row.peak}")
    if row.minutes is not None and plan["run_seconds"] > row.minutes * 60:
        found.append(f"{plan['run_seconds'] / 60:.1f} minutes, more than {row.minutes}")
    return found


if __name__ == "__main__":
    run_command(main)
