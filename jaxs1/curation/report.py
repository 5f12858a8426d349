"""The report of a curation: funnel.json for programs, report.md and two pictures for people.

Letters: N rows of the pool.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxs1.curation.features import FeatureStats
from jaxs1.curation.recipe import Selection
from jaxs1.curation.table import Table

EXTREMES = 10
MOST_LINES = 70
QUANTILES = (0, 10, 50, 90, 100)


@dataclass(frozen=True)
class CurationResult:
    """A finished curation.

    Args:
        settings: Settings for the heading: input, recipe, seed, ...
        table: All rows of the pool
        chosen: Outcome of the recipe
        feature_stats: Computed feature -> counts of its values
        titles: Subject -> its description
    """

    settings: dict[str, Any]
    table: Table
    chosen: Selection
    feature_stats: dict[str, FeatureStats]
    titles: dict[str, str]

    def extremes(self) -> dict[str, list[int]]:
        """Positions in the table of the longest and the shortest selected traces."""
        rows = np.flatnonzero(self.chosen.selected_N & (self.table.length_N >= 0))
        order = np.lexsort((self.table.key_N[rows], -self.table.length_N[rows]))
        ranked = rows[order].tolist()
        return {"longest": ranked[:EXTREMES], "shortest": ranked[::-1][:EXTREMES]}


def write_report(result: CurationResult, questions: dict[int, str], folder: Path) -> None:
    """Write funnel.json, report.md, funnel.png and distributions.png into a folder.

    Args:
        result: Finished curation
        questions: Questions of the extreme rows, by position in the table
        folder: Folder of the files
    """
    (folder / "funnel.json").write_text(json.dumps(funnel(result), indent=2) + "\n")
    (folder / "report.md").write_text(_markdown(result, questions))
    _draw_funnel(result, folder / "funnel.png")
    _draw_distributions(result, folder / "distributions.png")


def funnel(result: CurationResult) -> dict[str, Any]:
    """Counts of every stage, with reasons, as JSON."""
    return {
        **result.settings,
        "read": len(result.table),
        "stages": [
            {"name": s.name, "kept": s.kept, "dropped": len(s.row_D), "reasons": s.counts()}
            for s in result.chosen.stages
        ],
        "seeds": result.chosen.seeds,
        "selected": int(result.chosen.selected_N.sum()),
        "features": {name: asdict(stats) for name, stats in result.feature_stats.items()},
        "notes": list(result.chosen.notes),
    }


def _markdown(result: CurationResult, questions: dict[int, str]) -> str:
    table, settings = result.table, result.settings
    lines = [f"# {len(table):,} questions to {int(result.chosen.selected_N.sum()):,}", ""]
    lines += [", ".join(f"{k} `{v}`" for k, v in settings.items()), ""]
    lines += [
        *(f"* {note}" for note in result.chosen.notes),
        "",
        "## Funnel",
        "",
        "![funnel](funnel.png)",
    ]
    rows: list[Sequence[Any]] = [("read", f"{len(table):,}", "", "")]
    for s in result.chosen.stages:
        why = "; ".join(f"{_cell(reason, 1000)}: {n:,}" for reason, n in s.counts().items())
        rows.append((s.name, f"{s.kept:,}", f"{len(s.row_D):,}", why))
    lines += _table(("stage", "left", "dropped", "reasons"), rows)
    lines += [
        f"Always selected (seeds): {result.chosen.seeds:,}. Every dropped row: dropped.parquet."
    ]
    if result.feature_stats:
        lines += ["", "## Features computed"]
        names = ("computed", "cached", "unusable", "failed")
        lines += _table(
            ("feature", *names),
            [[f, *(f"{getattr(t, n):,}" for n in names)] for f, t in result.feature_stats.items()],
        )
    lines += ["", "![distributions](distributions.png)", "", "## Trace lengths [tokens]"]
    lines += _table(("", *(f"{q} %" for q in QUANTILES), "mean"), _length_rows(result))
    titled = tuple(f"{n}: {result.titles[n]}" if n in result.titles else n for n in table.subjects)
    for title, column_N, labels in (
        ("Subjects", table.subject_N, titled),
        ("Sources", table.source_N, table.sources),
    ):
        lines += ["", f"## {title}", *_shares(column_N, labels, result.chosen.selected_N)]
    for which, positions in result.extremes().items():
        lines += ["", f"## The {which} traces"]
        lines += _table(
            ("tokens", "qhash", "subject", "source", "question"),
            [_extreme(table, i, questions[i]) for i in positions],
        )
    return "\n".join(lines) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    cells = [header, ["---"] * len(header), *rows]
    return ["", *("| " + " | ".join(map(str, row)) + " |" for row in cells), ""]


def _length_rows(result: CurationResult) -> list[Sequence[Any]]:
    rows: list[Sequence[Any]] = []
    for name, lengths in zip(("pool", "selected"), _lengths(result), strict=True):
        if len(lengths):
            figures = [*np.percentile(lengths, QUANTILES), lengths.mean()]
            rows.append((name, *(f"{x:,.0f}" for x in figures)))
    return rows


def _lengths(result: CurationResult) -> tuple[np.ndarray, np.ndarray]:
    """Known trace lengths of the pool and of the selected rows."""
    known_N = result.table.length_N >= 0
    lengths_N = result.table.length_N
    return lengths_N[known_N], lengths_N[known_N & result.chosen.selected_N]


def _counts(column_N: np.ndarray, n: int, selected_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows per label in the pool and among the selected; unknown labels are left out."""
    known_N = column_N >= 0
    return (
        np.bincount(column_N[known_N], minlength=n),
        np.bincount(column_N[known_N & selected_N], minlength=n),
    )


def _shares(column_N: np.ndarray, names: Sequence[str], selected_N: np.ndarray) -> list[str]:
    before, after = _counts(column_N, len(names), selected_N)
    order = np.lexsort((-before, -after))
    rows = [
        (
            _cell(names[i]),
            f"{before[i]:,}",
            f"{after[i]:,}",
            f"{after[i] / max(after.sum(), 1):.1%}",
        )
        for i in order[:MOST_LINES]
    ]
    if len(order) > MOST_LINES:
        rows.append((f"{len(order) - MOST_LINES:,} more", "", "", ""))
    return _table(("", "before", "after", "share"), rows)


def _extreme(table: Table, i: int, question: str) -> Sequence[Any]:
    subject = table.subjects[table.subject_N[i]] if table.subject_N[i] >= 0 else ""
    source = table.sources[table.source_N[i]] if table.source_N[i] >= 0 else ""
    key = f"`{table.key_N[i]:016x}`"
    return f"{table.length_N[i]:,}", key, _cell(subject), _cell(source), _cell(question)


def _cell(text: str, most: int = 100) -> str:
    """The start of a text, escaped from Markdown and HTML."""
    return re.sub(r"[\\|$*`<!\[]", r"\\\g<0>", _start(text, most))


def _start(text: str, most: int) -> str:
    """The start of a text on one line, `most` characters at most."""
    line = " ".join(text.split()).encode(errors="replace").decode()
    return line if len(line) <= most else line[: most - 1] + "…"


def _draw_funnel(result: CurationResult, path: Path) -> None:
    names = ["read", *(s.name for s in result.chosen.stages)]
    counts = [len(result.table), *(s.kept for s in result.chosen.stages)]
    figure = Figure(figsize=(8, 0.45 * len(names) + 1), layout="constrained")
    axes = figure.add_subplot()
    bars = axes.barh(names, counts, color="tab:blue")
    axes.bar_label(bars, [f"{n:,}" for n in counts], padding=4)
    axes.invert_yaxis()
    axes.set_xlim(0, max(counts) * 1.15)
    axes.set_xlabel("rows left")
    figure.savefig(path, dpi=120)


def _label(subject: str, titles: dict[str, str]) -> str:
    """A subject with the start of its title, for a picture."""
    title = titles.get(subject, "").partition(" (")[0]
    return _start(f"{subject} {title}", 32).replace("$", "\\$")


def _draw_distributions(result: CurationResult, path: Path) -> None:
    """Draw subjects and trace lengths of the pool and of the selected rows."""
    table = result.table
    before, after = _counts(table.subject_N, len(table.subjects), result.chosen.selected_N)
    order = np.lexsort((-before, -after))[:MOST_LINES]
    figure = Figure(figsize=(12, 0.16 * len(order) + 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    at = np.arange(len(order))
    for offset, counts, name in ((-0.2, before, "pool"), (0.2, after, "selected")):
        share = 100 * counts[order] / max(counts.sum(), 1)
        left.barh(at + offset, share, 0.4, label=name)
    left.set_yticks(at, [_label(table.subjects[i], result.titles) for i in order], fontsize=7)
    left.margins(y=0.01)
    left.invert_yaxis()
    left.set_xlabel("share of rows [%]")
    left.set_title("subjects")
    left.legend()
    pool, selected = _lengths(result)
    if len(pool):
        bins = np.geomspace(max(pool.min(), 1), max(pool.max(), 2) + 1, 40)
        for lengths, name in ((pool, "pool"), (selected, "selected")):
            weights = np.full(len(lengths), 100 / max(len(lengths), 1))
            right.hist(np.maximum(lengths, 1), bins, weights=weights, alpha=0.6, label=name)
        right.set_xscale("log")
        right.legend()
    right.set_xlabel("trace length [tokens]")
    right.set_ylabel("share of rows [%]")
    right.set_title("trace lengths")
    figure.savefig(path, dpi=120)
