"""results.json: written and read back, with the names of today and of version 0.1."""

import dataclasses
import json
import math

import pytest

from jaxs1.config import UserError
from jaxs1.evaluation.methods import Bound
from jaxs1.evaluation.metrics import Comparison
from jaxs1.evaluation.results import MethodResult, PointResult, Results, read_results
from tests.evaluation.test_samples import V0_1


def point_result(method="num_waits", value=2, **fields):
    """A point with 3 of 4 right; fields differ as given."""
    counts = {"thinking_ended_by": {"budget": 1, "model": 3}, "finish_reason": {"stop": 4}}
    return PointResult(
        method=method, value=value, accuracy=0.75, low=0.3, high=0.95, right=3, samples=4,
        thinking_tokens=120.0, answer_tokens=9.5, waits=2.0, draws=1.0, bound=Bound(),
        amount=120.0, within_bound=True, samples_within_bound=1.0, too_long=0, notes=0,
        majority={1: 0.75}, any={1: 0.75}, **counts,
    ) if not fields else dataclasses.replace(point_result(method, value), **fields)  # fmt: skip


def results_with(*points, **fields):
    measures = MethodResult(1, None, None, None, None, 0.75)
    methods = dict.fromkeys((point.method for point in points), measures)
    values = {"name": "model", "task": "task", "questions": 4, "samples_per_question": 1}
    return Results(**values | fields, points=list(points), methods=methods, settings={"seed": 0})


def test_written_and_read_back(tmp_path):
    results = results_with(
        point_result(value=0, bound=Bound(high=50.0)),
        point_result(versus_natural=Comparison(0.25, -0.1, 0.5, 0.5, 2, 1)),
        point_result("budget", 8, majority={1: 0.5, 2: 0.75}, any={1: 0.5, 2: 1.0}),
        natural="num_waits 0",
    )
    (tmp_path / "results.json").write_text(json.dumps(results.as_json()))
    assert read_results(str(tmp_path)) == read_results(str(tmp_path / "results.json")) == results
    first, second, third = results.as_json()["points"]
    assert first["bound"] == {"low": 0, "high": 50.0, "unit": "tokens"}
    assert second["bound"]["high"] is None and second["versus_natural"]["gained"] == 2
    assert third["majority"] == {"1": 0.5, "2": 0.75}


def test_results_of_version_0_1_are_read():
    old = json.loads((V0_1 / "results.json").read_text())
    results = read_results(str(V0_1))
    assert [p.method for p in results.points] == ["budget", "num_waits", "num_waits", "rejection"]
    assert [p.accuracy for p in results.points] == [p["accuracy"] for p in old["points"]]
    assert results.methods["budget"].performance == old["ways"]["max_thinking"]["performance"]
    budget, natural = results.points[:2]
    assert budget.within_bound and budget.bound.high == 30 and math.isinf(natural.bound.high)
    assert results.settings["limits.max_seq_len"] == old["settings"]["limits.context"]
    assert results.settings["thinking"]["max_answer_tokens"] == 40
    assert results.natural is None and budget.versus_natural is None


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"points": 3, "ways": {}}', '{"points": [{}]}']
)
def test_something_else_is_refused(content, tmp_path):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(UserError, match=r"compare=\S+: is not the results of an evaluation"):
        read_results(str(tmp_path))


def test_labels():
    assert point_result("natural", None).label == "as configured"
    assert point_result("class_prompt", None).label == "class_prompt none"
    assert point_result("budget", -1).label == "budget -1"
