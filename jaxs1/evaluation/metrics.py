"""What a set of graded runs says: the measures of the s1 paper, intervals, and votes.

A run is one point of a sweep: `a` is its mean number of thinking tokens, `f` its accuracy, 0 to 1.
Pure functions of numbers; nothing is known of models and of tasks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Run(NamedTuple):
    """A run: one point of a sweep.

    Args:
        mean_tokens: Mean thinking per question [tokens]
        accuracy: Share of correct answers, 0 to 1
    """

    mean_tokens: float
    accuracy: float


def wilson(successes: float, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Score interval of a proportion, 95 % with the given z (Wilson 1927); (0, 1) of no trials."""
    if trials == 0:
        return 0.0, 1.0
    p, n = successes / trials, trials
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)  # beyond by rounding only


def control(within_bound: Sequence[bool]) -> float | None:
    """Share of runs whose mean amount of thinking is within its bounds (s1, equation 1).

    Args:
        within_bound: for each run, whether a_min <= a <= a_max; None of no runs
    """
    return sum(within_bound) / len(within_bound) if within_bound else None


def scaling(runs: Sequence[Run], scale: Callable[[float], float] = float) -> float | None:
    """Mean slope over all pairs of runs, (f(b) - f(a)) / (b - a) with b > a (s1, equation 2).

    The paper's table fits a slope per doubling better than one per token; report both.

    Args:
        runs: of one method of controlling
        scale: of the tokens: `per_thousand` or `per_doubling`

    Returns:
        share of 1 per unit of the scale; None where no two runs differ in tokens. Runs without
        thinking have no place on a scale of doublings and are left out of it.
    """
    placed = []
    for run in sorted(runs):
        if run.mean_tokens > 0 or scale is not per_doubling:
            placed.append((scale(run.mean_tokens), run.accuracy))
    slopes = [
        (late_f - early_f) / (late - early)
        for (early, early_f), (late, late_f) in itertools.combinations(placed, 2)
        if late > early
    ]
    return sum(slopes) / len(slopes) if slopes else None


def per_thousand(tokens: float) -> float:
    """A scale in units of 1,000 tokens."""
    return tokens / 1000


def per_doubling(tokens: float) -> float:
    """A scale on which a doubling of tokens is one unit."""
    return math.log2(tokens)


def performance(runs: Sequence[Run]) -> float | None:
    """The best accuracy of all runs (s1, equation 3)."""
    return max((run.accuracy for run in runs), default=None)


def vote(answers: Sequence[str | None], same: Callable[[str, str], bool]) -> str | None:
    """The answer that most samples give.

    Args:
        answers: of the samples in order; None where a sample gives none, which is no vote
        same: whether two answers say the same; an answer joins the first group whose first answer
            it equals

    Returns:
        the first answer of the largest group, of equally large ones that which was seen first;
        None where nobody answers.
    """
    groups: list[list[str]] = []
    for answer in answers:
        if answer is None:
            continue
        for group in groups:
            if same(group[0], answer):
                group.append(answer)
                break
        else:
            groups.append([answer])
    return max(groups, key=len)[0] if groups else None


def vote_sizes(n: int) -> list[int]:
    """How many samples a vote is shown for: 1, 2, 4, ... and n."""
    return sorted({*(2**i for i in range(n.bit_length()) if 2**i <= n), n})
