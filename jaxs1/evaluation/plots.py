"""Results as pictures: accuracy against thinking, Waits and votes; differences between settings.

They are meant for a page at half their size: large type, the legend inside, labelled points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from jaxs1.evaluation.methods import METHODS
from jaxs1.evaluation.results import PointResult, Results

#: Method -> colour and marker; the colours are distinguishable when colour-blind (Okabe and Ito).
STYLES = {
    "natural": ("#000000", "D"),
    "budget": ("#0072B2", "o"),
    "num_waits": ("#D55E00", "s"),
    "token_prompt": ("#009E73", "^"),
    "step_prompt": ("#CC79A7", "v"),
    "class_prompt": ("#56B4E9", "P"),
    "rejection": ("#E69F00", "X"),
}
#: Colours of the stages of a training, in their order.
STAGES = ("#999999", "#E69F00", "#0072B2", "#009E73")
GREY = "#666666"
SIZE = (7.0, 4.6)  # inches
TEXT, SMALL = 13, 11  # points
#: Ratio of tokens from which the axis is logarithmic.
WIDE = 4


def draw(results: Results, folder: Path, other: Results | None = None) -> list[str]:
    """Draw all pictures that the results have data for; returns their names.

    Args:
        results: Results of an evaluation
        folder: Folder of the pictures
        other: Results to draw into the same pictures, dashed and hollow
    """
    both = [results] if other is None else [results, other]
    names = _names(both)
    pictures = {
        "scaling.png": _thinking(both, names),
        "waits.png": _waits(both, names),
        "majority.png": _majority(both, names),
        "differences.png": _differences(results),
    }
    for name, figure in pictures.items():
        (folder / name).unlink(missing_ok=True)
        if figure is not None:
            figure.savefig(folder / name, dpi=150)
    return [name for name, figure in pictures.items() if figure is not None]


class Curve(NamedTuple):
    """Points of one model, each (mean thinking tokens, accuracy, low, high), 0 to 1.

    Args:
        budgets: thinking cut at budgets, or ended by the model, in ascending order
        waits: continued with Waits, from none
        last: number of Waits of the last point
    """

    budgets: Sequence[tuple[float, float, float, float]]
    waits: Sequence[tuple[float, float, float, float]] = ()
    last: int = 0


def curve_of(results: Results) -> Curve:
    """The curve of an evaluation with budgets and Waits."""

    def points(method: str) -> list[tuple[float, float, float, float]]:
        found = sorted(results.of(method), key=lambda p: float(p.value or 0))
        return [(p.thinking_tokens or 0.0, p.accuracy, p.low, p.high) for p in found]

    waits = points("num_waits")
    last = max((int(p.value or 0) for p in results.of("num_waits")), default=0)
    return Curve([*points("budget"), *waits[:1]], waits, last)


def draw_stages(stages: Mapping[str, Sequence[Curve]], path: Path) -> None:
    """Draw accuracy against thinking at the stages of a training, each in a colour.

    Args:
        stages: name of a stage -> curves of its models, one for each seed
        path: file of the picture
    """
    figure, axes = _accuracy_axes("mean thinking [tokens]")
    for (name, curves), color in zip(stages.items(), STAGES, strict=False):
        for number, curve in enumerate(curves):
            tokens, accuracy, low, high = _columns(curve.budgets)
            label = None if number else name
            axes.plot(tokens, accuracy, color=color, marker="o", markersize=5, label=label)
            axes.fill_between(tokens, low, high, color=color, alpha=0.12, linewidth=0)
            if not curve.waits:
                continue
            tokens, accuracy, *_ = _columns(curve.waits)
            label = None if number else f"{name}, with Waits"
            axes.plot(tokens, accuracy, "s--", color=color, markerfacecolor="white", label=label)
            axes.annotate(f"{curve.last}", (tokens[-1], accuracy[-1]), (6, -4),
                          textcoords="offset points", fontsize=SMALL, color=color)  # fmt: skip
    lines = [line for curves in stages.values() for c in curves for line in (c.budgets, c.waits)]
    _scale_tokens(axes, [point[0] for line in lines for point in line])
    _finish(axes, legend=False)
    axes.set_ylim(-2, 106)
    axes.legend(frameon=False, fontsize=SMALL, loc="upper left")  # little thinking, low accuracy
    figure.savefig(path, dpi=150)


def _columns(points: Sequence[tuple[float, float, float, float]]) -> list[list[float]]:
    """Tokens, accuracy and its interval; shares in %."""
    scales = (1, 100, 100, 100)
    return [[scale * point[i] for point in points] for i, scale in enumerate(scales)]


def _thinking(both: Sequence[Results], names: Sequence[str]) -> Figure | None:
    """Accuracy against mean thinking tokens, one line per method."""
    figure, axes = _accuracy_axes("mean thinking [tokens]", both[0].task)
    all_tokens: list[float] = []
    for number, (results, name) in enumerate(zip(both, names, strict=True)):
        for method in results.methods:
            points = [p for p in results.of(method) if p.thinking_tokens is not None]
            points.sort(key=lambda p: p.thinking_tokens or 0)
            tokens = [p.thinking_tokens or 0 for p in points]
            label = METHODS[method] if len(both) == 1 else f"{name}: {METHODS[method]}"
            _line(axes, tokens, points, label, number)
            if number == 0:
                _label_points(axes, tokens, points)
            all_tokens += tokens
    if not all_tokens:
        return None
    _scale_tokens(axes, all_tokens)
    _finish(axes)
    return figure


def _scale_tokens(axes: Axes, tokens: Sequence[float]) -> None:
    """Make the axis of these tokens logarithmic if they differ much."""
    if min(tokens) > 0 and max(tokens) / min(tokens) >= WIDE:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.set_xlim(-0.03 * max(tokens), 1.08 * max(tokens) or 1)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}" if x >= 1 else f"{x:g}"))


def _waits(both: Sequence[Results], names: Sequence[str]) -> Figure | None:
    """Accuracy against the number of Waits."""
    if not any("num_waits" in results.methods for results in both):
        return None
    figure, axes = _accuracy_axes("number of Waits", both[0].task)
    for number, (results, name) in enumerate(zip(both, names, strict=True)):
        points = sorted(results.of("num_waits"), key=lambda p: float(p.value or 0))
        # shifted, or intervals would hide each other
        waits = [float(p.value or 0) + 0.06 * number for p in points]
        _line(axes, waits, points, name, number)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _finish(axes, legend=len(both) > 1)
    return figure


def _majority(both: Sequence[Results], names: Sequence[str]) -> Figure | None:
    """Accuracy of the majority against the number of voting samples, one line per point."""
    if all(results.samples_per_question == 1 for results in both):
        return None
    figure, axes = _accuracy_axes("voting samples", both[0].task)
    sizes: set[int] = set()
    for number, (results, name) in enumerate(zip(both, names, strict=True)):
        if results.samples_per_question == 1:
            continue
        for method in results.methods:
            points = results.of(method)
            for rank, point in enumerate(points, start=1):
                sizes |= set(point.majority)
                label = _setting(point) if len(both) == 1 else f"{name}: {_setting(point)}"
                _vote(axes, point, label, rank / len(points), number)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(sizes), [str(k) for k in sorted(sizes)])
    axes.xaxis.set_minor_locator(NullLocator())
    _finish(axes)
    return figure


def _differences(results: Results) -> Figure | None:
    """Differences from natural stopping with their paired intervals, one row per point."""
    rows = [(p, p.versus_natural) for p in results.points if p.versus_natural is not None]
    if not rows:
        return None
    figure, axes = _start()
    figure.set_figheight(1.3 + 0.36 * len(rows))
    for at, (point, found) in enumerate(rows):
        color, marker = STYLES[point.method]
        below, above = found.difference - found.low, found.high - found.difference
        axes.errorbar(
            100 * found.difference,
            at,
            xerr=[[max(0.0, 100 * below)], [max(0.0, 100 * above)]],
            color=color,
            marker=marker,
            markersize=7,
            elinewidth=1.6,
            capsize=3,
        )
        p_value = "p < 0.001" if found.p_value < 0.001 else f"p = {found.p_value:.3f}"
        axes.annotate(
            p_value,
            (1.02, at),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=SMALL,
            color=GREY,
        )
    axes.axvline(0, color=GREY, linewidth=1)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_yticks(range(len(rows)), [_setting(point) for point, _ in rows])
    axes.invert_yaxis()
    axes.grid(axis="x", color="#e6e6e6", linewidth=0.8)
    axes.set_xlabel("accuracy minus that of natural stopping [percentage points]", fontsize=TEXT)
    return figure


def _setting(point: PointResult) -> str:
    """A point by the words of its method, e.g. `2 Waits`."""
    if point.method == "budget":
        return "no budget" if point.value == -1 else f"budget {point.value}"
    if point.method == "num_waits":
        return "1 Wait" if point.value == 1 else f"{point.value} Waits"
    return METHODS[point.method] + ("" if point.value is None else f" {point.value}")


def _vote(axes: Axes, point: PointResult, label: str, strength: float, number: int) -> None:
    """The votes of one point, the fainter the earlier it is among those of its method."""
    color, marker = STYLES[point.method]
    axes.plot(
        list(point.majority),
        [100 * share for share in point.majority.values()],
        color=color,
        marker=marker,
        alpha=0.2 + 0.8 * strength,
        linestyle="--" if number else "-",
        markersize=6,
        label=label,
    )


def _start() -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=SMALL)
    axes.set_axisbelow(True)
    return figure, axes


def _accuracy_axes(xlabel: str, task: str = "") -> tuple[Figure, Axes]:
    figure, axes = _start()
    on = f" on {task}" if task else ""
    axes.set_xlabel(xlabel, fontsize=TEXT)
    axes.set_ylabel(f"accuracy{on} [%]", fontsize=TEXT)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    return figure, axes


def _line(
    axes: Axes, at: Sequence[float], points: Sequence[PointResult], label: str, number: int
) -> None:
    """A line with 95 % intervals; the second evaluation's is dashed and hollow."""
    if not points:
        return
    color, marker = STYLES[points[0].method]
    below = [100 * max(0.0, p.accuracy - p.low) for p in points]
    above = [100 * max(0.0, p.high - p.accuracy) for p in points]
    axes.errorbar(
        at,
        [100 * p.accuracy for p in points],
        yerr=[below, above],
        color=color,
        marker=marker,
        markersize=7,
        markerfacecolor="white" if number else color,
        linestyle="--" if number else "-",
        linewidth=1.8,
        elinewidth=1,
        capsize=2.5,
        label=label,
    )


def _label_points(axes: Axes, at: Sequence[float], points: Sequence[PointResult]) -> None:
    """Numbers of Waits, and classes; budgets are on the axis already."""
    for number, (x, point) in enumerate(zip(at, points, strict=True), start=1):
        if point.value is None or point.method not in ("num_waits", "class_prompt"):
            continue
        last = point.method == "num_waits" and number == len(points)
        axes.annotate(
            _setting(point) if last else f"{point.value}",
            (x, 100 * point.high),
            xytext=(0, 5),
            textcoords="offset points",
            ha="center",
            fontsize=SMALL,
            color=STYLES[point.method][0],
        )


def _finish(axes: Axes, *, legend: bool = True) -> None:
    """Limit the axis to what an accuracy can be; put the legend where it hides least."""
    axes.margins(0.06, 0.09)
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -2), min(high, 106))
    if legend:
        axes.legend(frameon=False, fontsize=SMALL, loc="best")


def _names(both: Sequence[Results]) -> list[str]:
    """Names of the evaluations; numbered if they are equal."""
    names = [results.name for results in both]
    if len(set(names)) < len(names):
        return [f"{name} ({number})" for number, name in enumerate(names, start=1)]
    return names
