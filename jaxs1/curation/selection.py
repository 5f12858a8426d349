"""Selection of rows from a filtered pool: pure functions of numpy columns and a seed.

The same rows and seed give the same selection on any machine and for any order of the rows: the
only randomness is the raw output of PCG64, which numpy guarantees to keep (NEP 19; it gives no such
guarantee for `choice`), used in integer arithmetic; subjects are ordered by name, rows by length,
then by question key. A draw takes one word of 64 bits, or more if `RandomBits.rank` draws again.

Letters: N rows of the pool.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class RandomBits:
    """A seeded stream of fair random bits, in 64-bit words."""

    def __init__(self, seed: int) -> None:
        self._source = np.random.PCG64(seed)

    def below(self, n: int) -> int:
        """A number from 0 to n-1, uniformly (up to 2^-64)."""
        return int(self._source.random_raw()) * n >> 64

    def weighted(self, weights: Sequence[int]) -> int:
        """A position in `weights`, with a probability proportional to its weight."""
        left = self.below(sum(weights))
        for position, weight in enumerate(weights):
            if left < weight:
                return position
            left -= weight
        raise AssertionError("the draw is below the sum of the weights")

    def rank(self, n: int) -> int:
        """A rank from 0 to n-1, with probability proportional to 2^(-rank).

        The number of zeros before the first one among fair bits has this distribution; n or more
        zeros are drawn again.
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
    """Subject -> its AIME rows plus its GPQA rows, the latter rescaled to half of AIME's total.

    The weights are scaled to integers (by twice GPQA's total), which leaves their shares unchanged.
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
    """Draw s1K: repeatedly a subject, then a row of it that favours long traces.

    Subjects are drawn uniformly until `uniform_until` rows are selected, then by their weights.
    Within a subject, rank r by length (0 is the longest) has a probability proportional to 2^(-r).
    A drawn row is removed from its subject, an empty subject from the draw. Seeds are selected from
    the start and remain in the draw: drawing one adds nothing. Once all subjects with a weight are
    empty, the rest is drawn from all subjects uniformly. Source: s1, section 2.2,
    data/filter.ipynb.

    Args:
        key_N: Question keys
        subject_N: Subjects, numbered in the order of their names
        length_N: Lengths of the traces [tokens]
        seeds_N: True for rows that are always selected
        weights: Subject -> its weight from `uniform_until` on, an integer
        size: Number of rows to select, at most N
        uniform_until: Number of selected rows from which on `weights` apply
        seed: Random seed

    Returns:
        True for selected rows; the number of rows drawn uniformly because no subject with a weight
        was left
    """
    assert seeds_N.sum() <= size <= len(key_N)
    ranked = _ranked(key_N, subject_N, length_N)
    bits, chosen_N = RandomBits(seed), seeds_N.copy()
    subjects, weighted = list(ranked), [s for s in ranked if weights.get(s)]
    count, unweighted = int(chosen_N.sum()), 0
    while count < size:
        by_weight = count >= uniform_until and bool(weighted)
        if by_weight:
            subject = weighted[bits.weighted([weights[s] for s in weighted])]
        else:
            subject = subjects[bits.below(len(subjects))]
        rank = bits.rank(len(ranked[subject]))
        row = ranked[subject][rank]
        if not chosen_N[row]:
            unweighted += count >= uniform_until and not by_weight
            count += 1
        chosen_N[row] = True
        ranked[subject] = np.delete(ranked[subject], rank)
        if not len(ranked[subject]):
            subjects.remove(subject)
            if subject in weighted:
                weighted.remove(subject)
    return chosen_N, unweighted


def longest(key_N: np.ndarray, length_N: np.ndarray, *, size: int) -> np.ndarray:
    """True for the `size` rows with the longest traces (the paper's 1K-longest)."""
    return _mask(len(key_N), np.lexsort((key_N, -length_N))[:size])


def random(key_N: np.ndarray, *, size: int, seed: int) -> np.ndarray:
    """True for `size` rows, drawn uniformly (the paper's 1K-random)."""
    bits, picked = RandomBits(seed), set[int]()
    while len(picked) < size:
        picked.add(bits.below(len(key_N)))
    return _mask(len(key_N), np.argsort(key_N, kind="stable")[sorted(picked)])


def diverse(key_N: np.ndarray, subject_N: np.ndarray, *, size: int, seed: int) -> np.ndarray:
    """True for `size` rows: a subject, then a row of it, both uniform (the paper's 1K-diverse)."""
    rows = _ranked(key_N, subject_N, np.zeros(len(key_N), np.int64))
    bits, picked, subjects = RandomBits(seed), list[int](), list(rows)
    while len(picked) < size:
        subject = subjects[bits.below(len(subjects))]
        position = bits.below(len(rows[subject]))
        picked.append(int(rows[subject][position]))
        rows[subject] = np.delete(rows[subject], position)
        if not len(rows[subject]):
            subjects.remove(subject)
    return _mask(len(key_N), picked)


def _ranked(
    key_N: np.ndarray, subject_N: np.ndarray, length_N: np.ndarray
) -> dict[int, np.ndarray]:
    """Subject -> its rows by descending length; subjects in the order of their names."""
    order = np.lexsort((key_N, -length_N, subject_N))
    names, starts = np.unique(subject_N[order], return_index=True)
    return dict(zip(names.tolist(), np.split(order, starts[1:]), strict=True))


def _mask(n: int, rows: Sequence[int] | np.ndarray) -> np.ndarray:
    mask_N = np.zeros(n, bool)
    mask_N[rows] = True
    return mask_N
