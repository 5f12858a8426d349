"""Measures of the s1 paper, confidence intervals, paired comparisons, and votes.

A run is one point of a sweep. These are pure functions of numbers, without models and tasks.
Letters: Q questions, N samples of a question.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats


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
    return max(0.0, centre - half), min(1.0, centre + half)  # only rounding leads beyond


@dataclass(frozen=True)
class Comparison:
    """A setting compared with a reference on the same questions.

    Args:
        difference: Accuracy minus that of the reference, -1 to 1
        low: Lower end of the 95 % interval of the difference
        high: Upper end of the 95 % interval of the difference
        p_value: Two-sided p-value of no difference
        gained: Questions with more correct samples than at the reference
        lost: Questions with fewer correct samples than at the reference
    """

    difference: float
    low: float
    high: float
    p_value: float
    gained: int
    lost: int


def compare(
    right_QN: Sequence[Sequence[bool]], reference_QN: Sequence[Sequence[bool]]
) -> Comparison:
    """Compare two settings by the questions that both answered.

    With one sample per question: McNemar's exact test and `newcombe`'s interval. With more, the
    samples of a question are not independent, so the paired t-test and t interval are taken over
    the questions' mean differences (Miller 2024, arXiv 2411.00640).

    Args:
        right_QN: Whether each sample of each question is correct
        reference_QN: The same at the reference, questions in the same order
    """
    sign_Q = [sum(a) - sum(b) for a, b in zip(right_QN, reference_QN, strict=True)]
    gained, lost = sum(d > 0 for d in sign_Q), sum(d < 0 for d in sign_Q)
    if all(len(right_N) == 1 for right_N in right_QN):
        both = sum(a[0] and b[0] for a, b in zip(right_QN, reference_QN, strict=True))
        low, high = newcombe(both, gained, lost, len(sign_Q) - both - gained - lost)
        return Comparison(
            (gained - lost) / len(sign_Q), low, high, mcnemar(gained, lost), gained, lost
        )
    difference_Q = np.asarray(sign_Q) / len(right_QN[0])
    mean = float(difference_Q.mean())
    if np.ptp(difference_Q) == 0:  # no variance to estimate an interval from: the sign test
        return Comparison(mean, mean, mean, mcnemar(gained, lost), gained, lost)
    test = stats.ttest_1samp(difference_Q, 0.0)
    low, high = map(float, test.confidence_interval(0.95))
    return Comparison(mean, low, high, float(test.pvalue), gained, lost)


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided p-value of McNemar's exact test: each discordant pair is a fair coin.

    Args:
        gained: Pairs that only the first setting has right
        lost: Pairs that only the second setting has right
    """
    return float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def newcombe(both: int, first: int, second: int, neither: int) -> tuple[float, float]:
    """95 % interval of the difference of two paired proportions (Newcombe 1998, method 10).

    The Wilson intervals of the two proportions, combined with a continuity-corrected estimate of
    their correlation.

    Args:
        both: Pairs that both have right
        first: Pairs that only the first has right
        second: Pairs that only the second has right
        neither: Pairs that neither has right
    """
    n = both + first + second + neither
    p1, p2 = (both + first) / n, (both + second) / n
    low1, high1 = wilson(both + first, n)
    low2, high2 = wilson(both + second, n)
    product = (both + first) * (second + neither) * (both + second) * (first + neither)
    covariance = float(both * neither - first * second)
    if covariance > 0:
        covariance = max(covariance - n / 2, 0.0)
    correlation = covariance / math.sqrt(product) if product else 0.0

    def half(a: float, b: float) -> float:
        return math.sqrt(max(a * a - 2 * correlation * a * b + b * b, 0.0))

    difference = p1 - p2
    return difference - half(p1 - low1, high2 - p2), difference + half(p2 - low2, high1 - p1)


def control(within_bound: Sequence[bool]) -> float | None:
    """Share of runs whose mean amount of thinking is within its bound (s1, equation 1).

    Args:
        within_bound: For each run, whether a_min <= a <= a_max; the result is None without runs
    """
    return sum(within_bound) / len(within_bound) if within_bound else None


def scaling(runs: Sequence[Run], scale: Callable[[float], float] = float) -> float | None:
    """Mean slope over all pairs of runs, (f(b) - f(a)) / (b - a) with b > a (s1, equation 2).

    A slope per doubling fits the paper's table better than one per token; report both.

    Args:
        runs: Runs of one method
        scale: Scale of the tokens: `per_thousand` or `per_doubling`

    Returns:
        Accuracy per unit of the scale; None if no two runs differ in tokens. Runs without
        thinking cannot be placed on a scale of doublings and are left out of it.
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
        answers: Answers of the samples in order; None, a sample without answer, is no vote
        same: Whether two answers are equivalent; an answer joins the first group whose first
            answer is equivalent

    Returns:
        The first answer of the largest group; of equally large groups, the one that began first;
        None without votes.
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
    """Numbers of samples for which a vote is reported: 1, 2, 4, ... and n."""
    return sorted({*(2**i for i in range(n.bit_length()) if 2**i <= n), n})
