"""Pictures: which are drawn, legend and labels inside the axes."""

import pytest

from jaxs1.evaluation import plots
from jaxs1.evaluation.metrics import Comparison
from tests.evaluation.test_results import point_result, results_with

WORSE = Comparison(-0.2, -0.3, -0.1, 0.0001, 3, 23)


@pytest.fixture
def results():
    tokens = {0: 60.0, 1: 90.0, 4: 150.0}
    waits = [point_result(value=n, thinking_tokens=t) for n, t in tokens.items()]
    budget = point_result("budget", 8, thinking_tokens=8.0, versus_natural=WORSE)
    return results_with(budget, *waits)


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_only_pictures_with_data_are_drawn_and_stale_ones_removed(results, tmp_path):
    (tmp_path / "majority.png").write_text("stale")
    assert plots.draw(results, tmp_path) == ["scaling.png", "waits.png", "differences.png"]
    assert not (tmp_path / "majority.png").exists()
    nothing = results_with(point_result("natural", None, thinking_tokens=None))
    assert plots.draw(nothing, tmp_path) == []
    assert not list(tmp_path.iterdir())
    votes = results_with(point_result("natural", None), samples_per_question=2)
    assert plots.draw(votes, tmp_path) == ["scaling.png", "majority.png"]


def test_waits_are_labelled_and_the_legend_is_inside(results):
    (axes,) = plots._thinking([results], ["model"]).axes
    assert texts(axes) == ["0", "1", "4 Waits"]
    figure = axes.figure
    figure.draw_without_rendering()
    legend, box = axes.get_legend().get_window_extent(), axes.get_window_extent()
    assert box.x0 <= legend.x0 <= legend.x1 <= box.x1
    assert box.y0 <= legend.y0 <= legend.y1 <= box.y1
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["budget forcing, maximum", "budget forcing, Waits"]
    assert axes.get_xscale() == "log" and axes.get_ylim()[1] <= 106


def test_labels_stay_inside_the_picture(results):
    for figure in (plots._thinking([results], ["m"]), plots._differences(results)):
        figure.draw_without_rendering()
        (axes,) = figure.axes
        for text in axes.texts:
            extent = text.get_window_extent()
            assert figure.bbox.x0 <= extent.x0 <= extent.x1 <= figure.bbox.x1
            assert figure.bbox.y0 <= extent.y0 <= extent.y1 <= figure.bbox.y1


def test_differences_have_a_row_for_each_comparison(results):
    (axes,) = plots._differences(results).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["budget 8"]
    assert texts(axes) == ["p < 0.001"]
    assert plots._differences(results_with(point_result())) is None


def test_equal_names_of_two_evaluations_are_numbered(results):
    figure = plots._waits([results, results], plots._names([results, results]))
    legend = figure.axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["model (1)", "model (2)"]


def test_stages_have_a_line_for_budgets_and_one_for_waits(results, tmp_path, monkeypatch):
    """Natural stopping belongs to both; the legend names a stage once, however many its seeds."""
    curve = plots.curve_of(results)
    assert [point[0] for point in curve.budgets] == [8.0, 60.0]
    assert [point[0] for point in curve.waits] == [60.0, 90.0, 150.0] and curve.last == 4
    drawn = []
    monkeypatch.setattr(plots, "_finish", lambda axes, legend: drawn.append(axes))
    only_budgets = plots.Curve(curve.budgets)
    stages = {"base": [only_budgets], "tuned": [curve], "after": [curve, curve]}
    plots.draw_stages(stages, tmp_path / "stages.png")
    assert (tmp_path / "stages.png").stat().st_size > 1000
    (axes,) = drawn
    names = [text for _, text in zip(*axes.get_legend_handles_labels(), strict=True)]
    assert names == ["base", "tuned", "tuned, with Waits", "after", "after, with Waits"]
    assert len(axes.get_lines()) == 1 + 2 + 2 * 2 and texts(axes) == ["4"] * 3
    assert list(axes.get_lines()[0].get_ydata()) == [100 * p[1] for p in curve.budgets]
