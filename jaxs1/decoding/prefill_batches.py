"""Which parts of which prompts are prefilled next.

Without a limit, prompts are prefilled in the order of their admission. With a limit of time for
each run, which a server sets, the prompt with the fewest tokens left is first, so that short ones
do not wait for a long one; every fourth batch begins with the oldest one, so that it does not wait
forever.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from functools import partial
from typing import NamedTuple

from jaxs1.decoding.buckets import Buckets, PrefillShape, size_for
from jaxs1.decoding.page_allocator import PageAllocator, pages_for
from jaxs1.decoding.sequence import Sequence
from jaxs1.model.kv_cache import PAGE

#: One batch of this many begins with the oldest prompt.
OLDEST_EVERY = 4


#: A part of a prompt: its sequence, first and last position (exclusive).
Part = tuple[Sequence, int, int]


class PrefillBudget(NamedTuple):
    """Time for the prefill of one run.

    Args:
        seconds: for all batches
        cost: seconds that a batch of some size takes, at most
    """

    seconds: float
    cost: Callable[[PrefillShape], float]


class PrefillBatch(NamedTuple):
    """Parts of prompts that are prefilled together, all with scores or all without.

    Args:
        parts: parts
        shape: size of the program that prefills them
    """

    parts: list[Part]
    shape: PrefillShape


class PrefillBatches:
    """Cuts prompts into batches.

    Args:
        chunk: maximum size of a batch [tokens]
        pages: pages of the cache
    """

    def __init__(self, chunk: int, pages: PageAllocator):
        self._chunk, self._pages = chunk, pages
        self._count = 0

    def plan(
        self,
        sequences: SequenceOf[Sequence],
        buckets: Buckets,
        *,
        is_decoding: bool,
        budget: PrefillBudget | None = None,
    ) -> list[PrefillBatch]:
        """The batches of one run; assumes that they will be prefilled.

        Args:
            sequences: those with prompts to prefill, the oldest first
            buckets: sizes of the compiled programs
            is_decoding: whether the run has decode steps for other sequences
            budget: time for all batches; if it is too short for any, there is one of the smallest
                size. None: one batch if other sequences are decoded, otherwise all prompts
        """
        batches: list[PrefillBatch] = []
        seconds = budget.seconds if budget else 0.0
        while left := self._left(sequences):
            if budget is None:
                if batches and is_decoding:
                    break
                batch = self._batch(left, buckets, lambda _: True)
            else:
                fits = partial(_fits, budget.cost, seconds)
                batch = self._batch(self._in_turn(left), buckets, fits)
                if batches and not fits(batch.shape):
                    break
                seconds -= budget.cost(batch.shape)
            self._prefilled(batch)
            batches.append(batch)
        return batches

    def _left(self, sequences: SequenceOf[Sequence]) -> list[Sequence]:
        for s in sequences:
            self._adopt(s)
        return [s for s in sequences if not s.ready]

    def _in_turn(self, sequences: list[Sequence]) -> list[Sequence]:
        """The fewest tokens left first, and now and then the oldest before them."""
        queue = sorted(sequences, key=lambda s: s.num_to_prefill)
        if self._count % OLDEST_EVERY == OLDEST_EVERY - 1:
            queue.remove(sequences[0])
            queue.insert(0, sequences[0])
        return queue

    def _batch(
        self, queue: list[Sequence], buckets: Buckets, fits: Callable[[PrefillShape], bool]
    ) -> PrefillBatch:
        """As much of the first prompt as fits, and of others what fits beside it."""
        head, *others = queue
        scored = head.request.prompt_scores
        widest = size_for(buckets.widths, head.num_to_prefill)
        for width in reversed([w for w in buckets.widths if w <= widest]):
            batch = _batch_of([_part(head, width)], width, buckets)
            if fits(batch.shape):
                break
        most = 1 if scored and buckets.is_ladder else self._chunk // width
        written = _names(*batch.parts[0])
        for s in others:
            if len(batch.parts) >= most:
                break
            part = _part(s, width)
            # the second one of two equal beginnings adopts the first one's pages
            if s.request.prompt_scores != scored or not written.isdisjoint(_names(*part)):
                continue
            larger = _batch_of([*batch.parts, part], width, buckets)
            if fits(larger.shape):
                batch = larger
                written |= _names(*part)
        return batch

    def _prefilled(self, batch: PrefillBatch) -> None:
        self._count += 1
        for s, _, end in batch.parts:
            s.num_prefilled = end
            self._pages.name(s.pages[: end // PAGE], s.names)

    def _adopt(self, s: Sequence) -> None:
        """Replace pages still to fill by those that another sequence has filled meanwhile."""
        begin = s.num_prefilled // PAGE
        if s.num_prefilled % PAGE or not (found := self._pages.find(s.names[begin:])):
            return
        end = begin + len(found)
        for held in (s.pages, s.shared_pages):
            if held:
                self._pages.share(found)
                self._pages.free(held[begin:end])
                held[begin:end] = found
        s.num_prefilled = end * PAGE
        s.prefix_tokens += len(found) * PAGE


def _fits(cost: Callable[[PrefillShape], float], seconds: float, shape: PrefillShape) -> bool:
    return cost(shape) <= seconds


def _part(s: Sequence, width: int) -> Part:
    return s, s.num_prefilled, min(s.num_prefilled + width, len(s.prompt) - 1)


def _names(s: Sequence, start: int, end: int) -> set[bytes]:
    """Names of the pages that a part writes to."""
    return set(s.names[start // PAGE : -(-end // PAGE)])


def _batch_of(parts: list[Part], width: int, buckets: Buckets) -> PrefillBatch:
    pages = pages_for(max(end for _, _, end in parts))
    scored = parts[0][0].request.prompt_scores
    return PrefillBatch(parts, buckets.prefill_shape(len(parts), width, pages, scored=scored))
