"""Reinforcement learning of the demo's model with several seeds: python -m benchmarks.grpo_runs

Needs the folder of a finished demo. Every seed is `jaxs1.grpo` with the recipe `demo_grpo` from the
demo's fine-tuned model, then `jaxs1.evaluate` on its test questions, each resumed if interrupted;
the base model and the fine-tuned one answer them, too. What is found goes to
benchmarks/demo/grpo.json, which is drawn as grpo.png and written as grpo.md. Comparisons are with
the fine-tuned model, on the same questions. `--draw_only true` runs nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.demo_runs import children_seconds
from jaxs1.config import parse, run_command
from jaxs1.evaluation.metrics import compare, wilson
from jaxs1.evaluation.plots import Curve, draw_stages
from jaxs1.rl.config import GrpoConfig
from jaxs1.storage import read_jsonl

RECIPE = "configs/demo_grpo.yaml"
RECORDED = Path(__file__).parent / "demo"
BUDGETS = (24, 48, 72, 96, 128, 192)
NATURAL, WAITS = "max=400 num_waits=0", "max=400 num_waits=2"
#: Point of the evaluation -> its heading.
POINTS = {f"max={b} num_waits=0": str(b) for b in BUDGETS} | {NATURAL: "natural", WAITS: "2 Waits"}

#: Run of another stage -> its name in the picture; the others are the seeds.
STAGES = {"base": "base model", "before": "fine-tuned"}

PAGE = """# Reinforcement learning of the demo's model

Made by `python -m benchmarks.grpo_runs`: `configs/demo_grpo.yaml` with {count} seeds, from one
fine-tuned model. Accuracy in % on {questions} test questions, greedy, with the thinking cut at a
number of tokens, ended by the model itself (natural), or continued with two Waits. Below each
accuracy stands the difference from the fine-tuned model on the same questions, in percentage
points, with the number of questions gained and lost; bold where McNemar's exact p is below 0.01.
Roll-outs had budgets of {budgets} tokens and no Waits.

{table}

![Accuracy against thinking tokens, from the base model to reinforcement learning](grpo.png)
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
        base = _evaluate(demo, demo / "base" / "hf", demo / "grpo_runs" / "base", waits=[0])
        runs = {"base": _points(base), "before": _points(before)}
        for seed in options.seeds:
            folder = demo / "grpo_runs" / f"seed{seed}"
            cpu_seconds = _train(demo, folder, seed)
            answers = _evaluate(demo, folder / "hf", folder / "evaluation")
            runs[f"seed {seed}"] = _points(answers, before) | {"cpu_seconds": cpu_seconds}
        file.write_text(json.dumps(runs, indent=1) + "\n")
    runs = json.loads(file.read_text())
    (RECORDED / "grpo.md").write_text(page(runs))
    draw_stages(stages(runs), RECORDED / "grpo.png")
    print(table(runs))


def _train(demo: Path, folder: Path, seed: int) -> float:
    """CPU time of the training [s]; kept in a file, so that a repeated command knows it."""
    known = folder / "cpu_seconds"
    if not known.exists():
        before = children_seconds()
        _run(
            "jaxs1.grpo", "--config", RECIPE, "--model", demo / "sft" / "hf",
            "--data.path", demo / "data" / "train.jsonl", "--held_out.every", 0, "--seed", seed,
            "--output", folder, "--resume", "auto",
        )  # fmt: skip
        known.write_text(f"{children_seconds() - before:.0f}\n")
    return float(known.read_text())


#: Point -> question -> whether it is right, and its thinking tokens.
Answers = dict[str, dict[int, tuple[bool, int]]]


def _evaluate(demo: Path, model: Path, folder: Path, waits: Sequence[int] = (0, 2)) -> Answers:
    if not (folder / "results.json").exists():
        _run(
            "jaxs1.evaluate", "--config", "configs/demo_evaluate.yaml", "--model", model,
            "--name", "the demo's model", "--data.path", demo / "data" / "test.jsonl",
            "--output", folder, "--sweep.budget", list(BUDGETS), "--sweep.num_waits", list(waits),
        )  # fmt: skip
    answers: Answers = {}
    for _, row in read_jsonl(folder / "samples.jsonl", appended=True):
        found = bool(row["correct"]), len(row["thinking_ids"])
        answers.setdefault(row["point"], {})[row["question_id"]] = found
    return answers


def _run(module: str, *arguments: Any) -> None:
    command = [sys.executable, "-m", module, *map(str, arguments)]
    subprocess.run(command, check=True)


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
    recipe = parse(GrpoConfig, ["--config", RECIPE], command="python -m jaxs1.grpo")
    return PAGE.format(
        count=len(runs.keys() - STAGES),
        questions=runs["before"][NATURAL]["questions"],
        budgets=", ".join(map(str, recipe.budgets.values)),
        table=table(runs),
    )


def table(runs: dict[str, Any]) -> str:
    """A row for every model, and for every seed another one with differences."""
    header = ["", *POINTS.values(), "CPU s"]
    rows = [header, ["---:"] * len(header)]
    for name, points in runs.items():
        cells = [f"{100 * points[p]['accuracy']:.1f}" if p in points else "" for p in POINTS]
        seconds = f"{points['cpu_seconds']:.0f}" if "cpu_seconds" in points else ""
        rows.append([STAGES.get(name, name), *cells, seconds])
        if name not in STAGES:
            rows.append(["", *(_difference(points[p]["versus_before"]) for p in POINTS), ""])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _difference(found: dict[str, Any]) -> str:
    text = f"{100 * found['difference']:+.1f} ({found['gained']}, {found['lost']})"
    return f"**{text}**" if found["p_value"] < 0.01 else text


def stages(runs: dict[str, Any]) -> dict[str, list[Curve]]:
    """The curves of the picture; those of all seeds are one stage."""
    found: dict[str, list[Curve]] = {}
    for name, points in runs.items():
        stage = STAGES.get(name, "after GRPO")
        found.setdefault(stage, []).append(_curve(points))
    return found


def _curve(points: dict[str, Any]) -> Curve:
    def of(names: Sequence[str]) -> list[tuple[float, float, float, float]]:
        rows = [points[name] for name in names if name in points]
        return [(r["thinking_tokens"], r["accuracy"], r["low"], r["high"]) for r in rows]

    budgets = [point for point in POINTS if point != WAITS]
    return Curve(of(budgets), of([NATURAL, WAITS]) if WAITS in points else (), last=2)


if __name__ == "__main__":
    run_command(main)
