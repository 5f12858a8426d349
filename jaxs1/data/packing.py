"""Sequence packing: plan with lengths only, then fill the rows.

The sequences of one optimizer step are distributed over a fixed number of rows such that the
fullest row is as short as possible. All rows get the length of the fullest, rounded up so that few
shapes are compiled. Within a row every sequence has its own positions and attends only to itself,
so packing affects speed and nothing else.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxs1.data.chat import Example


class Batch(NamedTuple):
    """One optimizer step: A micro-batches of B rows of T tokens.

    A pytree of NumPy or JAX arrays, or of their shapes or shardings.

    Args:
        tokens: int32 [A, B, T], token ids
        targets: int32 [A, B, T], the token after each token
        weights: float32 [A, B, T], weight of each target's loss; their sum over a step is 1
        positions: int32 [A, B, T], position in the sequence, from 0
        segments: int32 [A, B, T], number of the sequence in its row, from 1; 0 is padding
    """

    tokens: Any
    targets: Any
    weights: Any
    positions: Any
    segments: Any


def plan(lengths: Sequence[int], rows: int) -> list[list[int]]:
    """Distribute sequences over rows, longest first, each to the emptiest row so far.

    The fullest row is then at most 4/3 of the best possible (Graham 1969).

    Returns:
        The indices of each row's sequences, in ascending order.
    """
    heap = [(0, row) for row in range(rows)]
    contents: list[list[int]] = [[] for _ in range(rows)]
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        load, row = heapq.heappop(heap)
        contents[row].append(index)
        heapq.heappush(heap, (load + lengths[index], row))
    return [sorted(content) for content in contents]


def row_length(lengths: Sequence[int], contents: Sequence[Sequence[int]], multiple: int) -> int:
    """Length of the rows of a plan: the fullest row, rounded up to a multiple."""
    fullest = max(sum(lengths[i] for i in content) for content in contents)
    return -(-fullest // multiple) * multiple


def choose_rows(
    steps: Sequence[Sequence[int]],
    *,
    num_row_shards: int,
    gradient_accumulation_steps: int,
    multiple: int,
    attention: float,
) -> int:
    """The number of rows per micro-batch that is cheapest over all steps.

    Fewer rows are better balanced; more and shorter rows make attention cheaper, whose cost per
    token grows with the row's length.

    Args:
        steps: lengths of the sequences of each step
        num_row_shards: number of devices that share the rows; the result is a multiple of it
        gradient_accumulation_steps: micro-batches per step
        multiple: multiple to which row lengths are rounded up [tokens]
        attention: cost of attending to one more token, relative to a token's matrix products
    """
    largest = max(len(step) for step in steps)
    most = max(num_row_shards, -(-largest // gradient_accumulation_steps))

    def cost(rows: int) -> float:
        total = 0.0
        for lengths in steps:
            n = rows * gradient_accumulation_steps
            length = row_length(lengths, plan(lengths, n), multiple)
            total += n * length * (1 + attention * length / 2)
        return total

    return min(range(num_row_shards, most + 1, num_row_shards), key=cost)


def pack(
    examples: Sequence[Example],
    contents: Sequence[Sequence[int]],
    length: int,
    *,
    gradient_accumulation_steps: int,
    loss: Literal["token", "sequence"],
    padding_id: int,
) -> Batch:
    """Fill rows with sequences.

    Args:
        examples: sequences of one step
        contents: indices of each row's sequences, from `plan`
        length: length of every row [tokens]
        gradient_accumulation_steps: A; the rows are divided among the micro-batches in order
        loss: "token" weighs every target of the step equally, "sequence" every sequence
        padding_id: token id for padding
    """
    shape = (len(contents), length)
    tokens = np.full(shape, padding_id, np.int32)
    targets = np.full(shape, padding_id, np.int32)
    weights = np.zeros(shape, np.float32)
    positions = np.zeros(shape, np.int32)
    segments = np.zeros(shape, np.int32)
    share = _target_shares(examples, loss)
    for row, content in enumerate(contents):
        start = 0
        for segment, index in enumerate(content, start=1):
            example = examples[index]
            n = len(example.tokens)
            span, before_last = slice(start, start + n), slice(start, start + n - 1)
            tokens[row, span] = example.tokens
            targets[row, before_last] = example.tokens[1:]
            weights[row, before_last] = example.is_target[1:] * share[index]
            positions[row, span] = np.arange(n)
            segments[row, span] = segment
            start += n
    arrays = (tokens, targets, weights, positions, segments)
    return Batch(*(x.reshape(gradient_accumulation_steps, -1, length) for x in arrays))


def _target_shares(examples: Sequence[Example], loss: str) -> np.ndarray:
    """The weight of each sequence's targets; the weights of all targets sum to 1."""
    counts = np.asarray([example.is_target[1:].sum() for example in examples], np.float64)
    if loss == "token":
        return np.full(len(examples), 1 / max(1.0, counts.sum()))
    return 1 / (np.maximum(1, counts) * max(1, np.count_nonzero(counts)))
