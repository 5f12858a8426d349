"""Gates on the recorded reinforcement learning of the demo's model, and its page."""

import json
import math
from statistics import fmean

import pytest

from benchmarks.grpo_runs import NATURAL, POINTS, RECORDED, STAGES, page, stages

RUNS = json.loads((RECORDED / "grpo.json").read_text())
SEEDS = [name for name in RUNS if name not in STAGES]
each_seed = pytest.mark.parametrize("seed", SEEDS)


def test_the_recorded_page_is_that_of_the_recorded_runs():
    assert (RECORDED / "grpo.md").read_text() == page(RUNS)


def test_the_picture_has_every_stage_and_all_seeds():
    found = stages(RUNS)
    assert [len(curves) for curves in found.values()] == [1, 1, len(SEEDS)]
    last = found["after GRPO"][-1]
    assert len(last.budgets) == len(POINTS) - 1 and len(last.waits) == 2


@each_seed
def test_natural_stopping_gains_beyond_both_intervals(seed):
    before, after = RUNS["before"][NATURAL], RUNS[seed][NATURAL]
    assert before["high"] < after["low"]
    assert after["accuracy"] - before["accuracy"] >= 0.10
    assert after["versus_before"]["difference"] == pytest.approx(
        after["accuracy"] - before["accuracy"]
    )


def test_three_seeds_gain_twenty_points_in_the_mean():
    assert len(SEEDS) >= 3
    assert fmean(RUNS[s][NATURAL]["versus_before"]["difference"] for s in SEEDS) >= 0.20


@each_seed
def test_learning_takes_ten_minutes_of_cpu_at_most(seed):
    assert RUNS[seed]["cpu_seconds"] <= 600


@each_seed
@pytest.mark.parametrize("budget", [24, 48, 72, 96])
def test_low_budgets_lose_at_most_two_paired_standard_errors(seed, budget):
    point = RUNS[seed][f"max={budget} num_waits=0"]
    found, n = point["versus_before"], point["questions"]
    gained, lost = found["gained"], found["lost"]
    error = math.sqrt(gained + lost - (gained - lost) ** 2 / n) / n
    assert found["difference"] >= -2 * error
