"""What a run computes: how long the rows of its steps are, without reading its data.

Lengths are drawn from a log-normal distribution, by default that of s1K: 27.5M tokens in 5 epochs
of 1,000 sequences are 5,500 on average, and a spread of 0.7 makes the longest of 16 about 15,000,
which explains s1's 26 minutes with one sequence on each GPU.
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
        rows: of a micro-batch
        lengths: of the rows, one for each step of an epoch
        tokens: of a step, on average
        pairs: (query, key) pairs of causal attention within sequences, of a step, on average
    """

    steps: int
    gradient_accumulation_steps: int
    rows: int
    lengths: tuple[int, ...]
    tokens: float
    pairs: float

    @property
    def mean(self) -> float:
        """Average length of a row."""
        return float(np.mean(self.lengths))

    @property
    def longest(self) -> int:
        """The longest row of the run."""
        return max(self.lengths)

    def typical(self, multiple: int) -> int:
        """A length that is compiled anyway: the average, rounded up."""
        return -(-math.ceil(self.mean) // multiple) * multiple

    @property
    def fill(self) -> float:
        """Share of the padded tokens that are real tokens."""
        return self.tokens / (self.gradient_accumulation_steps * self.rows * self.mean)


def draw_lengths(mean: float, longest: int, *, examples: int = S1K_EXAMPLES) -> np.ndarray:
    """Lengths of a training set, int [examples], the same at every call.

    Args:
        mean: tokens of a sequence
        longest: none is longer
        examples: how many
    """
    spread = np.random.default_rng(0).lognormal(0.0, S1K_SPREAD, examples)
    scale = mean / spread.mean()
    for _ in range(20):  # cutting the longest lowers the mean
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
    """Pack as training does, and count.

    Args:
        lengths: of the training set's sequences
        batch_size: sequences of a step
        epochs: passes over the data
        steps: optimizer steps; None for as many as the epochs need
        gradient_accumulation_steps: micro-batches of a step
        rows: of a micro-batch
        multiple: row lengths are rounded up to it
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
    """All rows have one given length; the sequences in them are `mean` tokens long on average."""
    lengths = draw_lengths(mean, length)
    tokens = min(batch_size * mean, gradient_accumulation_steps * rows * length)
    pairs = float((lengths * (lengths + 1.0)).sum() / 2 / lengths.sum() * tokens)
    return Workload(steps, gradient_accumulation_steps, rows, (length,), tokens, pairs)
