"""Which rows of a filtered pool become the data set. Pure functions of numpy columns and a seed.

The same rows and seed give the same selection on any machine, in whatever order the rows come:
randomness is the raw output of PCG64, which numpy keeps stable for ever (NEP 19; it does not
promise that for `choice`), used in integer arithmetic only; subjects are ordered by name, rows by
length and then by question key. One draw takes one word, or more where `Words.rank` draws again.

Letters: N rows of the pool.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Words:
    """A seeded stream of 64 fair bits at a time."""

    def __init__(self, seed: int) -> None:
        self._source = np.random.PCG64(seed)

    def below(self, n: int) -> int:
        """A number from 0 to n-1, each as likely (to 2^-64)."""
        return int(self._source.random_raw()) * n >> 64

    def weighted(self, weights: Sequence[int]) -> int:
        """A position in `weights`, as likely as its weight's share."""
        left = self.below(sum(weights))
        for position, weight in enumerate(weights):
            if left < weight:
                return position
            left -= weight
        raise AssertionError("the draw lies below the sum of the weights")

    def rank(self, n: int) -> int:
        """A rank from 0 to n-1, with probability proportional to 2^(-rank).

        The zeros in front of the first one among fair bits are distributed so; drawn again where
        they are n or more.
        """
        while True:
            zeros = 0
            while not (word := int(self._source.random_raw())):
                zeros += 64
            zeros += 64 - word.bit_length()
            if zeros < n:
                return zeros


def benchmark_weights(
    subject_N: np.ndarray, aime_N: np.ndarray, gpqa_N: np.ndarray
) -> dict[int, int]:
    """Subject -> AIME's rows in it + GPQA's, these rescaled to half of AIME's total.

    The weights are scaled to whole numbers (by twice GPQA's total), which changes no share.
    """
    aime, gpqa = int(aime_N.sum()), int(gpqa_N.sum())
    weights = {}
    for subject in np.unique(subject_N[aime_N | gpqa_N]).tolist():
        here = subject_N == subject
        of_aime, of_gpqa = int((here & aime_N).sum()), int((here & gpqa_N).sum())
        weights[subject] = 2 * max(gpqa, 1) * of_aime + aime * of_gpqa
    return weights


def diversity(
    key_N: np.ndarray,
    subject_N: np.ndarray,
    length_N: np.ndarray,
    seeds_N: np.ndarray,
    weights: dict[int, int],
    *,
    size: int,
    uniform_until: int,
    seed: int,
) -> tuple[np.ndarray, int]:
    """s1K: a subject, then a long trace of it, again and again.

    Until `uniform_until` rows are selected every subject is as likely; after that as likely as its
    weight. Within a subject, the longest trace first, rank r has a probability proportional to
    2^(-r). What was drawn leaves its subject; an empty subject leaves the draw. Seeds are selected
    from the start and stay in the draw: drawing one adds nothing. Where every subject with a weight
    is empty, the rest is drawn from all subjects alike. Source: s1, section 2.2, data/filter.ipynb.

    Args:
        key_N: question keys
        subject_N: subjects, numbered in the order of their names
        length_N: of the traces [tokens]
        seeds_N: True where a row is selected for sure
        weights: of subjects from `uniform_until` on, whole numbers
        size: rows to select; at most N
        uniform_until: rows after which `weights` apply
        seed: of the draws

    Returns:
        True where a row is selected; rows that were drawn alike for want of subjects with a weight
    """
    assert seeds_N.sum() <= size <= len(key_N)
    ranked = _ranked(key_N, subject_N, length_N)
    words, chosen_N = Words(seed), seeds_N.copy()
    subjects, weighted = list(ranked), [s for s in ranked if weights.get(s)]
    count, alike = int(chosen_N.sum()), 0
    while count < size:
        by_weight = count >= uniform_until and bool(weighted)
        if by_weight:
            subject = weighted[words.weighted([weights[s] for s in weighted])]
        else:
            subject = subjects[words.below(len(subjects))]
        rank = words.rank(len(ranked[subject]))
        row = ranked[subject][rank]
        if not chosen_N[row]:
            alike += count >= uniform_until and not by_weight
            count += 1
        chosen_N[row] = True
        ranked[subject] = np.delete(ranked[subject], rank)
        if not len(ranked[subject]):
            subjects.remove(subject)
            if subject in weighted:
                weighted.remove(subject)
    return chosen_N, alike


def longest(key_N: np.ndarray, length_N: np.ndarray, *, size: int) -> np.ndarray:
    """True for the `size` rows with the longest traces (the paper's 1K-longest)."""
    return _mask(len(key_N), np.lexsort((key_N, -length_N))[:size])


def random(key_N: np.ndarray, *, size: int, seed: int) -> np.ndarray:
    """True for `size` rows, any as likely (the paper's 1K-random)."""
    words, picked = Words(seed), set[int]()
    while len(picked) < size:
        picked.add(words.below(len(key_N)))
    return _mask(len(key_N), np.argsort(key_N, kind="stable")[sorted(picked)])


def diverse(key_N: np.ndarray, subject_N: np.ndarray, *, size: int, seed: int) -> np.ndarray:
    """True for `size` rows: a subject, then a row of it, uniformly (the paper's 1K-diverse)."""
    rows = _ranked(key_N, subject_N, np.zeros(len(key_N), np.int64))
    words, picked, subjects = Words(seed), list[int](), list(rows)
    while len(picked) < size:
        subject = subjects[words.below(len(subjects))]
        position = words.below(len(rows[subject]))
        picked.append(int(rows[subject][position]))
        rows[subject] = np.delete(rows[subject], position)
        if not len(rows[subject]):
            subjects.remove(subject)
    return _mask(len(key_N), picked)


def _ranked(
    key_N: np.ndarray, subject_N: np.ndarray, length_N: np.ndarray
) -> dict[int, np.ndarray]:
    """Subject -> its rows from the longest trace to the shortest; subjects by name."""
    order = np.lexsort((key_N, -length_N, subject_N))
    names, starts = np.unique(subject_N[order], return_index=True)
    return dict(zip(names.tolist(), np.split(order, starts[1:]), strict=True))


def _mask(n: int, rows: Sequence[int] | np.ndarray) -> np.ndarray:
    mask_N = np.zeros(n, bool)
    mask_N[rows] = True
    return mask_N
