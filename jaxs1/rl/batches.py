"""Roll-outs and their advantages to the packed batch of an optimizer step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxs1.data import packing
from jaxs1.decoding.budget import NONE
from jaxs1.decoding.outputs import Completion
from jaxs1.rl.config import ObjectiveConfig


class Trajectory(NamedTuple):
    """A prompt and its completion, as arrays over all their tokens.

    Args:
        tokens: int32, token ids
        targets: int32, the id that the policy chose where the token is; the token where it did not
        chosen: bool, whether the policy chose: neither in the prompt nor where text was inserted
        gated: bool, whether ends of thinking could not be chosen
        logprobs: float32, log-probability of the choice when it was drawn; 0 without one
        advantage: of all its tokens
    """

    tokens: np.ndarray
    targets: np.ndarray
    chosen: np.ndarray
    gated: np.ndarray
    logprobs: np.ndarray
    advantage: float

    @property
    def choices(self) -> int:
        """Number of tokens that the policy chose."""
        return int(self.chosen.sum())


def trajectory(completion: Completion, advantage: float) -> Trajectory:
    """The arrays of a completion, which must have been requested with `logprobs`.

    Where the controller replaced a choice, e.g. an end of thinking by a Wait, the target is the
    choice: the gradient is that of what the policy did, whatever was written.
    """
    before = len(completion.prompt_ids)
    tokens = np.asarray([*completion.prompt_ids, *completion.tokens], np.int32)
    choices = np.asarray([*[NONE] * before, *completion.choices], np.int32)
    return Trajectory(
        tokens=tokens,
        targets=np.where(choices == NONE, tokens, choices),
        chosen=choices != NONE,
        gated=np.asarray([*[False] * before, *completion.gated]),
        logprobs=np.asarray([*[0.0] * before, *completion.logprobs], np.float32),
        advantage=advantage,
    )


class TokenColumns(NamedTuple):
    """What the loss of a token needs besides its log-probability; float32 [A, B, T] each.

    Args:
        weights: weight of the token's loss; 0 where the policy chose nothing
        advantages: advantage of its sequence
        sampled: log-probability when it was drawn, from decoding
        old: log-probability before this step, from training; None: `sampled`
        reference: log-probability under the initial model; None: not needed
    """

    weights: Any
    advantages: Any
    sampled: Any
    old: Any = None
    reference: Any = None


class PolicyBatch(NamedTuple):
    """One optimizer step: A micro-batches of B rows of T tokens; see `packing.Batch`.

    Args:
        tokens: int32 [A, B, T], token ids
        targets: int32 [A, B, T], the policy's choice of the next token
        gated: bool [A, B, T], where ends of thinking could not be chosen
        columns: what the loss needs
        positions: int32 [A, B, T], position in the sequence, from 0
        segments: int32 [A, B, T], number of the sequence in its row, from 1; 0 is padding
    """

    tokens: Any
    targets: Any
    gated: Any
    columns: TokenColumns
    positions: Any
    segments: Any


def sequence_weights(
    trajectories: Sequence[Trajectory],
    config: ObjectiveConfig,
    *,
    sequences: float,
    longest: int,
) -> np.ndarray:
    """The weight of each sequence's tokens, float64; see `ObjectiveConfig.aggregate`.

    Sequences of dead groups are not in the batch, but count: in S, and in N as if they were as long
    as the live ones.

    Args:
        trajectories: live sequences of the step
        config: names the weighting
        sequences: S, sequences of the step, those of dead groups included
        longest: L, tokens of the longest possible completion
    """
    chosen = np.asarray([t.choices for t in trajectories], np.float64)
    if config.aggregate == "token":
        share = len(trajectories) / sequences
        return np.full(len(trajectories), share / max(1.0, chosen.sum()))
    if config.aggregate == "sequence":
        return 1 / (np.maximum(1, chosen) * sequences)
    return np.full(len(trajectories), 1 / (sequences * longest))


def plan_rows(lengths: Sequence[int], *, rows: int, row_length: int) -> list[list[int]]:
    """Which sequences each row of a step holds; the micro-batches are a power of two.

    Args:
        lengths: tokens of the sequences, none longer than a row
        rows: B, rows of a micro-batch
        row_length: T, tokens of a row
    """
    assert max(lengths) <= row_length
    micro_batches = 1
    while True:
        contents = packing.plan(lengths, rows * micro_batches)
        if packing.row_length(lengths, contents, 1) <= row_length:
            return contents
        micro_batches *= 2


def pack(
    trajectories: Sequence[Trajectory],
    weights: Sequence[float] | np.ndarray,
    *,
    rows: int,
    row_length: int,
    padding_id: int,
) -> PolicyBatch:
    """Pack sequences into micro-batches of one shape; their number is a power of two.

    Args:
        trajectories: sequences of the step, none longer than a row
        weights: weight of each one's tokens
        rows: B, rows of a micro-batch
        row_length: T, tokens of a row
        padding_id: token id for padding
    """
    lengths = [len(t.tokens) for t in trajectories]
    contents = plan_rows(lengths, rows=rows, row_length=row_length)
    micro_batches = len(contents) // rows
    shape = (len(contents), row_length)
    tokens, targets = (np.full(shape, padding_id, np.int32) for _ in range(2))
    weight, advantage, sampled = (np.zeros(shape, np.float32) for _ in range(3))
    positions, segments = (np.zeros(shape, np.int32) for _ in range(2))
    gated = np.zeros(shape, bool)
    for row, content in enumerate(contents):
        start = 0
        for segment, index in enumerate(content, start=1):
            t, n = trajectories[index], lengths[index]
            span, before_last = slice(start, start + n), slice(start, start + n - 1)
            tokens[row, span] = t.tokens
            positions[row, span] = np.arange(n)
            segments[row, span] = segment
            targets[row, before_last] = t.targets[1:]
            gated[row, before_last] = t.gated[1:]
            weight[row, before_last] = t.chosen[1:] * weights[index]
            advantage[row, before_last] = t.advantage
            sampled[row, before_last] = t.logprobs[1:]
            start += n

    def divide(x: np.ndarray) -> np.ndarray:
        return x.reshape(micro_batches, rows, row_length)

    columns = TokenColumns(divide(weight), divide(advantage), divide(sampled))
    return PolicyBatch(
        divide(tokens), divide(targets), divide(gated), columns, divide(positions), divide(segments)
    )
