"""The picture of the report: lengths, what became of the samples, shares of right answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from jaxs1.distillation.counts import SampleCounts, ranked
from jaxs1.distillation.verify import REASONS
from jaxs1.evaluation.metrics import wilson

#: Distinguishable when colour-blind (Okabe and Ito).
KEPT, DROPPED = "#0072B2", "#D55E00"
TEXT, SMALL = 12, 10  # points
#: Most values of a column that are drawn, the most frequent ones.
MOST = 8


def draw(counts: SampleCounts, path: Path) -> None:
    """Draw the picture.

    Args:
        counts: Counts of all samples
        path: PNG file to write
    """
    groups = _groups(counts)
    height = max(4.2, 1.4 + 0.3 * len(groups))
    figure = Figure(figsize=(14, height), layout="constrained")
    lengths, samples, right = figure.subplots(1, 3)
    for axes in (lengths, samples, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=SMALL)
        axes.set_axisbelow(True)
    _draw_lengths(counts, lengths)
    _draw_samples(counts, samples)
    _draw_shares(groups, right)
    figure.savefig(path, dpi=120)


def _draw_lengths(counts: SampleCounts, axes: Axes) -> None:
    both = [*counts.kept_tokens, *counts.dropped_tokens]
    axes.set_xlabel("thinking and answer [tokens]", fontsize=TEXT)
    axes.set_ylabel("samples", fontsize=TEXT)
    if not both:
        return
    bins = np.geomspace(max(min(both), 1), max(*both, 2) + 1, 40)
    parts = [[max(n, 1) for n in part] for part in (counts.kept_tokens, counts.dropped_tokens)]
    axes.hist(parts, bins.tolist(), stacked=True, color=[KEPT, DROPPED], label=["kept", "dropped"])
    axes.set_xscale("log", base=2)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.legend(loc="upper left", fontsize=SMALL, frameon=False)


def _draw_samples(counts: SampleCounts, axes: Axes) -> None:
    dropped = {name: counts.reasons[name] for name in REASONS if counts.reasons[name]}
    names, values = ["kept", *dropped], [counts.total.kept, *dropped.values()]
    bars = axes.barh(names, values, color=[KEPT, *[DROPPED] * len(dropped)])
    axes.bar_label(bars, [f"{n:,}" for n in values], padding=4, fontsize=SMALL)
    axes.set_xlim(0, 1.2 * max(*values, 1))
    axes.invert_yaxis()
    axes.set_xlabel("samples", fontsize=TEXT)


def _groups(counts: SampleCounts) -> list[tuple[str, float, int]]:
    """Name, sum of the shares of right answers, and number of questions, of each bar."""
    found = [("all questions", counts.total)]
    for column, group in counts.groups.items():
        found += [(f"{column}: {value}", share) for value, share in ranked(group)[:MOST]]
    return [(_label(name), s.right, s.questions) for name, s in found if s.questions]


def _draw_shares(groups: list[tuple[str, float, int]], axes: Axes) -> None:
    axes.set_xlim(0, 100)
    axes.set_xlabel("right answers [%]", fontsize=TEXT)
    axes.grid(axis="x", color="#e6e6e6", linewidth=0.8)
    for at, (_, right, questions) in enumerate(groups):
        share = right / questions
        low, high = wilson(right, questions)
        error = [[100 * max(0.0, share - low)], [100 * max(0.0, high - share)]]
        axes.errorbar(100 * share, at, xerr=error, color=KEPT, marker="o", capsize=3)
    axes.set_yticks(range(len(groups)), [name for name, _, _ in groups])
    axes.invert_yaxis()


def _label(text: str) -> str:
    line = " ".join(text.split()).replace("$", "\\$")
    return line if len(line) <= 32 else line[:31] + "…"
