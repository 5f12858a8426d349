"""Accuracy on held-out questions at fixed budgets, greedily, compared with that before training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxs1.decoding.params import Request
from jaxs1.evaluation.metrics import compare, wilson
from jaxs1.rl.rewards import Graded, grade
from jaxs1.rl.rollout import RolloutEngine
from jaxs1.tasks.benchmarks import Question, Questions
from jaxs1.training import distributed


class Point(NamedTuple):
    """Answers to all questions at one budget.

    Args:
        budget: thinking budget [tokens]
        right: whether each answer is right
        thinking: mean thinking [tokens]
    """

    budget: int
    right: list[bool]
    thinking: float


def evaluate(
    engine: RolloutEngine,
    questions: Questions,
    budgets: Sequence[int],
    request: Callable[[str, int], Request],
) -> list[Point]:
    """Answer and grade all questions at all budgets; every process some of them.

    Args:
        engine: loaded with the weights
        questions: held-out questions
        budgets: thinking budgets [tokens]
        request: the request of a question's text and a budget
    """
    tokenizer = engine.engine.tokenizer

    def answer(jobs: Sequence[tuple[int, Question]]) -> list[Graded]:
        done = engine.complete([request(question.text, budget) for budget, question in jobs])
        return [
            grade(completions[0], question, questions.grader, tokenizer)
            for completions, (_, question) in zip(done, jobs, strict=True)
        ]

    jobs = [(budget, question) for budget in budgets for question in questions.items]
    graded = distributed.share(jobs, answer)
    points = []
    for i, budget in enumerate(budgets):
        part = graded[i * len(questions.items) : (i + 1) * len(questions.items)]
        thinking = sum(g.completion.usage["thinking_tokens"] for g in part) / len(part)
        points.append(Point(budget, [g.outcome == "right" for g in part], thinking))
    return points


def summary(points: Sequence[Point], before: Sequence[Point] | None) -> dict[str, float]:
    """Metrics by name: accuracy with its Wilson interval, mean thinking, and the paired difference.

    Args:
        points: the newest evaluation
        before: that before the first step, on the same questions
    """
    values: dict[str, float] = {}
    earlier = {point.budget: point for point in before or ()}
    for point in points:
        n = len(point.right)
        low, high = wilson(sum(point.right), n)
        name = f"held_out/{point.budget}"
        values[f"{name}/accuracy"] = sum(point.right) / n
        values |= {f"{name}/low": low, f"{name}/high": high, f"{name}/thinking": point.thinking}
        reference = earlier.get(point.budget)
        if reference is not None and len(reference.right) == n:
            pairs = ([[x] for x in point.right], [[x] for x in reference.right])
            found = compare(*pairs)
            values[f"{name}/difference"] = found.difference
            values[f"{name}/p_value"] = found.p_value
    return values


def line(points: Sequence[Point], before: Sequence[Point] | None) -> str:
    """The evaluation in one line for people."""
    values = summary(points, before)
    parts = []
    for point in points:
        name = f"held_out/{point.budget}"
        gained = values.get(f"{name}/difference")
        change = "" if gained is None else f", {100 * gained:+.1f}"
        parts.append(
            f"{point.budget}: {values[f'{name}/accuracy']:.1%} ({point.thinking:.0f}{change})"
        )
    return "   ".join(parts)


def as_row(step: int, points: Sequence[Point]) -> dict[str, Any]:
    """A line of held_out.jsonl; `points_of` reads it."""
    return {"step": step, "points": [point._asdict() for point in points]}


def points_of(row: dict[str, Any]) -> list[Point]:
    """The points of a line of held_out.jsonl."""
    return [Point(**point) for point in row["points"]]
