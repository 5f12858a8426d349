"""Lengths of the rows of a run's steps, estimated without reading its data.

Lengths have a log-normal distribution, by default one for s1K: 27.5M tokens in 5 epochs of 1,000
sequences are 5,500 on average; a spread of 0.7 is assumed, with which the longest of 16 sequences
has about 15,000.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxs1.data import packing

S1K_MEAN, S1K_SPREAD, S1K_EXAMPLES = 5500, 0.7, 1000


@dataclass(frozen=True)
class Workload:
    """The packed rows of all steps of a run.

    Args:
        steps: optimizer steps of the run
        gradient_accumulation_steps: micro-batches of a step
        rows: rows of a micro-batch
        lengths: row length of each step of an epoch [tokens]
        tokens: average tokens of a step, without padding
        pairs: average (query, key) pairs of causal attention within the sequences of a step
    """

    steps: int
    gradient_accumulation_steps: int
    rows: int
    lengths: tuple[int, ...]
    tokens: float
    pairs: float

    @property
    def mean(self) -> float:
        """Average row length [tokens]."""
        return float(np.mean(self.lengths))

    @property
    def longest(self) -> int:
        """Longest row [tokens]."""
        return max(self.lengths)

    def typical(self, multiple: int) -> int:
        """A row length that training compiles, too: the average, rounded up."""
        return -(-math.ceil(self.mean) // multiple) * multiple

    @property
    def fill(self) -> float:
        """Share of the padded tokens that are real tokens."""
        return self.tokens / (self.gradient_accumulation_steps * self.rows * self.mean)


def draw_lengths(mean: float, longest: int, *, examples: int = S1K_EXAMPLES) -> np.ndarray:
    """Random lengths of a training set, int [examples]; the same in every call.

    Args:
        mean: average length of a sequence [tokens]
        longest: maximum length [tokens]
        examples: number of sequences
    """
    spread = np.random.default_rng(0).lognormal(0.0, S1K_SPREAD, examples)
    scale = mean / spread.mean()
    for _ in range(20):  # clipping lowers the mean
        lengths = np.minimum(spread * scale, longest)
        scale *= mean / lengths.mean()
    return np.maximum(1, lengths.astype(int))


def make_workload(
    lengths: Sequence[int],
    *,
    batch_size: int,
    epochs: int,
    steps: int | None,
    gradient_accumulation_steps: int,
    rows: int,
    multiple: int,
) -> Workload:
    """Pack sequences as training does and count tokens and pairs.

    Args:
        lengths: lengths of the training set [tokens]
        batch_size: sequences of a step
        epochs: passes over the data
        steps: optimizer steps; None follows from the epochs
        gradient_accumulation_steps: micro-batches of a step
        rows: rows of a micro-batch
        multiple: multiple that row lengths are rounded up to [tokens]
    """
    groups = [lengths[i : i + batch_size] for i in range(0, len(lengths), batch_size)]
    return Workload(
        steps=steps or epochs * len(groups),
        gradient_accumulation_steps=gradient_accumulation_steps,
        rows=rows,
        lengths=tuple(
            packing.row_length(
                group, packing.plan(group, rows * gradient_accumulation_steps), multiple
            )
            for group in groups
        ),
        tokens=sum(lengths) / len(groups),
        pairs=sum(n * (n + 1) / 2 for n in lengths) / len(groups),
    )


def fixed_workload(
    mean: float,
    *,
    batch_size: int,
    steps: int,
    gradient_accumulation_steps: int,
    rows: int,
    length: int,
) -> Workload:
    """A workload whose rows all have one length; sequences have `mean` tokens on average."""
    lengths = draw_lengths(mean, length)
    tokens = min(batch_size * mean, gradient_accumulation_steps * rows * length)
    pairs = float((lengths * (lengths + 1.0)).sum() / 2 / lengths.sum() * tokens)
    return Workload(steps, gradient_accumulation_steps, rows, (length,), tokens, pairs)
