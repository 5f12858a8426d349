"""Results for people: results.md, the tables on the terminal, and the pictures next to them.

Accuracies are in percent; intervals are Wilson's at 95 %, over questions (the samples of one
question are not independent, so more of them do not narrow the interval).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from jaxs1.evaluation.methods import METHODS
from jaxs1.evaluation.plots import draw
from jaxs1.evaluation.results import RESULTS, Results
from jaxs1.storage import write_text

Cells = list[str]
POINTS = ("setting", "accuracy", "95 %", "thinking", "answer", "Waits", "cut", "within bound")
MEASURES = ("method", "runs", "Control", "per 1,000 tokens", "per doubling", "Performance")
COMPARISONS = ("setting", "difference", "95 %", "p", "gained", "lost")


def write_report(results: Results, folder: Path, other: Results | None = None) -> list[str]:
    """Write results.json, results.md and the pictures; returns the names of the files.

    Args:
        results: Results of this evaluation
        folder: Folder of the files
        other: Results to draw into the same pictures
    """
    write_text(folder / RESULTS, json.dumps(results.as_json(), indent=2) + "\n")
    pictures = draw(results, folder, other)
    write_text(folder / "results.md", markdown(results, pictures))
    return [RESULTS, "results.md", *pictures]


def terminal(results: Results) -> str:
    """The tables for the terminal, and the warnings."""
    parts = [
        f"{results.name} on {results.task}: {results.questions:,} questions",
        aligned(*point_rows(results)),
        *(aligned(*table) for table in (comparison_rows(results), vote_rows(results)) if table[1]),
        aligned(MEASURES, measure_rows(results)),
    ]
    warnings = "".join(f"\nwarning: {line}" for line in warnings_of(results))
    return "\n\n".join(parts) + warnings


def point_rows(results: Results) -> tuple[Cells, list[Cells]]:
    """Header and one row per point; the number of draws is shown if any sample was drawn again."""
    again = any(point.draws > 1 for point in results.points)
    rows = []
    for point in results.points:
        cut = point.thinking_ended_by.get("budget", 0) + point.thinking_ended_by.get("context", 0)
        rows.append(
            [
                point.label,
                _percent(point.accuracy),
                f"{100 * point.low:.1f} to {100 * point.high:.1f}",
                _number(point.thinking_tokens),
                _number(point.answer_tokens),
                _number(point.waits, 1),
                _percent(cut / point.samples, " %"),
                _percent(point.samples_within_bound, " %") if point.bound.limits else "",
                *([_number(point.draws, 1)] if again else []),
            ]
        )
    return [*POINTS, *(["draws"] if again else [])], rows


def comparison_rows(results: Results) -> tuple[Cells, list[Cells]]:
    """Header and one row per point that is compared with natural stopping."""
    rows = []
    for point in results.points:
        if (found := point.versus_natural) is not None:
            interval = f"{_signed(found.low)} to {_signed(found.high)}"
            p_value = "< 0.001" if found.p_value < 0.001 else f"{found.p_value:.3f}"
            counts = f"{found.gained:,}", f"{found.lost:,}"
            rows.append([point.label, _signed(found.difference), interval, p_value, *counts])
    return list(COMPARISONS), rows


def measure_rows(results: Results) -> list[Cells]:
    """One row per method, under MEASURES; in percent and percentage points."""
    return [
        [
            METHODS[method],
            str(found.runs),
            _percent(found.control, decimals=0),
            _signed(found.scaling_per_1000_tokens),
            _signed(found.scaling_per_doubling),
            _percent(found.performance),
        ]
        for method, found in results.methods.items()
    ]


def vote_rows(results: Results) -> tuple[Cells, list[Cells]]:
    """Header and rows of the majority votes; no rows with one sample per question."""
    if results.samples_per_question == 1:
        return [], []
    sizes = list(results.points[0].majority)
    header = ["setting", *(f"majority of {k}" for k in sizes), f"any of {sizes[-1]}"]
    rows = [
        [
            point.label,
            *(_percent(point.majority[k]) for k in sizes),
            _percent(point.any[sizes[-1]]),
        ]
        for point in results.points
    ]
    return header, rows


def warnings_of(results: Results) -> list[str]:
    """What a reader must know before trusting the figures, one sentence each."""
    lines = []
    for point in results.points:
        finish = point.finish_reason
        for count, what in (
            (finish.get("error", 0), "could not run and count as wrong"),
            (finish.get("length", 0), "were cut off in their answer"),
            (point.too_long, "were too long in every draw and count as wrong"),
            (point.notes, "ran with a note, such as a clamped budget (see samples.jsonl)"),
        ):
            if count:
                lines.append(f"{point.label}: {count:,} of {point.samples:,} samples {what}.")
    return lines


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for the terminal: the first column to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = []
    for row in [header, *rows]:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells[1:]]).rstrip())
    return "\n".join(lines)


def markdown(results: Results, pictures: Sequence[str]) -> str:
    """The content of results.md.

    Args:
        results: Results of the evaluation
        pictures: Names of the pictures in the same folder
    """
    n = results.samples_per_question
    samples = "one sample each" if n == 1 else f"{n} samples each"
    lines = [f"# {results.name} on {results.task}", ""]
    lines += [f"{results.questions:,} questions, {samples}.", ""]
    lines += _table(*point_rows(results))
    lines += [
        "",
        "Accuracy in %, with Wilson's interval over questions. Thinking and answer are mean "
        "tokens; cut: thinking that the budget or the context ended; within bound: samples within "
        "the bound that the setting promises.",
    ]
    lines += _comparisons(results)
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
    settings = json.dumps(results.settings, indent=2)
    return "\n".join([*lines, "", "## Settings", "", "```json", settings, "```", ""])


def _comparisons(results: Results) -> list[str]:
    header, rows = comparison_rows(results)
    if not rows:
        return []
    if results.samples_per_question == 1:
        method = "p is McNemar's exact test, the interval Newcombe's for paired proportions."
    else:
        method = "p and interval are the paired t-test's, over the questions' mean differences."
    return [
        *("", "## Compared with natural stopping", "", *_table(header, rows), ""),
        f"Difference from the accuracy at {results.natural} on the same questions, in percentage "
        "points, with a paired 95 % interval; gained and lost are questions with more and with "
        f"fewer correct samples. {method} No correction is made for the number of settings.",
    ]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    ruler = ["---", *["---:"] * (len(header) - 1)]
    return ["| " + " | ".join(row) + " |" for row in [header, ruler, *rows]]


def _percent(share: float | None, unit: str = "", decimals: int = 1) -> str:
    if share is None:
        return "-"
    return f"{100 * share:.{0 if unit else decimals}f}{unit}"


def _signed(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:+.1f}"


def _number(value: float | None, decimals: int = 0) -> str:
    return "-" if value is None else f"{value:,.{decimals}f}"
