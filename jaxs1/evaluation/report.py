"""Results for people: `results.md`, the table on the terminal, and the pictures beside them.

Accuracies are in percent; intervals are Wilson's at 95 %, over questions (the samples of one
question are not independent, so that more of them do not narrow it).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxs1.evaluation.methods import METHODS
from jaxs1.evaluation.plots import draw
from jaxs1.evaluation.results import RESULTS

Results = Mapping[str, Any]
POINTS = ("setting", "accuracy", "95 %", "thinking", "answer", "Waits", "cut", "within bound")
MEASURES = ("method", "runs", "Control", "per 1,000 tokens", "per doubling", "Performance")


def write_report(results: Results, folder: Path, other: Results | None = None) -> list[str]:
    """Write results.json, results.md and the pictures; returns the names of the files.

    Args:
        results: of this evaluation
        folder: where the files go
        other: results that are drawn beside it
    """
    (folder / RESULTS).write_text(json.dumps(results, indent=2) + "\n")
    pictures = draw(results, folder, other)
    (folder / "results.md").write_text(_markdown(results, pictures))
    return [RESULTS, "results.md", *pictures]


def point_rows(results: Results) -> tuple[list[str], list[list[str]]]:
    """Header and one row a point; how often was drawn is shown where anything was drawn again."""
    again = any(point["draws"] > 1 for point in results["points"])
    rows = []
    for point in results["points"]:
        ended, samples = point["thinking_ended_by"], point["samples"]
        cut = ended.get("budget", 0) + ended.get("context", 0)
        rows.append(
            [
                _label(point),
                _percent(point["accuracy"]),
                f"{100 * point['low']:.1f} to {100 * point['high']:.1f}",
                _number(point["thinking_tokens"]),
                _number(point["answer_tokens"]),
                _number(point["waits"], 1),
                _percent(cut / samples, " %"),
                _percent(point["samples_within_bound"], " %") if _has_bound(point) else "",
                *([_number(point["draws"], 1)] if again else []),
            ]
        )
    return [*POINTS, *(["draws"] if again else [])], rows


def measure_rows(results: Results) -> list[list[str]]:
    """One row a method of controlling, under MEASURES; in percent and percentage points."""
    return [
        [
            METHODS[method],
            str(found["runs"]),
            _percent(found["control"], decimals=0),
            _signed(found["scaling_per_1000_tokens"]),
            _signed(found["scaling_per_doubling"]),
            _percent(found["performance"]),
        ]
        for method, found in results["methods"].items()
    ]


def vote_rows(results: Results) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the majority votes; no rows where a question has one sample."""
    if results["samples_per_question"] == 1:
        return [], []
    sizes = list(results["points"][0]["majority"])
    header = ["setting", *(f"majority of {k}" for k in sizes), f"any of {sizes[-1]}"]
    rows = [
        [
            _label(point),
            *(_percent(point["majority"][k]) for k in sizes),
            _percent(point["any"][sizes[-1]]),
        ]
        for point in results["points"]
    ]
    return header, rows


def warnings_of(results: Results) -> list[str]:
    """What a reader must know before believing the figures, one sentence each."""
    lines = []
    for point in results["points"]:
        samples, finish = point["samples"], point["finish_reason"]
        for count, what in (
            (finish.get("error", 0), "could not run and count as wrong"),
            (finish.get("length", 0), "were cut off in their answer"),
            (point["too_long"], "were too long in every draw and count as wrong"),
            (point["notes"], "ran with a note, such as a clamped budget (samples.jsonl has it)"),
        ):
            if count:
                lines.append(f"{_label(point)}: {count:,} of {samples:,} samples {what}.")
    return lines


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for the terminal: the first column to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = []
    for row in [header, *rows]:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells[1:]]).rstrip())
    return "\n".join(lines)


def _markdown(results: Results, pictures: Sequence[str]) -> str:
    n = results["samples_per_question"]
    samples = "one sample each" if n == 1 else f"{n} samples each"
    lines = [f"# {results['name']} on {results['task']}", ""]
    lines += [f"{results['questions']:,} questions, {samples}.", ""]
    lines += _table(*point_rows(results))
    lines += [
        "",
        "Accuracy in %, with Wilson's interval over questions. Thinking and answer are mean "
        "tokens; cut: thinking that the budget or the context ended; within bound: samples that "
        "keep what their setting promises.",
    ]
    header, rows = vote_rows(results)
    if rows:
        lines += ["", "## Votes", "", *_table(header, rows)]
    lines += ["", "## Control, Scaling, Performance", "", *_table(MEASURES, measure_rows(results))]
    lines += [
        "",
        "As in the s1 paper: Control is the share of runs (in %) whose mean thinking is within its "
        "bound; Scaling the mean slope over all pairs of runs, here in percentage points per 1,000 "
        "tokens and per doubling; Performance the best accuracy.",
    ]
    warnings = warnings_of(results)
    if warnings:
        lines += ["", "## Warnings", "", *(f"* {line}" for line in warnings)]
    for picture in pictures:
        lines += ["", f"![{Path(picture).stem}]({picture})"]
    settings = json.dumps(results["settings"], indent=2)
    return "\n".join([*lines, "", "## Settings", "", "```json", settings, "```", ""])


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    ruler = ["---", *["---:"] * (len(header) - 1)]
    return ["| " + " | ".join(row) + " |" for row in [header, ruler, *rows]]


def _label(point: Mapping[str, Any]) -> str:
    """The point for people, e.g. `num_waits 2`."""
    if point["method"] == "natural":
        return METHODS["natural"]
    return f"{point['method']} {'none' if point['value'] is None else point['value']}"


def _has_bound(point: Mapping[str, Any]) -> bool:
    return point["bound"]["low"] > 0 or point["bound"]["high"] is not None


def _percent(share: float | None, unit: str = "", decimals: int = 1) -> str:
    if share is None:
        return "-"
    return f"{100 * share:.{0 if unit else decimals}f}{unit}"


def _signed(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:+.1f}"


def _number(value: float | None, decimals: int = 0) -> str:
    return "-" if value is None else f"{value:,.{decimals}f}"
