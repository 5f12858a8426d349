"""The number of steps follows latency and overhead, on a clock of known numbers."""

import pytest

from jaxs1.serving.pace import Pace


def learned(overhead, step, counts, latency=0.1, most=32):
    pace = Pace(latency, most)
    for steps in counts * 20:
        pace.record(steps, overhead + steps * step)
    return pace


def test_without_experience_all_steps_are_run_and_two_give_first_tokens():
    pace = Pace(0.1, 32)
    assert (pace.steps(), pace.fewest()) == (32, 2)


def test_overhead_and_step_are_told_apart():
    overhead, step = learned(0.004, 0.002, [2, 8, 20, 32]).estimate()
    assert overhead == pytest.approx(0.004, rel=1e-3) and step == pytest.approx(0.002, rel=1e-3)


@pytest.mark.parametrize(
    ("overhead", "step", "steps", "fewest"),
    [
        (0.0015, 0.0149, 7, 2),  # an H200 and 32B: 0.1 s are 6.6 steps
        (0.0005, 0.00035, 32, 13),  # a tiny model: as many as there are; overhead a tenth
        (0.0, 0.5, 2, 2),  # never a single step
        (0.05, 0.01, 32, 32),  # overhead before latency
    ],
)
def test_steps(overhead, step, steps, fewest):
    pace = learned(overhead, step, [2, 8, 20, 32])
    assert (pace.steps(), pace.fewest()) == (steps, fewest)


def test_runs_of_one_size_are_all_step():
    pace = learned(0.004, 0.002, [8])
    assert pace.estimate()[1] == pytest.approx(0.0025)


def test_newer_runs_weigh_more():
    pace = learned(0.0, 0.001, [4, 16])
    for steps in [4, 16] * 100:
        pace.record(steps, steps * 0.01)
    assert pace.estimate()[1] == pytest.approx(0.01)


def test_runs_become_shorter_as_soon_as_steps_become_slower():
    pace = learned(0.004, 0.001, [2, 8, 20, 32])
    assert pace.steps() == 32
    for _ in range(3):
        pace.record(32, 0.004 + 32 * 0.01)
    assert pace.steps() == 10


def test_a_run_that_was_held_up_changes_nothing():
    pace = learned(0.004, 0.002, [2, 8, 20, 32])
    before = pace.estimate()
    for steps in (2, 20):
        pace.record(steps, 7.0)
    assert pace.estimate() == pytest.approx(before, rel=1e-3)


@pytest.mark.parametrize(
    ("step", "ends", "eager"),
    [
        (0.015, 0.05, True),  # a large model: an end every 160 steps
        (0.0001, 5, False),  # a tiny one: an end every six steps, admission takes longer than that
        (0.0001, 0, True),
    ],
)
def test_runs_stop_where_a_sequence_ends_only_if_that_is_worth_an_admission(step, ends, eager):
    pace = Pace(0.1, 32)
    pace._host = 0.003
    for steps in [8, 32] * 50:
        pace.record(steps, 0.001 + steps * step, ends=ends * steps / 32)
    assert pace.eager() == eager
    assert [pace.next(is_waiting=waiting).eager for waiting in (False, True)] == [False, eager]


def test_prefill_takes_about_latency():
    pace = learned(0.004, 0.002, [2, 32])
    assert pace.next(is_waiting=False).prefill == 512
    pace.record(16, 0.036, prefilled=45)  # too few to measure
    assert pace.next(is_waiting=False).prefill == 512
    for tokens in (100, 500, 2000):
        pace.record(16, 0.036 + 1e-4 * tokens, prefilled=tokens)
    assert pace.next(is_waiting=False).prefill == pytest.approx(1000, abs=1)
    pace.record(16, 0.036 + 0.1, prefilled=100)  # longer prompts: slower at once
    assert pace.next(is_waiting=False).prefill == pytest.approx(100, abs=1)
    assert pace.estimate() == pytest.approx((0.004, 0.002), rel=1e-3)
