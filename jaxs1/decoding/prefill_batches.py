"""Which parts of which prompts are prefilled next.

Without a limit, prompts are prefilled in the order of their admission. With a limit for each run,
which a server sets, the prompt with the fewest tokens left is first, so that short ones do not wait
for a long one; every fourth batch begins with the oldest one, so that it does not wait forever.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence as SequenceOf
from typing import NamedTuple

from jaxs1.decoding.buckets import size_for
from jaxs1.decoding.page_allocator import PageAllocator
from jaxs1.decoding.sequence import Sequence
from jaxs1.model.kv_cache import PAGE

#: One batch of this many begins with the oldest prompt.
OLDEST_EVERY = 4


class PrefillBatch(NamedTuple):
    """Parts of prompts that are prefilled together.

    Args:
        parts: sequence, first and last position (exclusive) of each part
        width: length of the longest part, rounded up [tokens]
    """

    parts: list[tuple[Sequence, int, int]]
    width: int

    @property
    def size(self) -> int:
        """Tokens of the batch, padding of the parts included."""
        return len(self.parts) * self.width


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
        widths: SequenceOf[int],
        *,
        is_decoding: bool,
        limit: int | None = None,
    ) -> list[PrefillBatch]:
        """The batches of one run; assumes that they will be prefilled.

        Args:
            sequences: those with prompts to prefill, the oldest first
            widths: of the compiled programs, see `Buckets`
            is_decoding: whether the run has decode steps for other sequences
            limit: maximum size of all batches [tokens], but one batch is always made; None: one
                batch if other sequences are decoded, otherwise all prompts
        """
        batches: list[PrefillBatch] = []
        spent = 0
        while left := self._left(sequences):
            size = self._chunk
            if limit is not None:
                size = min(size, limit - spent)
            if batches and (is_decoding if limit is None else size < widths[0]):
                break
            if limit is not None:
                left = self._in_turn(left)
            widest = widths[max(bisect_right(widths, size), 1) - 1]
            width = min(size_for(widths, left[0].num_to_prefill), widest)
            batches.append(self._batch(left, width, max(1, size // width)))
            spent += batches[-1].size
        return batches

    def _left(self, sequences: SequenceOf[Sequence]) -> list[Sequence]:
        for s in sequences:
            self._adopt(s)
        return [s for s in sequences if not s.ready]

    def _in_turn(self, sequences: list[Sequence]) -> list[Sequence]:
        """The fewest tokens left first, and now and then the oldest before them."""
        self._count += 1
        queue = sorted(sequences, key=lambda s: s.num_to_prefill)
        if self._count % OLDEST_EVERY == 0:
            queue.remove(sequences[0])
            queue.insert(0, sequences[0])
        return queue

    def _batch(self, queue: list[Sequence], width: int, rows: int) -> PrefillBatch:
        parts: list[tuple[Sequence, int, int]] = []
        written: set[bytes] = set()
        for s in queue:
            start = s.num_prefilled
            end = min(start + width, len(s.prompt) - 1)
            names = s.names[start // PAGE : -(-end // PAGE)]
            if len(parts) == rows or not written.isdisjoint(names):
                continue  # the second one of two equal beginnings adopts the first one's pages
            written.update(names)
            parts.append((s, start, end))
        for s, _, end in parts:
            s.num_prefilled = end
            self._pages.name(s.pages[: end // PAGE], s.names)
        return PrefillBatch(parts, width)

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
