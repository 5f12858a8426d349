"""Points of a sweep: their requests, keys, instructions and bounds."""

import math

import pytest

from jaxs1.config import UserError
from jaxs1.decoding.params import ThinkingParams
from jaxs1.evaluation.methods import (
    CLASSES,
    Bound,
    SweepConfig,
    points_of,
    reference_of,
    steps_in,
    uninstructed,
    with_instruction,
)

THINKING = ThinkingParams(max=400, min=5)


def test_without_a_sweep_one_point_is_measured():
    (point,) = points_of(SweepConfig(), THINKING)
    assert point.method == "natural" and point.thinking == THINKING
    assert point.bound == Bound(5, 400) and reference_of([point]) is point


def test_keys_of_budgets_and_waits_are_those_that_saved_samples_have():
    points = points_of(SweepConfig(budget=[8, -1], num_waits=[0, 2]), THINKING)
    assert [point.key for point in points] == [
        "max=8 num_waits=0", "max=-1 num_waits=0", "max=400 num_waits=0", "max=400 num_waits=2"
    ]  # fmt: skip
    assert [point.bound.high for point in points] == [8, math.inf, 400, 400]
    assert reference_of(points) is points[1]
    assert reference_of(points[2:]) is points[2] and reference_of(points[3:]) is None


def test_instructions_bounds_and_forcing():
    sweep = {"token_prompt": [30], "step_prompt": [3], "class_prompt": ["short", "long"]}
    points = points_of(SweepConfig(**sweep), THINKING)
    texts = [with_instruction("Why?", point) for point in points]
    assert texts == [
        "Why?\n\nThink for up to 30 tokens.", "Why?\n\nThink for up to 3 steps.", "Why?",
        f"Why?\n\n{CLASSES['short']}", f"Why?\n\n{CLASSES['long']}",
    ]  # fmt: skip
    assert points[1].bound == Bound(high=3, unit="steps")
    assert uninstructed(points) is points[2] and uninstructed(points[:2]) is None
    assert len({point.key for point in points}) == 5
    assert all(point.thinking == THINKING for point in points)
    forced = points_of(SweepConfig(**sweep, force=True, tokens_per_step=7), THINKING)
    assert [point.thinking.max for point in forced[:3]] == [30, 21, 400]


def test_rejection_shares_its_first_draw_with_natural_stopping():
    natural, rejection = points_of(SweepConfig(num_waits=[0], rejection=[9], tries=4), THINKING)
    assert rejection.key == natural.key and rejection.draws == 4 and rejection.longest == 9
    assert not rejection.is_natural


def test_bounds():
    assert Bound(2, 5).holds(2) and Bound(2, 5).holds(5) and not Bound(2, 5).holds(5.1)
    assert not Bound().limits and Bound(low=1).limits and Bound(high=0).limits
    assert Bound(low=1, relative=True).times(40) == Bound(low=40)
    assert Bound(high=1, relative=True).times(40) == Bound(high=40)
    assert Bound(high=1).times(40) == Bound(high=1)


@pytest.mark.parametrize(("thinking", "steps"), [("", 0), ("a\nb", 1), ("a\n\nb\n\n\n\n c", 3)])
def test_steps_are_paragraphs(thinking, steps):
    assert steps_in(thinking) == steps


def test_a_value_that_contradicts_thinking_is_refused():
    with pytest.raises(UserError, match=r"thinking.min=5: must not .* thinking.max=4"):
        points_of(SweepConfig(budget=[4]), THINKING)
