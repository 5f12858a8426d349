"""Measures against numbers worked out by hand, and against the table of the s1 paper."""

import itertools
import math
from fractions import Fraction

import numpy as np
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


def test_s1s_aime_figures_are_questions_of_30_within_each_others_interval():
    """2, 4, 6 Waits: 53.3, 56.7, 56.7; without: 50.0. One question more is no proof."""
    shares = {15: 50.0, 16: 53.3, 17: 56.7}
    for right, percent in shares.items():
        assert round(100 * right / 30, 1) == percent
        low, high = metrics.wilson(right, 30)
        assert all(low < other / 30 < high for other in shares)


@pytest.mark.parametrize(
    ("both", "first", "second", "neither", "low", "high"),
    [  # pairs of Altman et al. 2000, table 6.2; Bentur et al. 2009 in Fagerland et al. 2014
        (14, 5, 0, 22, 0.011, 0.226),
        (1, 1, 7, 12, -0.507, -0.026),
    ],
)
def test_newcombe_as_published(both, first, second, neither, low, high):
    interval = metrics.newcombe(both, first, second, neither)
    assert interval == pytest.approx((low, high), abs=5e-4)


def test_newcombe_of_swapped_settings_and_without_discordant_pairs():
    low, high = metrics.newcombe(20, 12, 2, 16)
    assert metrics.newcombe(20, 2, 12, 16) == pytest.approx((-high, -low))
    low, high = metrics.newcombe(30, 0, 0, 0)
    assert low == -high and 0 < high < 0.12
    low, high = metrics.newcombe(15, 0, 0, 15)
    assert low < 0 < high


@pytest.mark.parametrize("shares", [(0.4, 0.1, 0.1, 0.4), (0.3, 0.25, 0.05, 0.4)])
def test_newcombe_covers_the_true_difference(shares):
    """Every table of 25 pairs, weighed by its probability: close to 95 %, not far below."""
    n, covered, total = 25, 0.0, 0.0
    for a, b, c in itertools.product(range(n + 1), repeat=3):
        if (d := n - a - b - c) < 0:
            continue
        orders = math.factorial(n) // math.prod(map(math.factorial, (a, b, c, d)))
        chance = orders * math.prod(s**k for s, k in zip(shares, (a, b, c, d), strict=True))
        low, high = metrics.newcombe(a, b, c, d)
        total += chance
        covered += chance * (low <= shares[1] - shares[2] <= high)
    assert total == pytest.approx(1)
    assert 0.94 < covered < 0.98


@pytest.mark.parametrize(
    ("gained", "lost", "p_value"),
    [  # Armitage and Berry 1994, p. 127; Bentur et al. 2009 in Fagerland et al. 2013
        (12, 2, 0.0129),
        (1, 7, 0.0703),
    ],
)
def test_mcnemar_as_published(gained, lost, p_value):
    assert metrics.mcnemar(gained, lost) == pytest.approx(p_value, abs=5e-5)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (3, 3), (5, 1), (0, 6), (9, 2), (2, 11)])
def test_mcnemar_by_enumeration(gained, lost):
    """All signs of the discordant pairs are equally likely: count those as extreme."""
    n, observed = gained + lost, abs(gained - lost)
    signs = itertools.product((-1, 1), repeat=n)
    extreme = sum(abs(sum(each)) >= observed for each in signs)
    assert metrics.mcnemar(gained, lost) == pytest.approx(float(Fraction(extreme, 2**n)))


def test_compare_single_samples():
    right = [[True]] * 9 + [[False]] * 6 + [[True]] * 5
    reference = [[True]] * 7 + [[False]] * 2 + [[False]] * 5 + [[True]] + [[True]] * 5
    compared = metrics.compare(right, reference)
    assert (compared.gained, compared.lost) == (2, 1)
    assert compared.difference == pytest.approx(14 / 20 - 13 / 20)
    assert (compared.low, compared.high) == metrics.newcombe(12, 2, 1, 5)
    assert compared.p_value == 1.0


def test_compare_several_samples_by_the_formula_of_the_paired_t_test():
    rng = np.random.default_rng(0)
    right, reference = (rng.random((40, 4)) < p for p in (0.7, 0.5))
    compared = metrics.compare(right.tolist(), reference.tolist())
    d = right.mean(1) - reference.mean(1)
    standard_error = d.std(ddof=1) / math.sqrt(40)
    t = 2.0226909  # 97.5 % of Student's distribution with 39 degrees of freedom, from a table
    assert compared.difference == pytest.approx(d.mean())
    assert compared.low == pytest.approx(d.mean() - t * standard_error, rel=1e-6)
    assert compared.high == pytest.approx(d.mean() + t * standard_error, rel=1e-6)
    assert (compared.p_value < 0.05) == (compared.low > 0 or compared.high < 0)
    assert compared.gained == (d > 0).sum() and compared.lost == (d < 0).sum()


def test_compare_settings_that_do_not_differ():
    for n in (1, 3):
        same = [[True] * n, [False] * n] * 5
        compared = metrics.compare(same, same)
        assert compared.difference == 0 and compared.p_value == 1
        assert compared.low <= 0 <= compared.high


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
