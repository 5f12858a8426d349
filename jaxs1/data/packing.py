"""Sequences into rows: plan with lengths only, then pack.

The sequences of one optimizer step are spread over a fixed number of rows so that the fullest row
is as short as possible; all rows are then as long as the fullest, rounded up, so that few shapes
are compiled. Inside a row every sequence keeps its own positions and attends only to itself, so
packing changes the speed and nothing else. This file knows token ids and lengths only.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxs1.data.chat import Example


class Batch(NamedTuple):
    """One optimizer step: A micro-batches of B rows of T tokens. A pytree, on the host or devices.

    tokens, targets: int32 ids; targets[t] is the token after tokens[t]
    weights: float32, how much the loss of a target counts; they sum to 1 over the whole step
    positions: int32, from 0 in every sequence
    segments: int32, from 1 in every row; 0 is padding
    """

    tokens: Any
    targets: Any
    weights: Any
    positions: Any
    segments: Any


def plan(lengths: Sequence[int], rows: int) -> list[list[int]]:
    """Spread sequences over rows, longest first, each into the emptiest row so far.

    Longest first: the fullest row is at most 4/3 of the best possible (Graham 1969).

    Returns:
        for each row the indices of its sequences, in ascending order.
    """
    heap = [(0, row) for row in range(rows)]
    contents: list[list[int]] = [[] for _ in range(rows)]
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        load, row = heapq.heappop(heap)
        contents[row].append(index)
        heapq.heappush(heap, (load + lengths[index], row))
    return [sorted(content) for content in contents]


def row_length(lengths: Sequence[int], contents: Sequence[Sequence[int]], multiple: int) -> int:
    """Length that every row of a plan gets: the fullest row, rounded up to a multiple."""
    fullest = max(sum(lengths[i] for i in content) for content in contents)
    return -(-fullest // multiple) * multiple


def choose_rows(
    steps: Sequence[Sequence[int]],
    *,
    parts: int,
    gradient_accumulation_steps: int,
    multiple: int,
    attention: float,
) -> int:
    """The number of rows of a micro-batch that costs the least over all steps.

    Fewer rows balance better; more and shorter rows make attention, whose cost per token grows
    with the row, cheaper.

    Args:
        steps: lengths of the sequences of each step
        parts: devices that split the rows among them; rows are a multiple of it
        gradient_accumulation_steps: micro-batches of a step
        multiple: row lengths are rounded up to this
        attention: cost of attending to one more token, relative to a token's matrix products
    """
    largest = max(len(step) for step in steps)
    candidates = range(parts, max(parts, -(-largest // gradient_accumulation_steps)) + 1, parts)

    def cost(rows: int) -> float:
        total = 0.0
        for lengths in steps:
            n = rows * gradient_accumulation_steps
            length = row_length(lengths, plan(lengths, n), multiple)
            total += n * length * (1 + attention * length / 2)
        return total

    return min(candidates, key=cost)


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
        examples: the sequences of one step
        contents: for each row the indices of its sequences, from `plan`
        length: of every row
        gradient_accumulation_steps: A; the rows are divided among the micro-batches in order
        loss: "token": every target of the step weighs the same; "sequence": every sequence does
        padding_id: fills what is left of a row
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
            here, before_last = slice(start, start + n), slice(start, start + n - 1)
            tokens[row, here] = example.tokens
            targets[row, before_last] = example.tokens[1:]
            weights[row, before_last] = example.is_target[1:] * share[index]
            positions[row, here] = np.arange(n)
            segments[row, here] = segment
            start += n
    arrays = (tokens, targets, weights, positions, segments)
    return Batch(*(x.reshape(gradient_accumulation_steps, -1, length) for x in arrays))


def _target_shares(examples: Sequence[Example], loss: str) -> np.ndarray:
    """For each sequence the weight of one of its targets; all targets' weights sum to 1."""
    counts = np.asarray([example.is_target[1:].sum() for example in examples], np.float64)
    if loss == "token":
        return np.full(len(examples), 1 / max(1.0, counts.sum()))
    return 1 / (np.maximum(1, counts) * max(1, np.count_nonzero(counts)))
