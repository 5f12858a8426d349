"""Results as pictures: accuracy against thinking, against Waits, and votes against samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from jaxs1.evaluation.methods import METHODS

Results = Mapping[str, Any]
#: Colours that stay apart for the colour-blind (Okabe and Ito), one a method, and a marker each.
STYLES = {
    "natural": ("#000000", "D"),
    "budget": ("#0072B2", "o"),
    "num_waits": ("#D55E00", "s"),
    "token_prompt": ("#009E73", "^"),
    "step_prompt": ("#CC79A7", "v"),
    "class_prompt": ("#56B4E9", "P"),
    "rejection": ("#E69F00", "X"),
}
MUTED = "#666666"
#: From this ratio on, tokens are drawn by doublings.
WIDE = 4


def draw(results: Results, folder: Path, other: Results | None = None) -> list[str]:
    """Draw what there is to draw; returns the names of the pictures.

    Args:
        results: of an evaluation
        folder: where the pictures go
        other: results that are drawn beside it, dashed
    """
    both = [results] if other is None else [results, other]
    names = _names(both)
    pictures = {
        "scaling.png": _thinking(both, names),
        "waits.png": _waits(both, names),
        "majority.png": _majority(both, names),
    }
    for picture in pictures:
        (folder / picture).unlink(missing_ok=True)
    drawn = {name: figure for name, figure in pictures.items() if figure is not None}
    for name, figure in drawn.items():
        (axes,) = figure.axes
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -2), min(high, 102))  # no room for what no share can be
        figure.savefig(folder / name, dpi=150)
    return list(drawn)


def _thinking(both: Sequence[Results], names: Sequence[str]) -> Figure | None:
    """Accuracy against mean thinking tokens, one line a method."""
    figure, axes = _start(both[0], "mean thinking [tokens]")
    places = []
    for number, (results, name) in enumerate(zip(both, names, strict=True)):
        for method in results["methods"]:
            points = [
                p
                for p in results["points"]
                if p["method"] == method and p["thinking_tokens"] is not None
            ]
            points.sort(key=lambda p: p["thinking_tokens"])
            at = [p["thinking_tokens"] for p in points]
            label = METHODS[method] if len(both) == 1 else f"{name}: {METHODS[method]}"
            _line(axes, at, points, method, label, number)
            for x, point in zip(at, points, strict=True):
                _annotate(axes, x, point, method)
            places += at
    if not places:
        return None
    if min(places) > 0 and max(places) / min(places) >= WIDE:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.set_xlim(-0.03 * max(places), 1.08 * max(places) or 1)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}" if x >= 1 else f"{x:g}"))
    _legend(figure)
    return figure


def _waits(both: Sequence[Results], names: Sequence[str]) -> Figure | None:
    """Accuracy against the number of Waits."""
    if not any("num_waits" in results["methods"] for results in both):
        return None
    figure, axes = _start(both[0], "Waits")
    for number, (results, name) in enumerate(zip(both, names, strict=True)):
        points = [p for p in results["points"] if p["method"] == "num_waits"]
        points.sort(key=lambda p: p["value"])
        at = [p["value"] + 0.06 * number for p in points]  # so that intervals do not hide others
        _line(axes, at, points, "num_waits", name, number)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(both) > 1:
        _legend(figure)
    return figure


def _majority(both: Sequence[Results], names: Sequence[str]) -> Figure | None:
    """Accuracy of the majority against how many samples vote, one line a point."""
    if all(results["samples_per_question"] == 1 for results in both):
        return None
    figure, axes = _start(both[0], "samples that vote")
    sizes: set[int] = set()
    for number, (results, name) in enumerate(zip(both, names, strict=True)):
        if results["samples_per_question"] == 1:
            continue
        for method in results["methods"]:
            points = [p for p in results["points"] if p["method"] == method]
            for rank, point in enumerate(points, start=1):
                sizes |= {int(k) for k in point["majority"]}
                label = (
                    METHODS[method]
                    if point["value"] is None
                    else f"{METHODS[method]} {point['value']}"
                )
                label = label if len(both) == 1 else f"{name}: {label}"
                _vote(axes, point, label, rank / len(points), number)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(sizes), [str(k) for k in sorted(sizes)])
    axes.xaxis.set_minor_locator(NullLocator())
    _legend(figure)
    return figure


def _vote(axes: Axes, point: Mapping[str, Any], label: str, strength: float, number: int) -> None:
    """One point's votes, the fainter the earlier it stands among those of its method."""
    color, marker = STYLES[point["method"]]
    axes.plot(
        [int(k) for k in point["majority"]],
        [100 * share for share in point["majority"].values()],
        color=color,
        marker=marker,
        alpha=0.2 + 0.8 * strength,
        linestyle="--" if number else "-",
        markersize=5,
        label=label,
    )


def _start(results: Results, xlabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(xlabel)
    axes.set_ylabel(f"accuracy on {results['task']} [%]")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _line(
    axes: Axes,
    at: Sequence[float],
    points: Sequence[Mapping[str, Any]],
    method: str,
    label: str,
    number: int,
) -> None:
    """A line with 95 % intervals; the second evaluation's is dashed and hollow."""
    if not points:
        return
    color, marker = STYLES[method]
    accuracy = [100 * p["accuracy"] for p in points]
    below = [100 * (p["accuracy"] - p["low"]) for p in points]
    above = [100 * (p["high"] - p["accuracy"]) for p in points]
    axes.errorbar(
        at,
        accuracy,
        yerr=[[max(0.0, x) for x in below], [max(0.0, x) for x in above]],
        color=color,
        marker=marker,
        markersize=6,
        markerfacecolor="white" if number else color,
        linestyle="--" if number else "-",
        linewidth=1.6,
        elinewidth=1,
        capsize=2.5,
        label=label,
    )


def _annotate(axes: Axes, x: float, point: Mapping[str, Any], method: str) -> None:
    """What the point was asked, Waits and words; numbers of tokens would only crowd the picture."""
    if point["value"] is None or method not in ("num_waits", "class_prompt"):
        return
    axes.annotate(
        f"{point['value']}",
        (x, 100 * point["accuracy"]),
        xytext=(7, -11 if point["accuracy"] > 0.1 else 5),
        textcoords="offset points",
        fontsize=8,
        color=STYLES[method][0],
    )


def _legend(figure: Figure) -> None:
    """Beside the lines, never over them."""
    figure.legend(frameon=False, fontsize=8, labelcolor=MUTED, loc="outside right upper")
    figure.set_figwidth(8.4)


def _names(both: Sequence[Results]) -> list[str]:
    """What the evaluations are called; numbered where that would be the same."""
    names = [results["name"] for results in both]
    if len(set(names)) < len(names):
        return [f"{name} ({number})" for number, name in enumerate(names, start=1)]
    return names
