"""From samples to results, against numbers worked out by hand."""

from dataclasses import replace

import pytest

from jaxs1.decoding.params import ThinkingParams
from jaxs1.evaluation.aggregate import aggregate, chosen, fits
from jaxs1.evaluation.methods import SweepConfig, points_of
from jaxs1.evaluation.samples import Key
from jaxs1.tasks.benchmarks import Question, Questions

QUESTIONS = Questions("task", "math", tuple(Question(i, f"q{i}", "1") for i in range(4)))


def sample(tokens, correct=True, finish="stop", waits=0):
    return {
        "correct": correct, "prediction": "1" if correct else "2", "steps": tokens // 10,
        "usage": {"thinking_tokens": tokens, "answer_tokens": 2}, "finish_reason": finish,
        "interventions": [{"kind": "wait"}] * waits, "thinking_ended_by": "model", "note": None,
    }  # fmt: skip


def run(sweep, done, n=1):
    points = points_of(sweep, ThinkingParams())
    return aggregate(points, QUESTIONS, n, done, {"seed": 0}, "model")


def test_budgets_against_natural_stopping():
    right = {0: (False, False, False, True), 1: (True, True, False, False)}
    done = {
        Key(f"max=-1 num_waits={waits}", i, 0): [sample(10 + 20 * waits, correct, waits=waits)]
        for waits, corrects in right.items()
        for i, correct in enumerate(corrects)
    }
    results = run(SweepConfig(num_waits=[0, 1]), done)
    natural, once = results.points
    assert (natural.accuracy, once.accuracy) == (0.25, 0.5)
    assert (natural.thinking_tokens, once.thinking_tokens, once.waits) == (10, 30, 1)
    assert results.natural == "num_waits 0" and natural.versus_natural is None
    compared = once.versus_natural
    assert (compared.difference, compared.gained, compared.lost) == (0.25, 2, 1)
    assert compared.p_value == 1  # 2 of 3 discordant pairs
    waits = results.methods["num_waits"]
    assert waits.runs == 2 and waits.performance == 0.5 and waits.control is None
    assert waits.scaling_per_1000_tokens == pytest.approx(0.25 / 0.020)


def test_errors_count_as_wrong_and_not_in_the_means():
    done = {Key("max=7 num_waits=0", i, 0): [sample(6)] for i in range(3)}
    done[Key("max=7 num_waits=0", 3, 0)] = [sample(0, correct=False, finish="error")]
    (point,) = run(SweepConfig(budget=[7]), done).points
    assert point.accuracy == 0.75 and point.thinking_tokens == 6
    assert point.finish_reason == {"error": 1, "stop": 3}
    assert point.thinking_ended_by == {"model": 3} and point.samples_within_bound == 1
    assert run(SweepConfig(budget=[7]), done).natural is None


def test_rejection_takes_the_first_draw_that_fits():
    (point,) = points_of(SweepConfig(rejection=[20], tries=3), ThinkingParams())
    draws = [[sample(30), sample(15)], [sample(10, False), sample(12)], [sample(5), sample(5)]]
    done = {Key(point.key, 0, attempt): drawn for attempt, drawn in enumerate(draws)}
    first, second = chosen(point, 0, 2, done)
    assert first == (draws[1][0], 2) and second == (draws[0][1], 1)
    only = {Key(point.key, 0, 0): draws[0]}
    assert chosen(point, 0, 2, only)[0] == (draws[0][0], 1)
    assert not fits(point, draws[0][0]) and fits(point, sample(30, finish="error"))
    assert fits(replace(point, longest=None), draws[0][0])


def test_votes_and_any():
    outcomes = [(True, False, False), (False, True, True), (False,) * 3, (True,) * 3]
    done = {
        Key("max=-1 num_waits=0", i, 0): [sample(10, correct) for correct in corrects]
        for i, corrects in enumerate(outcomes)
    }
    (point,) = run(SweepConfig(), done, n=3).points
    assert point.majority == {1: 0.5, 2: 0.5, 3: 0.5}
    assert point.any == {1: 0.5, 2: 0.75, 3: 0.75}
    assert point.right == 6 and point.samples == 12


def test_class_bounds_are_relative_to_the_run_without_instruction():
    points = points_of(SweepConfig(class_prompt=["short", "long"]), ThinkingParams())
    done = {
        Key(point.key, i, 0): [sample(tokens)]
        for point, tokens in zip(points, (20, 15, 16), strict=True)
        for i in range(4)
    }
    plain, short, long = aggregate(points, QUESTIONS, 1, done, {}, "model").points
    assert (short.bound.high, short.within_bound) == (20, True)
    assert (long.bound.low, long.within_bound) == (20, False)
    assert short.samples_within_bound is None and plain.within_bound
