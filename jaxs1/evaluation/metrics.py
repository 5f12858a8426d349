"""What a set of graded runs says: the measures of the s1 paper, intervals, and votes.

A run is one point of a sweep: `a` is its mean number of thinking tokens, `f` its accuracy, 0 to 1.
Pure functions of numbers; nothing is known of models and of tasks.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from scipy.stats import binomtest


class Run(NamedTuple):
    """One run: its mean thinking [tokens] and its accuracy, 0 to 1."""

    a: float
    f: float


def wilson(successes: float, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Score interval of a proportion, 95 % with the given z (Wilson 1927); (0, 1) of no trials."""
    if trials == 0:
        return 0.0, 1.0
    p, n = successes / trials, trials
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)  # beyond by rounding only


def control(kept: Sequence[bool]) -> float | None:
    """Share of runs whose mean amount of thinking is within its bounds (s1, equation 1).

    Args:
        kept: for each run, whether a_min <= a <= a_max; None of no runs
    """
    return sum(kept) / len(kept) if kept else None


def scaling(runs: Sequence[Run], scale: Callable[[float], float] = float) -> float | None:
    """Mean slope over all pairs of runs, (f(b) - f(a)) / (b - a) with b > a (s1, equation 2).

    The paper's table fits a slope per doubling better than one per token; report both.

    Args:
        runs: of one way of controlling
        scale: of the tokens: `per_thousand` or `per_doubling`

    Returns:
        share of 1 per unit of the scale; None where no two runs differ in tokens. Runs without
        thinking have no place on a scale of doublings and are left out of it.
    """
    placed = []
    for run in sorted(runs):
        if run.a > 0 or scale is not per_doubling:
            placed.append((scale(run.a), run.f))
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
    return max((run.f for run in runs), default=None)


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


class Paired(NamedTuple):
    """Two settings on the same questions.

    Args:
        difference: accuracy of the second less that of the first, -1 to 1
        low, high: its 95 % interval
        p: McNemar's exact two-sided test that both are equally good
    """

    difference: float
    low: float
    high: float
    p: float


def paired(first: Sequence[bool], second: Sequence[bool], z: float = 1.96) -> Paired:
    """Compare two settings by the questions on which they differ.

    Args:
        first, second: whether each of the same questions is answered right, in the same order
        z: of the interval; 1.96 for 95 %

    Raises:
        ValueError: there are not as many answers of one as of the other, or none at all.
    """
    outcomes = Counter(zip(first, second, strict=True))
    both, lost, won, neither = (
        outcomes[pair] for pair in ((True, True), (True, False), (False, True), (False, False))
    )
    if not outcomes:
        raise ValueError("paired: no questions to compare")
    low, high = paired_interval(both, won, lost, neither, z)
    return Paired((won - lost) / len(first), low, high, mcnemar(won, lost))


def mcnemar(won: int, lost: int) -> float:
    """Exact two-sided p-value of McNemar's test: of the pairs that differ, half go each way.

    Args:
        won, lost: questions that only the one, and only the other, answers right
    """
    return float(binomtest(won, won + lost).pvalue) if won + lost else 1.0


def paired_interval(
    both: int, won: int, lost: int, neither: int, z: float = 1.96
) -> tuple[float, float]:
    """Interval of the difference of two proportions of the same questions.

    Newcombe 1998 (Statistics in Medicine 17, 2635-2650), method 10: Wilson's intervals of the two,
    put together with their correlation.

    Args:
        both, won, lost, neither: questions that both, only the one, only the other, or neither
            answers right; the difference is (won - lost) / all
        z: 1.96 for 95 %
    """
    n = both + won + lost + neither
    p, q = (both + won) / n, (both + lost) / n
    (p_low, p_high), (q_low, q_high) = wilson(both + won, n, z), wilson(both + lost, n, z)
    margins = (both + won) * (lost + neither) * (both + lost) * (won + neither)
    covariance = float(both * neither - won * lost)
    if covariance > 0:
        covariance = max(covariance - n / 2, 0)  # a correction for continuity
    phi = covariance / math.sqrt(margins) if margins else 0.0

    def together(a: float, b: float) -> float:
        return math.sqrt(a * a - 2 * phi * a * b + b * b)

    return p - q - together(p - p_low, q_high - q), p - q + together(p_high - p, q - q_low)
