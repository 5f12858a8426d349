"""The number of steps follows latency and overhead, on a clock of known numbers."""

import math

import pytest

from jaxs1.decoding.buckets import PrefillShape
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


def shape(rows, width, pages=4, **scored):
    return PrefillShape(rows, width, pages, **scored)


def test_prefill_grows_from_the_smallest_piece_and_never_exceeds_its_time():
    """The first piece of an unknown size is one that known costs bound from above."""
    sizes = [shape(rows, width, pages) for pages in (4, 16, 64) for rows, width in
             ((1, 32), (4, 32), (16, 32), (1, 128), (4, 128), (1, 512))]  # fmt: skip

    def true_cost(x):
        return 0.001 + 4e-5 * x.tokens * (1 + x.pages / 16)

    pace = Pace(0.1, 32)
    budget = pace.next(is_waiting=False).prefill
    assert budget.seconds == pytest.approx(0.05) and budget.cost(sizes[0]) == math.inf
    pace.record_prefill([sizes[0]], true_cost(sizes[0]))
    ran = [sizes[0]]
    for _ in range(len(sizes)):
        budget = pace.next(is_waiting=False).prefill
        known = {x: budget.cost(x) for x in sizes}
        assert all(cost >= true_cost(x) * (1 - 1e-9) for x, cost in known.items())
        new = [x for x in sizes if x not in ran and known[x] <= budget.seconds]
        for x in new[:1]:
            pace.record_prefill([x], true_cost(x))
            ran.append(x)
    assert all(true_cost(x) <= 0.05 for x in ran)
    assert shape(1, 512) in ran and shape(1, 512, 64) not in ran


def test_a_prefill_that_was_held_up_changes_nothing_and_a_slower_machine_does():
    pace = Pace(0.1, 32)
    for seconds in (0.01, 7.0):
        pace.record_prefill([shape(1, 32)], seconds)
    assert pace.prefill_cost(shape(1, 32)) == 0.01
    for _ in range(8):
        pace.record_prefill([shape(1, 32)] * 2, 0.08)
    assert pace.prefill_cost(shape(1, 32)) == 0.04
    pace.record_prefill([shape(1, 32), shape(4, 32)], 1e-9)  # whose time is whose?
    assert pace.prefill_cost(shape(4, 32)) == 0.16
    assert pace.prefill_cost(shape(1, 32, scored=True)) == math.inf
