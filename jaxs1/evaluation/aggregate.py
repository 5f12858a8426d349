"""From graded samples to `Results`: a pure function of the samples, whatever their order.

Letters: P points, Q questions, N samples of a question.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxs1.evaluation import metrics
from jaxs1.evaluation.methods import Bound, Point, reference_of, uninstructed
from jaxs1.evaluation.results import MethodResult, PointResult, Results
from jaxs1.evaluation.samples import Key
from jaxs1.tasks.benchmarks import Questions

Sample = Mapping[str, Any]
Done = Mapping[Key, Sequence[Sample]]


def aggregate(
    points: Sequence[Point],
    questions: Questions,
    n: int,
    done: Done,
    settings: Mapping[str, Any],
    name: str,
) -> Results:
    """Aggregate all samples of an evaluation.

    Args:
        points: Points of the sweep
        questions: Questions of the task; `done` has the samples of all of them
        n: Number of samples of a question
        done: Graded samples by request
        settings: What all samples share
        name: Name of the model in tables and pictures
    """
    numbers = [question.number for question in questions.items]
    accepted_P = [_Accepted.at(point, numbers, n, done) for point in points]

    def find(point: Point | None) -> _Accepted | None:
        return next((accepted for accepted in accepted_P if accepted.point is point), None)

    plain, natural = find(uninstructed(points)), find(reference_of(points))
    usual = 0.0 if plain is None else _mean(plain.amounts(Bound())) or 0.0
    rows = []
    for accepted in accepted_P:
        compared = None
        if natural is not None and accepted.drawn_QN != natural.drawn_QN:
            compared = metrics.compare(accepted.right_QN, natural.right_QN)
        rows.append(_point_result(accepted, questions, usual, compared))
    methods = dict.fromkeys(row.method for row in rows)
    return Results(
        name=name,
        task=questions.name,
        questions=len(questions.items),
        samples_per_question=n,
        points=rows,
        methods={m: _method_result([row for row in rows if row.method == m]) for m in methods},
        settings=dict(settings),
        natural=None if natural is None else rows[accepted_P.index(natural)].label,
    )


def chosen(point: Point, question_id: int, n: int, done: Done) -> list[tuple[Sample, int]]:
    """The samples [N] of a question at a point, and how many draws each took.

    Where a point rejects long thinking, a sample is the first accepted draw, or the last draw.
    """
    keys = [Key(point.key, question_id, attempt) for attempt in range(point.draws)]
    draws = [done[key] for key in itertools.takewhile(done.__contains__, keys)]
    samples = []
    for i in range(n):
        at = next((t for t, draw in enumerate(draws) if fits(point, draw[i])), len(draws) - 1)
        samples.append((draws[at][i], at + 1))
    return samples


def fits(point: Point, sample: Sample) -> bool:
    """Whether a point accepts a sample: it is short enough, or it could not run."""
    if point.longest is None or sample["finish_reason"] == "error":
        return True
    return sample["usage"]["thinking_tokens"] <= point.longest


@dataclass(frozen=True)
class _Accepted:
    """The samples of a point.

    Args:
        point: The point
        drawn_QN: Samples of each question, and how many draws each took
    """

    point: Point
    drawn_QN: list[list[tuple[Sample, int]]]

    @classmethod
    def at(cls, point: Point, numbers: Sequence[int], n: int, done: Done) -> _Accepted:
        return cls(point, [chosen(point, number, n, done) for number in numbers])

    @property
    def samples(self) -> list[Sample]:
        return [sample for drawn_N in self.drawn_QN for sample, _ in drawn_N]

    @property
    def completed(self) -> list[Sample]:
        return [sample for sample in self.samples if sample["finish_reason"] != "error"]

    @property
    def right_QN(self) -> list[list[bool]]:
        return [
            [bool(sample["correct"]) and fits(self.point, sample) for sample, _ in drawn_N]
            for drawn_N in self.drawn_QN
        ]

    @property
    def prediction_QN(self) -> list[list[str | None]]:
        return [
            [sample["prediction"] if fits(self.point, sample) else None for sample, _ in drawn_N]
            for drawn_N in self.drawn_QN
        ]

    def amounts(self, bound: Bound) -> list[int]:
        """The amounts of thinking in the unit of a bound."""
        if bound.unit == "steps":
            return [sample["steps"] for sample in self.completed]
        return self.usage("thinking_tokens")

    def usage(self, name: str) -> list[int]:
        return [sample["usage"][name] for sample in self.completed]


def _point_result(
    accepted: _Accepted, questions: Questions, usual: float, compared: metrics.Comparison | None
) -> PointResult:
    point, samples, completed = accepted.point, accepted.samples, accepted.completed
    right_QN = accepted.right_QN
    right = sum(map(sum, right_QN))
    accuracy = right / len(samples)
    low, high = metrics.wilson(accuracy * len(right_QN), len(right_QN))
    bound, amounts = point.bound.times(usual), accepted.amounts(point.bound)
    amount = _mean(amounts)
    majority, any_right = _votes(accepted.prediction_QN, right_QN, questions)
    draws = [draws for drawn_N in accepted.drawn_QN for _, draws in drawn_N]
    return PointResult(
        method=point.method,
        value=point.value,
        accuracy=accuracy,
        low=low,
        high=high,
        right=right,
        samples=len(samples),
        thinking_tokens=_mean(accepted.usage("thinking_tokens")),
        answer_tokens=_mean(accepted.usage("answer_tokens")),
        waits=_mean([_waits(sample) for sample in completed]),
        draws=math.fsum(draws) / len(draws),
        bound=bound,
        amount=amount,
        within_bound=amount is not None and bound.holds(amount),
        samples_within_bound=(
            None if point.bound.relative else _mean([bound.holds(each) for each in amounts])
        ),
        thinking_ended_by=_counts(completed, "thinking_ended_by"),
        finish_reason=_counts(samples, "finish_reason"),
        too_long=sum(not fits(point, sample) for sample in completed),
        notes=sum(sample["note"] is not None for sample in completed),
        majority=majority,
        any=any_right,
        versus_natural=compared,
    )


def _votes(
    prediction_QN: Sequence[Sequence[str | None]],
    right_QN: Sequence[Sequence[bool]],
    questions: Questions,
) -> tuple[dict[int, float], dict[int, float]]:
    """Accuracy of the majority among the first k samples, and how often any of them is right."""
    grader, count = questions.grader, len(questions.items)
    majority, any_right = {}, {}
    for k in metrics.vote_sizes(len(right_QN[0])):
        winner_Q = [metrics.vote(answer_N[:k], grader.same) for answer_N in prediction_QN]
        won = [
            grader.is_right(winner, question.gold)
            for winner, question in zip(winner_Q, questions.items, strict=True)
        ]
        majority[k] = sum(won) / count
        any_right[k] = sum(any(right_N[:k]) for right_N in right_QN) / count
    return majority, any_right


def _method_result(rows: Sequence[PointResult]) -> MethodResult:
    runs = [
        metrics.Run(row.thinking_tokens, row.accuracy)
        for row in rows
        if row.thinking_tokens is not None
    ]
    bounded = [row for row in rows if row.bound.limits]
    shares = [row.samples_within_bound for row in bounded]
    return MethodResult(
        runs=len(rows),
        control=metrics.control([row.within_bound for row in bounded]),
        control_of_samples=_mean([share for share in shares if share is not None]),
        scaling_per_1000_tokens=metrics.scaling(runs, metrics.per_thousand),
        scaling_per_doubling=metrics.scaling(runs, metrics.per_doubling),
        performance=metrics.performance(runs),
    )


def _waits(sample: Sample) -> int:
    return sum(entry["kind"] == "wait" for entry in sample["interventions"])


def _counts(samples: Sequence[Sample], name: str) -> dict[str, int]:
    return dict(sorted(Counter(sample[name] for sample in samples).items()))


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
