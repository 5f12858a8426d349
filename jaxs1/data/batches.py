"""The stream of packed batches: batch `step` is a function of the seed and the step, nothing else.

There is no iterator state to save: a run resumed at step n computes batch n.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jaxs1.config import UserError
from jaxs1.data import packing
from jaxs1.data.chat import Example
from jaxs1.data.config import DataConfig
from jaxs1.data.packing import Batch


@dataclass(frozen=True)
class BatchStats:
    """Counts of a batch, for the log and for FLOPs.

    Args:
        tokens: number of tokens without padding
        padded_tokens: number of tokens with padding
        attention_pairs: number of (query, key) pairs of causal attention within sequences
        examples: indices of the batch's examples in the dataset
    """

    tokens: int
    padded_tokens: int
    attention_pairs: int
    examples: tuple[int, ...]


def fit_to_block(
    examples: Sequence[Example], block_size: int, overlong: Literal["drop", "error"]
) -> tuple[list[Example], int]:
    """Examples of at most `block_size` tokens, and the number of dropped ones.

    An example is never truncated: it ends with the answer that it is meant to teach.

    Raises:
        UserError: `overlong` is "error" and an example is too long, or no example is left.
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


def summary(kind: str, examples: Sequence[Example], dropped: int) -> list[str]:
    """Lines about the training data: what there is, and what of it is not learnt."""
    tokens, left_out = sum(len(e.tokens) for e in examples), sum(e.left_out for e in examples)
    lines = [
        f"data      {len(examples):,} {kind} examples, {tokens:,} tokens; "
        f"{dropped:,} too long, dropped"
    ]
    if left_out:
        lines.append(
            f"          {left_out:,} earlier turns are context only: the chat template writes them "
            "without their thinking"
        )
    return lines


class Batches:
    """Packed batches by step number.

    Args:
        examples: training set
        config: data settings (rows, row_multiple)
        batch_size: sequences per step; the last step of an epoch may have fewer
        gradient_accumulation_steps: micro-batches per step
        loss: normalisation, see `packing.pack`
        seed: random seed for the order of every epoch
        num_row_shards: number of devices that share the rows of a micro-batch
        attention: relative cost of attention, see `packing.choose_rows`
        padding_id: token id for padding

    Raises:
        UserError: `config.rows` is not a multiple of `num_row_shards`.
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
        num_row_shards: int,
        attention: float,
        padding_id: int,
    ):
        self.examples = examples
        self.lengths = np.asarray([len(e.tokens) for e in examples])
        self.batch_size = batch_size
        self.gradient_accumulation_steps = gradient_accumulation_steps
        self.loss = loss
        self.seed, self.multiple, self.padding_id = seed, config.row_multiple, padding_id
        self.steps_per_epoch = -(-len(examples) // batch_size)
        if config.rows is not None:
            if config.rows % num_row_shards:
                raise UserError(
                    f"data.rows={config.rows}: must be a multiple of mesh.data x mesh.fsdp x "
                    f"mesh.expert={num_row_shards}, which split the rows; give "
                    f"{-(-config.rows // num_row_shards) * num_row_shards} or null"
                )
            self.rows = config.rows
        else:
            steps = [self.lengths[self.indices(s)].tolist() for s in range(self.steps_per_epoch)]
            self.rows = packing.choose_rows(
                steps[:100],
                num_row_shards=num_row_shards,
                gradient_accumulation_steps=gradient_accumulation_steps,
                multiple=config.row_multiple,
                attention=attention,
            )

    def indices(self, step: int) -> np.ndarray:
        """Indices of a step's examples: a slice of the epoch's permutation."""
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
            tokens=int(lengths.sum()),
            padded_tokens=batch.tokens.size,
            attention_pairs=int((lengths * (lengths + 1) // 2).sum()),
            examples=tuple(int(i) for i in indices),
        )
        return batch, stats
