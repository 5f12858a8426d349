"""The draws follow the rules' probabilities, and depend on nothing but rows and seed."""

import math

import numpy as np
import pytest

from jaxs1.curation import selection
from jaxs1.curation.selection import RandomBits, benchmark_weights, diversity

SEEDS = 200
#: Of a binomial's mean; with fixed seeds a test is either right or wrong, never flaky.
SIGMAS = 4.5


def assert_binomial(count, n, p, what):
    bound = SIGMAS * math.sqrt(n * p * (1 - p)) + 1
    assert abs(count - n * p) <= bound, (
        f"{what}: {count} of {n}, expected {n * p:.1f} +- {bound:.1f}"
    )


def pool(subjects, per_subject, seed=0):
    n = subjects * per_subject
    rng = np.random.default_rng(seed)
    key_N = rng.integers(2**63, size=n).astype(np.uint64)
    return key_N, np.arange(n) % subjects, rng.permutation(n)


def ranks(subject_N, length_N):
    """Rank of each row by length in its subject, the longest having 0."""
    rank_N = np.empty(len(subject_N), int)
    for subject in np.unique(subject_N):
        rows = np.flatnonzero(subject_N == subject)
        rank_N[rows[np.argsort(-length_N[rows])]] = np.arange(len(rows))
    return rank_N


def draw(key_N, subject_N, length_N, seeds_N, weights, size, seed, uniform_until=700):
    chosen_N, _ = diversity(
        key_N, subject_N, length_N, seeds_N, weights,
        size=size, uniform_until=uniform_until, seed=seed,
    )  # fmt: skip
    return chosen_N


def test_shares_of_subjects_and_the_switch_at_700():
    columns = pool(subjects=20, per_subject=900)
    subject_N = columns[1]
    none_N = np.zeros(len(subject_N), bool)
    weights = {2: 5, 3: 1, 11: 10, 19: 4}
    uniform, weighted = np.zeros(20, int), np.zeros(20, int)
    for seed in range(SEEDS):
        first = draw(*columns, none_N, weights, 700, seed)
        whole = draw(*columns, none_N, weights, 1000, seed)
        assert first.sum() == 700 and whole.sum() == 1000
        assert not (first & ~whole).any()  # the first 700 draws are the same
        uniform += np.bincount(subject_N[first], minlength=20)
        weighted += np.bincount(subject_N[whole & ~first], minlength=20)
    for subject in range(20):
        assert_binomial(uniform[subject], 700 * SEEDS, 1 / 20, f"subject {subject}, uniform")
        share = weights.get(subject, 0) / 20
        assert_binomial(weighted[subject], 300 * SEEDS, share, f"subject {subject}, weighted")
        assert weighted[subject] or not share


def test_one_row_before_and_after_the_switch():
    columns = pool(subjects=50, per_subject=40)
    none_N = np.zeros(2000, bool)
    outside = 0
    for seed in range(SEEDS):
        upto = {n: draw(*columns, none_N, {7: 1}, n, seed) for n in (699, 700, 701)}
        assert columns[1][upto[701] & ~upto[700]].tolist() == [7]
        outside += columns[1][upto[700] & ~upto[699]].tolist() != [7]
    assert outside > 0.9 * SEEDS


def test_shares_of_length_ranks():
    """The first draw from a subject takes rank r with probability 2^-(r+1) / (1 - 2^-n)."""
    rows = 5
    columns = pool(subjects=2000, per_subject=rows)
    rank_N = ranks(*columns[1:])
    counts, total = np.zeros(rows, int), 0
    for seed in range(SEEDS):
        chosen_N = draw(*columns, np.zeros(10_000, bool), {}, 500, seed)
        once = np.bincount(columns[1][chosen_N], minlength=2000) == 1
        rank = rank_N[chosen_N & once[columns[1]]]
        counts += np.bincount(rank, minlength=rows)
        total += len(rank)
    for rank in range(rows):
        p = 2.0 ** -(rank + 1) / (1 - 2.0**-rows)
        assert_binomial(counts[rank], total, p, f"rank {rank}")


def test_seeds_are_always_in_and_redrawing_one_changes_nothing():
    columns = pool(subjects=10, per_subject=300)
    subject_N, length_N = columns[1:]
    seeds_N = ranks(subject_N, length_N) < 30  # the likeliest ones: redrawn all the time
    for seed in range(SEEDS):
        chosen_N = draw(*columns, seeds_N, {0: 1}, 700, seed)
        assert chosen_N.sum() == 700
        assert chosen_N[seeds_N].all()
    only_seeds = draw(*columns, seeds_N, {0: 1}, 300, 0)
    assert (only_seeds == seeds_N).all()


def test_seeds_stay_in_the_pools():
    """One subject, the longest row is a seed: the next row is rank 1 only if the seed was drawn."""
    key_N, length_N = np.arange(3, dtype=np.uint64), np.array([30, 20, 10])
    seeds_N = np.array([True, False, False])
    # seed drawn (4/7), then the second against the third 2 : 1; or the second at once (2/7)
    p = 4 / 7 * 2 / 3 + 2 / 7
    n = 20_000
    second = sum(
        draw(key_N, np.zeros(3, int), length_N, seeds_N, {}, 2, seed)[1] for seed in range(n)
    )
    assert_binomial(second, n, p, "second row")


def test_empty_subjects_leave_the_draw_and_the_rest_is_drawn_alike():
    columns = pool(subjects=4, per_subject=25)
    none_N = np.zeros(100, bool)
    chosen_N, alike = diversity(*columns, none_N, {1: 1}, size=90, uniform_until=10, seed=1)
    assert chosen_N.sum() == 90
    of_1 = int((columns[1][draw(*columns, none_N, {1: 1}, 10, 1)] == 1).sum())
    assert alike == 90 - 10 - (25 - of_1)
    everything, _ = diversity(*columns, none_N, {}, size=100, uniform_until=100, seed=1)
    assert everything.all()


def test_benchmark_weights_by_hand():
    subject_N = np.array([0] * 6 + [1] * 3 + [2] * 4 + [3] * 5)
    aime_N = np.isin(np.arange(18), [0, 1, 2, 3, 4, 5, 6, 7])  # 6 of subject 0, 2 of subject 1
    gpqa_N = np.isin(np.arange(18), [8, 9, 10, 11])  # 1 of subject 1, 3 of subject 2
    weights = benchmark_weights(subject_N, aime_N, gpqa_N)
    total = sum(weights.values())
    # GPQA's 4 count as half of AIME's 8: 1 each
    assert {s: w / total for s, w in weights.items()} == {0: 6 / 12, 1: 3 / 12, 2: 3 / 12}
    none_N = np.zeros(18, bool)
    assert set(benchmark_weights(subject_N, aime_N, none_N)) == {0, 1}
    assert benchmark_weights(subject_N, none_N, none_N) == {}


@pytest.mark.parametrize("recipe", ["s1k", "random", "diverse", "longest"])
def test_order_of_rows_does_not_matter(recipe):
    key_N, subject_N, length_N = pool(subjects=7, per_subject=50)
    length_N = length_N // 10  # ties
    seeds_N = length_N == 3

    def chosen_keys(order):
        key, subject, length = key_N[order], subject_N[order], length_N[order]
        chosen = {
            "s1k": lambda: draw(key, subject, length, seeds_N[order], {1: 2, 4: 1}, 90, 5, 60),
            "random": lambda: selection.random(key, size=90, seed=5),
            "diverse": lambda: selection.diverse(key, subject, size=90, seed=5),
            "longest": lambda: selection.longest(key, length, size=90),
        }[recipe]()
        assert chosen.sum() == 90
        return set(key[chosen].tolist())

    shuffled = np.random.default_rng(1).permutation(350)
    assert chosen_keys(np.arange(350)) == chosen_keys(shuffled)


def test_ablations():
    key_N, subject_N, length_N = pool(subjects=10, per_subject=100)
    longest_N = selection.longest(key_N, length_N, size=100)
    assert set(length_N[longest_N].tolist()) == set(range(900, 1000))
    hits, subjects = np.zeros(1000, int), np.zeros(10, int)
    skewed_N = np.minimum(subject_N, 4)  # subject 4 has 600 rows, the others 100
    for seed in range(SEEDS):
        hits += selection.random(key_N, size=100, seed=seed)
        subjects += np.bincount(
            skewed_N[selection.diverse(key_N, skewed_N, size=50, seed=seed)], minlength=10
        )
    assert hits.sum() == 100 * SEEDS
    for row in range(1000):
        assert_binomial(hits[row], SEEDS, 0.1, f"row {row}")
    for subject in range(5):
        assert_binomial(subjects[subject], 50 * SEEDS, 1 / 5, f"subject {subject}")


def test_random_words_are_these_on_every_machine():
    words = RandomBits(0)
    drawn = [words.below(10**6) for _ in range(4)], [words.rank(50) for _ in range(8)]
    assert drawn == ([636961, 269786, 40973, 16527], [0, 0, 0, 0, 0, 0, 0, 8])
