"""Tables for people: percent, signs, warnings, and what is left out."""

from jaxs1.evaluation import report
from jaxs1.evaluation.methods import Bound
from jaxs1.evaluation.metrics import Comparison
from tests.evaluation.test_results import point_result, results_with

BETTER = Comparison(0.1125, 0.0488, 0.1734, 0.0004, 63, 18)


def test_point_rows():
    points = point_result("budget", 8, bound=Bound(high=8)), point_result("natural", None)
    header, rows = report.point_rows(results_with(*points))
    assert header == list(report.POINTS)
    assert rows == [
        ["budget 8", "75.0", "30.0 to 95.0", "120", "10", "2.0", "25 %", "100 %"],
        ["as configured", "75.0", "30.0 to 95.0", "120", "10", "2.0", "25 %", ""],
    ]
    header, rows = report.point_rows(results_with(point_result(draws=2.25)))
    assert header[-1] == "draws" and rows[0][-1] == "2.2"
    nothing = point_result(thinking_tokens=None, answer_tokens=None, waits=None)
    assert report.point_rows(results_with(nothing))[1][0][3:6] == ["-", "-", "-"]


def test_comparison_rows_and_their_explanation():
    results = results_with(point_result(value=0), point_result(versus_natural=BETTER))
    assert report.comparison_rows(results)[1] == [
        ["num_waits 2", "+11.2", "+4.9 to +17.3", "< 0.001", "63", "18"]
    ]
    assert "McNemar's exact test" in report.markdown(results, [])
    several = results_with(*results.points, samples_per_question=4)
    assert "paired t-test" in report.markdown(several, [])
    alone = report.markdown(results_with(point_result()), [])
    assert "natural stopping" not in alone


def test_warnings_name_point_count_and_reason():
    point = point_result(finish_reason={"error": 1, "length": 2, "stop": 1}, too_long=3, notes=1)
    warnings = report.warnings_of(results_with(point, point_result()))
    assert [line.split(": ", 1)[1] for line in warnings] == [
        "1 of 4 samples could not run and count as wrong.",
        "2 of 4 samples were cut off in their answer.",
        "3 of 4 samples were too long in every draw and count as wrong.",
        "1 of 4 samples ran with a note, such as a clamped budget (see samples.jsonl).",
    ]
    text = report.terminal(results_with(point))
    assert text.count("warning: num_waits 2: ") == 4
    assert "## Warnings" in report.markdown(results_with(point), [])
    assert "## Warnings" not in report.markdown(results_with(point_result()), [])


def test_votes_are_shown_for_several_samples_only():
    assert report.vote_rows(results_with(point_result())) == ([], [])
    shares = {1: 0.5, 2: 0.75}
    point = point_result(majority=shares, any={1: 0.5, 2: 1.0})
    assert report.vote_rows(results_with(point, samples_per_question=2)) == (
        ["setting", "majority of 1", "majority of 2", "any of 2"],
        [["num_waits 2", "50.0", "75.0", "100.0"]],
    )


def test_aligned():
    assert report.aligned(("a", "figure"), [["long name", "1"], ["b", "22"]]) == (
        "a          figure\nlong name       1\nb              22"
    )


def test_pictures_are_linked():
    assert "![scaling](scaling.png)" in report.markdown(
        results_with(point_result()), ["scaling.png"]
    )
