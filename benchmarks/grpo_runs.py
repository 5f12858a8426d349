"""Reinforcement learning of the demo's model with several seeds: python -m benchmarks.grpo_runs

Needs the folder of a finished demo. Every seed is `jaxs1.grpo` with the recipe `demo_grpo` from the
demo's fine-tuned model, then `jaxs1.evaluate` on its test questions, each resumed if interrupted.
What is found goes to benchmarks/demo/grpo.json, which is drawn as grpo.png and written as grpo.md.
Comparisons are with the fine-tuned model, on the same questions. `--draw_only true` runs nothing.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from jaxs1.config import parse, run_command
from jaxs1.evaluation.metrics import compare, wilson
from jaxs1.storage import read_jsonl

RECORDED = Path(__file__).parent / "demo"
BUDGETS = (24, 48, 72, 96, 128, 192)
NATURAL, WAITS = "max=400 num_waits=0", "max=400 num_waits=2"
#: Point of the evaluation -> its heading.
POINTS = {f"max={b} num_waits=0": str(b) for b in BUDGETS} | {NATURAL: "natural", WAITS: "2 Waits"}

PAGE = """# Reinforcement learning of the demo's model

Made by `python -m benchmarks.grpo_runs`: `configs/demo_grpo.yaml` with {count} seeds, from one
fine-tuned model. Accuracy in % on {questions} test questions, greedy, with the thinking cut at a
number of tokens, ended by the model itself (natural), or continued with two Waits. Below each
accuracy stands the difference from the fine-tuned model on the same questions, in percentage
points, with the number of questions gained and lost; bold where McNemar's exact p is below 0.01.
Roll-outs had budgets of 96, 128 and 192 tokens and no Waits.

{table}

![Accuracy against thinking tokens before and after](grpo.png)
"""


@dataclass(frozen=True)
class Options:
    """Train the demo's model by reinforcement learning with several seeds, and evaluate it.

    Args:
        seeds: Seeds of questions, budgets and samples
        demo: Folder of the finished demo
        draw_only: Only draw what is recorded
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    demo: str = "demo"
    draw_only: bool = False


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    options = parse(Options, argv, command="python -m benchmarks.grpo_runs")
    demo, file = Path(options.demo), RECORDED / "grpo.json"
    if not options.draw_only:
        before = _evaluate(demo, demo / "sft" / "hf", demo / "grpo_runs" / "before")
        runs = {"before": _points(before)}
        for seed in options.seeds:
            folder = demo / "grpo_runs" / f"seed{seed}"
            cpu_seconds = _train(demo, folder, seed)
            answers = _evaluate(demo, folder / "hf", folder / "evaluation")
            runs[f"seed {seed}"] = _points(answers, before) | {"cpu_seconds": cpu_seconds}
        file.write_text(json.dumps(runs, indent=1) + "\n")
    runs = json.loads(file.read_text())
    (RECORDED / "grpo.md").write_text(page(runs))
    draw(runs, RECORDED / "grpo.png")
    print(table(runs))


def _train(demo: Path, folder: Path, seed: int) -> float:
    """CPU time of the training [s]; kept in a file, so that a repeated command knows it."""
    known = folder / "cpu_seconds"
    if not known.exists():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        _run(
            "jaxs1.grpo", "--config", "configs/demo_grpo.yaml", "--model", demo / "sft" / "hf",
            "--data.path", demo / "data" / "train.jsonl", "--held_out.every", 0, "--seed", seed,
            "--output", folder, "--resume", "auto",
        )  # fmt: skip
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        known.write_text(f"{seconds:.0f}\n")
    return float(known.read_text())


#: Point -> question -> whether it is right, and its thinking tokens.
Answers = dict[str, dict[int, tuple[bool, int]]]


def _evaluate(demo: Path, model: Path, folder: Path) -> Answers:
    if not (folder / "results.json").exists():
        _run(
            "jaxs1.evaluate", "--config", "configs/demo_evaluate.yaml", "--model", model,
            "--name", "the demo's model", "--data.path", demo / "data" / "test.jsonl",
            "--output", folder, "--sweep.budget", list(BUDGETS), "--sweep.num_waits", [0, 2],
        )  # fmt: skip
    answers: Answers = {point: {} for point in POINTS}
    for _, row in read_jsonl(folder / "samples.jsonl", appended=True):
        found = bool(row["correct"]), len(row["thinking_ids"])
        answers[row["point"]][row["question_id"]] = found
    return answers


def _run(module: str, *arguments: Any) -> None:
    command = [sys.executable, "-m", module, *map(str, arguments)]
    subprocess.run(command, check=True, env=dict(os.environ))


def _points(answers: Answers, before: Answers | None = None) -> dict[str, Any]:
    """Accuracy and mean thinking of every point, and the paired comparison with before."""
    points = {}
    for point, rows in answers.items():
        right = [correct for correct, _ in rows.values()]
        low, high = wilson(sum(right), len(right))
        points[point] = {
            "questions": len(right),
            "accuracy": fmean(right),
            "low": low,
            "high": high,
            "thinking_tokens": fmean(tokens for _, tokens in rows.values()),
        }
        if before is not None:
            pairs = [(rows[q][0], before[point][q][0]) for q in rows]
            found = compare([[a] for a, _ in pairs], [[b] for _, b in pairs])
            points[point]["versus_before"] = asdict(found)
    return points


def page(runs: dict[str, Any]) -> str:
    """The content of grpo.md."""
    questions = runs["before"][NATURAL]["questions"]
    return PAGE.format(count=len(runs) - 1, questions=questions, table=table(runs))


def table(runs: dict[str, Any]) -> str:
    """Two rows per run."""
    header = ["", *POINTS.values(), "CPU s"]
    rows = [header, ["---:"] * len(header)]
    for name, points in runs.items():
        accuracies = [f"{100 * points[point]['accuracy']:.1f}" for point in POINTS]
        rows.append(
            [name, *accuracies, f"{points['cpu_seconds']:.0f}" if "cpu_seconds" in points else ""]
        )
        if name != "before":
            rows.append(["", *(_difference(points[p]["versus_before"]) for p in POINTS), ""])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _difference(found: dict[str, Any]) -> str:
    text = f"{100 * found['difference']:+.1f} ({found['gained']}, {found['lost']})"
    return f"**{text}**" if found["p_value"] < 0.01 else text


def draw(runs: dict[str, Any], path: Path) -> None:
    """Accuracy against mean thinking tokens: before, and after with each seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.6), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    cut = [point for point in POINTS if point != WAITS]
    styles = {"before": ("#7f7f7f", "o", "fine-tuned")}
    for number, name in enumerate(runs):
        label = "after reinforcement learning" if number == 1 else None
        color, marker, label = styles.get(name, ("#1f77b4", "s", label))
        x, y, low, high = (
            [scale * runs[name][point][key] for point in cut]
            for scale, key in (
                (1, "thinking_tokens"),
                (100, "accuracy"),
                (100, "low"),
                (100, "high"),
            )
        )
        axes.plot(x, y, color, marker=marker, markersize=5, label=label)
        axes.fill_between(x, low, high, color=color, alpha=0.12, linewidth=0)
    axes.set_xlabel("mean thinking [tokens]", fontsize=13)
    axes.set_ylabel("accuracy [%]", fontsize=13)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=11, loc="upper left")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    run_command(main)
