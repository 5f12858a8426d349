"""From graded samples to `results.json`: a function of the samples, whatever their order was.

Letters: P points, Q questions, N samples of a question. A result is plain JSON throughout.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxs1.config import UserError
from jaxs1.evaluation import metrics
from jaxs1.evaluation.methods import Bound, Point, uninstructed
from jaxs1.evaluation.samples import Key
from jaxs1.tasks.benchmarks import Questions
from jaxs1.tasks.graders import Grader

Sample = Mapping[str, Any]
RESULTS = "results.json"


def results_of(
    points: Sequence[Point],
    questions: Questions,
    n: int,
    done: Mapping[Key, Sequence[Sample]],
    settings: Mapping[str, Any],
    name: str,
) -> dict[str, Any]:
    """Everything that is reported.

    Args:
        points: of the sweep
        questions: all of them have their samples in `done`
        n: samples of a question
        done: graded samples by request
        settings: what all samples share
        name: of the model, for people
    """
    natural = uninstructed(points)
    usual = _mean_thinking(natural, questions, n, done) if natural else None
    rows = [_point(point, questions, n, done, usual) for point in points]
    methods = {
        method: _method([row for row in rows if row["method"] == method])
        for method in dict.fromkeys(point.method for point in points)
    }
    return {
        "name": name,
        "task": questions.name,
        "questions": len(questions.items),
        "samples_per_question": n,
        "points": rows,
        "methods": methods,
        "settings": dict(settings),
    }


def read_results(path: str) -> dict[str, Any]:
    """The results of another evaluation, from its folder or its results.json.

    Raises:
        UserError: there are none.
    """
    file = Path(path) / RESULTS if Path(path).is_dir() else Path(path)
    try:
        results = json.loads(file.read_text())
        return {**results, "points": results["points"], "name": results["name"]}
    except OSError as error:
        raise UserError(
            f"compare={path}: cannot be read ({error.strerror}); give the folder of an evaluation"
        ) from None
    except (ValueError, LookupError, TypeError):
        raise UserError(f"compare={path}: holds no results of an evaluation") from None


def chosen(
    point: Point, question: int, n: int, done: Mapping[Key, Sequence[Sample]]
) -> list[tuple[Sample, int]]:
    """The samples [N] of a question at a point, and how many draws each took.

    Where a point rejects what is too long, a sample is the first draw that is not, else the last
    draw there is.
    """
    keys = [Key(point.key, question, attempt) for attempt in range(point.draws)]
    draws = [done[key] for key in itertools.takewhile(done.__contains__, keys)]
    taken = []
    for i in range(n):
        at = next((t for t, draw in enumerate(draws) if fits(point, draw[i])), len(draws) - 1)
        taken.append((draws[at][i], at + 1))
    return taken


def fits(point: Point, sample: Sample) -> bool:
    """Whether a point takes a sample: it thought no longer than accepted, or could not run."""
    if point.longest is None or sample["finish_reason"] == "error":
        return True
    return _tokens(sample) <= point.longest


def _point(
    point: Point,
    questions: Questions,
    n: int,
    done: Mapping[Key, Sequence[Sample]],
    usual: float | None,
) -> dict[str, Any]:
    """One row of the results."""
    taken_QN = [chosen(point, question.number, n, done) for question in questions.items]
    taken = [each for taken_N in taken_QN for each in taken_N]
    whole = [sample for sample, _ in taken if sample["finish_reason"] != "error"]
    right_QN = [[_is_right(point, s) for s, _ in taken_N] for taken_N in taken_QN]
    accuracy = _mean([right for right_N in right_QN for right in right_N])
    assert accuracy is not None
    low, high = metrics.wilson(accuracy * len(right_QN), len(right_QN))
    amounts = [_amount(point.bound, sample) for sample in whole]
    mean_amount = _mean(amounts)
    bound = point.bound.times(usual or 0.0)
    return {
        "method": point.method,
        "value": point.value,
        "accuracy": accuracy,
        "low": low,
        "high": high,
        "right": sum(map(sum, right_QN)),
        "samples": len(taken),
        "thinking_tokens": _mean([_tokens(sample) for sample in whole]),
        "answer_tokens": _mean([sample["usage"]["answer_tokens"] for sample in whole]),
        "waits": _mean([_count(sample, "wait") for sample in whole]),
        "draws": _mean([draws for _, draws in taken]),
        "bound": {
            "low": bound.low,
            "high": None if math.isinf(bound.high) else bound.high,
            "unit": bound.unit,
        },
        "amount": mean_amount,
        "within_bound": mean_amount is not None and bound.holds(mean_amount),
        "samples_within_bound": None
        if point.bound.relative
        else _mean([bound.holds(amount) for amount in amounts]),
        "thinking_ended_by": _counts(whole, "thinking_ended_by"),
        "finish_reason": _counts([sample for sample, _ in taken], "finish_reason"),
        "too_long": sum(not fits(point, sample) for sample in whole),
        "notes": sum(sample["note"] is not None for sample in whole),
        **_votes(
            [
                [s["prediction"] if fits(point, s) else None for s, _ in taken_N]
                for taken_N in taken_QN
            ],
            right_QN,
            questions,
            n,
        ),
    }


def _votes(
    prediction_QN: Sequence[Sequence[str | None]],
    right_QN: Sequence[Sequence[bool]],
    questions: Questions,
    n: int,
) -> dict[str, dict[str, float | None]]:
    """Accuracy of the majority among the first k samples, and how often any of them is right."""
    grader: Grader = questions.grader
    majority, anyone = {}, {}
    for k in metrics.vote_sizes(n):
        winner_Q = [metrics.vote(prediction_N[:k], grader.same) for prediction_N in prediction_QN]
        majority[str(k)] = _mean(
            [
                grader.is_right(winner, question.gold)
                for winner, question in zip(winner_Q, questions.items, strict=True)
            ]
        )
        anyone[str(k)] = _mean([any(right_N[:k]) for right_N in right_QN])
    return {"majority": majority, "any": anyone}


def _method(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The measures of one method of controlling, over its points."""
    runs = [
        metrics.Run(row["thinking_tokens"], row["accuracy"])
        for row in rows
        if row["thinking_tokens"] is not None
    ]
    bounded = [row for row in rows if row["bound"]["low"] > 0 or row["bound"]["high"] is not None]
    return {
        "runs": len(rows),
        "control": metrics.control([row["within_bound"] for row in bounded]),
        "control_of_samples": _mean(
            [
                row["samples_within_bound"]
                for row in bounded
                if row["samples_within_bound"] is not None
            ]
        ),
        "scaling_per_1000_tokens": metrics.scaling(runs, metrics.per_thousand),
        "scaling_per_doubling": metrics.scaling(runs, metrics.per_doubling),
        "performance": metrics.performance(runs),
    }


def _is_right(point: Point, sample: Sample) -> bool:
    return bool(sample["correct"]) and fits(point, sample)


def _mean_thinking(
    point: Point, questions: Questions, n: int, done: Mapping[Key, Sequence[Sample]]
) -> float | None:
    taken = [s for q in questions.items for s, _ in chosen(point, q.number, n, done)]
    return _mean([_tokens(sample) for sample in taken if sample["finish_reason"] != "error"])


def _tokens(sample: Sample) -> int:
    return sample["usage"]["thinking_tokens"]


def _amount(bound: Bound, sample: Sample) -> int:
    return sample["steps"] if bound.unit == "steps" else _tokens(sample)


def _count(sample: Sample, kind: str) -> int:
    return sum(entry["kind"] == kind for entry in sample["interventions"])


def _counts(samples: Sequence[Sample], name: str) -> dict[str, int]:
    return dict(sorted(Counter(sample[name] for sample in samples).items()))


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
