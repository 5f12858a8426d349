"""Measures against numbers worked out by hand, and against the table of the s1 paper."""

import itertools
import math

import pytest

from jaxs1.evaluation import metrics
from jaxs1.evaluation.metrics import Run
from jaxs1.tasks.graders import GRADERS


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [  # Newcombe 1998, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0),
    ],
)
def test_wilson(successes, trials, low, high):
    assert metrics.wilson(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_s1s_aime_figures_are_questions_of_30_and_lie_in_each_others_interval():
    """2, 4, 6 Waits: 53.3, 56.7, 56.7; without: 50.0. One question more is no proof."""
    shares = {15: 50.0, 16: 53.3, 17: 56.7}
    for right, percent in shares.items():
        assert round(100 * right / 30, 1) == percent
        low, high = metrics.wilson(right, 30)
        assert all(low < other / 30 < high for other in shares)


@pytest.mark.parametrize(
    ("won", "lost", "p"),
    [
        (12, 2, 0.0129),  # Armitage and Berry 1994, p. 127, two media for a culture
        (1, 7, 2 * 9 / 256),
        (0, 0, 1.0),
        (3, 3, 1.0),
        (0, 5, 2 / 32),
    ],
)
def test_mcnemar(won, lost, p):
    assert metrics.mcnemar(won, lost) == pytest.approx(p, abs=5e-5)
    assert metrics.mcnemar(lost, won) == metrics.mcnemar(won, lost)


@pytest.mark.parametrize("n", [1, 4, 9, 12])
def test_mcnemar_is_the_enumeration_of_all_signs(n):
    """Each question that differs goes one way or the other; count what is as uneven or more."""
    signs = [sum(way) for way in itertools.product([0, 1], repeat=n)]
    for won in range(n + 1):
        uneven = sum(abs(2 * other - n) >= abs(2 * won - n) for other in signs)
        assert metrics.mcnemar(won, n - won) == pytest.approx(uneven / 2**n)


def test_paired_interval():
    """Complete response before and after a therapy: Cavo 2012, in chapter 8 of Fagerland, Lydersen
    and Laake, Statistical Analysis of Contingency Tables (Newcombe's square-and-add)."""
    found = metrics.paired_interval(59, 6, 16, 80)
    assert found == pytest.approx((-0.1186, -0.0046), abs=5e-5)
    low, high = metrics.paired_interval(59, 16, 6, 80)
    assert (-high, -low) == pytest.approx(found)


def test_paired_interval_covers_the_difference():
    """By enumeration of all tables of 20 questions: never far below 95 %, and that on average."""
    n, shares = 20, []
    for cells in [(0.4, 0.2, 0.1, 0.3), (0.25,) * 4, (0.6, 0.15, 0.05, 0.2), (0.1, 0.3, 0.1, 0.5)]:
        covered = 0.0
        for both, won, lost in itertools.product(range(n + 1), repeat=3):
            if (neither := n - both - won - lost) < 0:
                continue
            table = (both, won, lost, neither)
            ways = math.factorial(n) / math.prod(map(math.factorial, table))
            low, high = metrics.paired_interval(*table)
            if low <= cells[1] - cells[2] <= high:
                covered += ways * math.prod(p**k for p, k in zip(cells, table, strict=True))
        shares.append(covered)
    assert min(shares) > 0.93 and sum(shares) / len(shares) > 0.945, shares


def test_paired_of_answers():
    first = [True] * 59 + [False] * 6 + [True] * 16 + [False] * 80
    second = [True] * 65 + [False] * 96
    found = metrics.paired(first, second)
    assert found.difference == pytest.approx(-10 / 161)
    assert (found.low, found.high) == pytest.approx((-0.1186, -0.0046), abs=5e-5)
    assert found.p == metrics.mcnemar(6, 16)
    assert metrics.paired(first, first)[0] == 0 and metrics.paired(first, first).p == 1
    for wrong in ([True], []):
        with pytest.raises(ValueError, match=r"zip|no questions"):
            metrics.paired(wrong, [])


def test_paired_is_sharper_than_two_intervals():
    """30 questions lost and 70 won of 1,000: a difference that two Wilson intervals do not show."""
    _, high = metrics.wilson(470, 1000)
    low, _ = metrics.wilson(510, 1000)
    assert low < high
    assert metrics.mcnemar(70, 30) < 0.001 and metrics.paired_interval(440, 70, 30, 460)[0] > 0.02


def test_control():
    assert metrics.control([True, True, False, False, False]) == 0.4  # token-conditional: 40
    assert metrics.control([]) is None


def test_scaling_is_the_mean_slope_of_all_pairs():
    runs = [Run(4000, 0.5), Run(1000, 0.2), Run(2000, 0.4)]  # 0.2/1000, 0.3/3000, 0.1/2000
    per_thousand = (0.2 + 0.1 + 0.05) / 3
    assert metrics.scaling(runs, metrics.per_thousand) == pytest.approx(per_thousand)
    assert metrics.scaling(runs) == pytest.approx(per_thousand / 1000)
    assert metrics.scaling(runs, metrics.per_doubling) == pytest.approx((0.2 + 0.15 + 0.1) / 3)


def test_scaling_of_runs_that_do_not_differ():
    assert metrics.scaling([Run(10, 0.1)]) is None
    assert metrics.scaling([Run(10, 0.1), Run(10, 0.3)]) is None
    assert metrics.scaling([Run(0, 0.1), Run(10, 0.3)], metrics.per_doubling) is None
    assert metrics.scaling([Run(0, 0.1), Run(10, 0.3)]) == pytest.approx(0.02)


def test_falling_accuracy_scales_below_zero():
    """Rejection sampling, -35: what is short is right more often."""
    assert metrics.scaling([Run(100, 0.9), Run(200, 0.6), Run(400, 0.5)]) < 0


def test_performance():
    assert metrics.performance([Run(1, 0.5), Run(9, 0.2)]) == 0.5
    assert metrics.performance([]) is None


@pytest.mark.parametrize(
    ("answers", "winner"),
    [
        (["1", "2", "2"], "2"),
        (["0.5", "3", "\\frac{1}{2}"], "0.5"),  # equal answers vote together
        (["2", "1", "1", "2"], "2"),  # a tie: seen first
        (["1", None, None], "1"),  # nothing is no vote
        ([None], None),
        ([], None),
    ],
)
def test_vote(answers, winner):
    assert metrics.vote(answers, GRADERS["math"].same) == winner


def test_vote_sizes():
    assert [metrics.vote_sizes(n) for n in (1, 2, 3, 8, 12)] == [
        [1], [1, 2], [1, 2, 3], [1, 2, 4, 8], [1, 2, 4, 8, 12]
    ]  # fmt: skip


def test_scales():
    assert metrics.per_thousand(2500) == 2.5
    assert metrics.per_doubling(8) - metrics.per_doubling(4) == 1
    assert math.isclose(metrics.per_doubling(1024), 10)
