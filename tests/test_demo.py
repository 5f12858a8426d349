"""What `make demo` showed when its results were recorded: benchmarks/demo/, seed 0."""

import itertools
import json

import pytest

from jaxs1.config import parse
from jaxs1.evaluate import EvaluateConfig
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def results():
    return json.loads((ROOT / "benchmarks" / "demo" / "results.json").read_text())


def points(results, method):
    return sorted((p for p in results["points"] if p["method"] == method), key=lambda p: p["value"])


def test_recorded_with_todays_recipe(results):
    recipe = str(ROOT / "configs" / "demo_evaluate.yaml")
    config = parse(EvaluateConfig, ["--config", recipe], command="test")
    assert [p["value"] for p in points(results, "budget")] == config.sweep.budget
    assert [p["value"] for p in points(results, "num_waits")] == config.sweep.num_waits
    assert results["settings"]["thinking"]["answer_prefix"] == config.thinking.answer_prefix
    assert results["questions"] >= 300


def test_accuracy_rises_with_the_budget(results):
    accuracy = [p["accuracy"] for p in points(results, "budget")]
    rising = [a < b for a, b in itertools.pairwise(accuracy)]
    assert len(accuracy) >= 5
    assert all(rising[:4])
    assert points(results, "budget")[0]["high"] < points(results, "budget")[4]["low"]


def test_some_waits_beat_natural_stopping_beyond_both_intervals(results):
    natural, *waits = points(results, "num_waits")
    assert natural["value"] == 0
    assert max(p["low"] for p in waits) > natural["high"]


def test_budgets_are_kept_exactly(results):
    assert all(p["samples_within_bound"] == 1 for p in results["points"])
