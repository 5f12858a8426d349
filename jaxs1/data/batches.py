"""The stream of packed batches: batch number `step` is a function of the seed, nothing else.

There is no iterator state to save: a run that resumes at step n asks for batch n.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jaxs1.config import DataConfig, UserError
from jaxs1.data import packing
from jaxs1.data.chat import Example
from jaxs1.data.packing import Batch


@dataclass(frozen=True)
class BatchStats:
    """What a batch holds, for the log and for FLOP counts.

    sequences, tokens, slots: counts; slots includes padding
    targets: tokens that the loss counts
    pairs: (query, key) pairs of causal attention within sequences
    examples: which examples, by their index in the dataset
    """

    sequences: int
    tokens: int
    slots: int
    targets: int
    pairs: int
    examples: tuple[int, ...]


def fit_to_block(
    examples: Sequence[Example], block_size: int, overlong: Literal["drop", "error"]
) -> tuple[list[Example], int]:
    """Examples of at most `block_size` tokens, and how many were dropped.

    An example is never cut: its end is the answer that it is there to teach.

    Raises:
        UserError: `overlong` is "error" and one is too long, or none is left.
    """
    kept = [e for e in examples if len(e.tokens) <= block_size]
    dropped = len(examples) - len(kept)
    if dropped and overlong == "error":
        index, longest = max(
            ((i, len(e.tokens)) for i, e in enumerate(examples)), key=lambda item: item[1]
        )
        raise UserError(
            f"data.block_size={block_size}: {dropped} of {len(examples)} examples are longer (the "
            f"longest, number {index + 1}, has {longest} tokens); raise --data.block_size or set "
            "--data.overlong drop"
        )
    if not kept:
        shortest = min(len(e.tokens) for e in examples)
        raise UserError(
            f"data.block_size={block_size}: every example is longer (the shortest has {shortest} "
            "tokens); raise --data.block_size"
        )
    return kept, dropped


class Batches:
    """Packed batches by step number.

    Args:
        examples: the training set
        config: recipe's data section (rows, row_multiple)
        batch_size: sequences per step; the last step of an epoch may have fewer
        gradient_accumulation_steps: micro-batches per step
        loss: normalisation, see `packing.pack`
        seed: decides the order of every epoch
        parts: devices that split a micro-batch's rows among them
        attention: relative cost of attention, see `packing.choose_rows`
        padding_id: fills rows
    """

    def __init__(
        self,
        examples: Sequence[Example],
        config: DataConfig,
        *,
        batch_size: int,
        gradient_accumulation_steps: int,
        loss: Literal["token", "sequence"],
        seed: int,
        parts: int,
        attention: float,
        padding_id: int,
    ):
        self.examples = examples
        self.lengths = np.asarray([len(e.tokens) for e in examples])
        self.batch_size, self.gradient_accumulation_steps, self.loss = (
            batch_size,
            gradient_accumulation_steps,
            loss,
        )
        self.seed, self.multiple, self.padding_id = seed, config.row_multiple, padding_id
        self.steps_per_epoch = -(-len(examples) // batch_size)
        if config.rows is not None:
            if config.rows % parts:
                raise UserError(
                    f"data.rows={config.rows}: must be a multiple of mesh.data x mesh.fsdp={parts},"
                    f" which split the rows; give {-(-config.rows // parts) * parts} or null"
                )
            self.rows = config.rows
        else:
            steps = [self.lengths[self.indices(s)].tolist() for s in range(self.steps_per_epoch)]
            self.rows = packing.choose_rows(
                steps[:100],
                parts=parts,
                gradient_accumulation_steps=gradient_accumulation_steps,
                multiple=config.row_multiple,
                attention=attention,
            )

    def indices(self, step: int) -> np.ndarray:
        """Which examples are in a step: a slice of the epoch's permutation."""
        epoch, number = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.examples))
        return order[number * self.batch_size : (number + 1) * self.batch_size]

    def batch(self, step: int) -> tuple[Batch, BatchStats]:
        """The packed batch of a step."""
        indices = self.indices(step)
        examples, lengths = [self.examples[i] for i in indices], self.lengths[indices]
        contents = packing.plan(lengths.tolist(), self.rows * self.gradient_accumulation_steps)
        length = packing.row_length(lengths.tolist(), contents, self.multiple)
        batch = packing.pack(
            examples,
            contents,
            length,
            gradient_accumulation_steps=self.gradient_accumulation_steps,
            loss=self.loss,
            padding_id=self.padding_id,
        )
        stats = BatchStats(
            sequences=len(indices),
            tokens=int(lengths.sum()),
            slots=batch.tokens.size,
            targets=int(sum(e.is_target[1:].sum() for e in examples)),
            pairs=int((lengths * (lengths + 1) // 2).sum()),
            examples=tuple(int(i) for i in indices),
        )
        return batch, stats
