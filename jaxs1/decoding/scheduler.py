"""Which sequences run: admission, pages, rows of the batch. Plain Python on the host, no device.

A sequence is waiting, then prefilling, then ready, then running in a row of the batch. All pages
that it might need are allocated at admission, so sequences are never preempted.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from jaxs1.config import UserError
from jaxs1.decoding.base_engine import Load
from jaxs1.decoding.buckets import bucket, powers_of_two, size_for
from jaxs1.decoding.controls import SequenceLimits, fit
from jaxs1.decoding.page_allocator import PageAllocator, pages_for
from jaxs1.decoding.params import Request
from jaxs1.decoding.prefill_batches import PrefillBatch, PrefillBatches, PrefillBudget
from jaxs1.decoding.prefix_cache import page_names
from jaxs1.decoding.sequence import Sequence
from jaxs1.decoding.tokenized_thinking import TokenizedThinking
from jaxs1.model.kv_cache import PAGE


@dataclass(frozen=True)
class Limits:
    """Limits of the engine.

    Args:
        max_num_seqs: maximum number of sequences decoded at the same time
        kv_cache_tokens: tokens in the KV cache, all sequences together; null: 2 GiB worth of them
            on a CPU, 90 % of the memory that the weights leave free on other devices
        max_seq_len: maximum length of a sequence, prompt included [tokens]; null: the maximum of
            model and cache
        decode_steps: decode steps between two checks for finished and waiting sequences
        prefill_chunk_tokens: prompt tokens that are prefilled at a time
    """

    max_num_seqs: int = 16
    kv_cache_tokens: int | None = None
    max_seq_len: int | None = None
    decode_steps: int = 32
    prefill_chunk_tokens: int = 512

    def __post_init__(self) -> None:
        """Check that every limit is positive."""
        for name, value in vars(self).items():
            if value is not None and value < 1:
                raise UserError(f"limits.{name}={value}: must be at least 1")


class Schedule(NamedTuple):
    """The work of one step, in this order.

    Args:
        page_copies: source and target pages
        prefills: batches
        inserts: row and sequence whose decoding begins
        order: new order of the rows; None: unchanged
        num_rows: rows to decode; 0: none
        num_pages: pages of the longest row, after decoding
    """

    page_copies: list[tuple[int, int]]
    prefills: list[PrefillBatch]
    inserts: list[tuple[int, Sequence]]
    order: list[int] | None
    num_rows: int
    num_pages: int


class Scheduler:
    """Sequences of one engine, from submission to their last token.

    Args:
        limits: limits of the engine
        context: maximum length of a sequence [tokens]
        num_pages: pages of the cache, page 0 included

    Attributes:
        prefix_caching: whether requests that begin alike share pages, also after their end
    """

    def __init__(self, limits: Limits, *, context: int, num_pages: int):
        self.limits, self.context = limits, context
        self.max_pages = bucket(pages_for(context))
        self.buckets = powers_of_two(
            rows=limits.max_num_seqs, pages=self.max_pages, tokens=limits.prefill_chunk_tokens
        )
        self.pages = PageAllocator(num_pages)
        self._batches = PrefillBatches(limits.prefill_chunk_tokens, self.pages)
        self.prefix_caching = False
        self.waiting: deque[Sequence] = deque()
        self.prefilling: list[Sequence] = []
        self.ready: deque[Sequence] = deque()
        self.rows: list[Sequence | None] = [None] * limits.max_num_seqs

    @property
    def running(self) -> list[tuple[int, Sequence]]:
        """Rows in use and their sequences."""
        return [(row, s) for row, s in enumerate(self.rows) if s is not None]

    @property
    def busy(self) -> bool:
        """Whether any sequence is unfinished."""
        return bool(self.waiting or self.prefilling or self.ready or any(self.rows))

    def fit(
        self, request: Request, thinking: TokenizedThinking, prompt: list[int]
    ) -> SequenceLimits:
        """The limits of a request's sequences.

        Raises:
            UserError: the prompt does not fit into the context, or the request into the cache
        """
        limits = fit(thinking, len(prompt), self.context, request.max_tokens)
        # a second sample needs its own copy of the page in which the prompt ends
        copies = request.n > 1 and (len(prompt) - 1) % PAGE > 0
        if limits.num_pages + copies > self.pages.size:
            raise UserError(
                f"limits.kv_cache_tokens={self.pages.size * PAGE}: too small for this request, "
                f"which can need {(limits.num_pages + copies) * PAGE}; raise it, or lower "
                "thinking.max and thinking.max_answer_tokens"
            )
        return limits

    def add(
        self,
        number: int,
        request: Request,
        thinking: TokenizedThinking,
        prompt: list[int],
        note: str | None = None,
    ) -> None:
        """Queue the n sequences of a request. Raises `UserError` as `fit` does."""
        limits = self.fit(request, thinking, prompt)
        first = Sequence(
            number, 0, request, thinking, prompt, limits, siblings=request.n - 1, note=note
        )
        if self.prefix_caching and not request.prompt_scores:  # which need all hidden states
            first.names = page_names(prompt[:-1], request.cache_salt)
        self.waiting.append(first)
        for sample in range(1, request.n):
            self.waiting.append(
                Sequence(number, sample, request, thinking, prompt, limits, first, note=note)
            )

    def load(self) -> Load:
        """How much there is to do."""
        waiting = [s for s in self.waiting if s.first is None]
        return Load(
            running=len(self.running) + len(self.ready) + len(self.prefilling),
            waiting=len(self.waiting),
            waiting_tokens=sum(len(s.prompt) for s in waiting),
            pages=self.pages.size,
            free_pages=self.pages.num_free,
        )

    def schedule(self, prefill: PrefillBudget | None = None) -> Schedule:
        """Decide what the device does next; assumes that it will be done.

        Args:
            prefill: time for prefill, see `PrefillBatches.plan`
        """
        page_copies = self._admit()
        prefills = self._prefill(prefill)
        inserts = self._insert()
        order = self._compact()
        running = self.running
        if not running:
            return Schedule(page_copies, prefills, inserts, order, 0, 0)
        longest = max(s.num_cached for _, s in running)
        num_pages = size_for(self.buckets.pages, pages_for(longest + self.limits.decode_steps))
        num_rows = size_for(self.buckets.rows, running[-1][0] + 1)
        return Schedule(page_copies, prefills, inserts, order, num_rows, num_pages)

    def finish(self, row: int) -> None:
        """Free a row and its pages."""
        sequence = self.rows[row]
        assert sequence is not None
        self.rows[row] = None
        self._name_answer(sequence)
        self.pages.free(sequence.pages)

    def cancel(self, number: int) -> list[int]:
        """Drop all sequences of a request; returns the rows that must not be decoded further."""
        held = [s for s in (*self.prefilling, *self.ready) if s.number == number]
        rows = [row for row, s in self.running if s.number == number]
        waiting = [s for s in self.waiting if s.number == number]
        owners = {s.first for s in waiting if s.first}  # pages held for their siblings
        for s in held:
            self.pages.free(s.pages)
        for row in rows:
            self.finish(row)
        for owner in owners:
            self.pages.free(owner.shared_pages)
        self.waiting = deque(s for s in self.waiting if s.number != number)
        self.prefilling = [s for s in self.prefilling if s.number != number]
        self.ready = deque(s for s in self.ready if s.number != number)
        return rows

    def end_thinking(self, number: int) -> tuple[bool, list[int]]:
        """End the thinking of all sequences of a request; s1_harness has its own end.

        Returns:
            whether any was thinking; their rows, of which the device must be told
        """
        held = [*self.waiting, *self.prefilling, *self.ready]
        running = [(row, s) for row, s in self.running if s.number == number and s.log.is_thinking]
        early = [s for s in held if s.number == number]
        if any(
            s.thinking.thinking.mode == "s1_harness" for s in (*early, *(s for _, s in running))
        ):
            return False, []
        for s in early:  # a budget of 0 closes before the first token
            params = dataclasses.replace(s.thinking.thinking, num_waits=0, min=0, max=0)
            s.thinking = dataclasses.replace(s.thinking, thinking=params)
            s.limits = s.limits._replace(budget=0)
        for s in (*early, *(s for _, s in running)):
            s.ended_by_client = True
        return bool(early or running), [row for row, _ in running]

    def _admit(self) -> list[tuple[int, int]]:
        """Allocate pages to waiting sequences, in order, while pages and rows last."""
        copies: list[tuple[int, int]] = []
        free_rows = self.rows.count(None) - len(self.prefilling) - len(self.ready)
        while self.waiting and free_rows > 0:
            sequence = self.waiting[0]
            if sequence.first is None:
                if not self._allocate(sequence):
                    break
                self.prefilling.append(sequence)
            else:
                shared = self._share_prompt(sequence, sequence.first)
                if shared is None:
                    break
                copies += shared
                self.ready.append(sequence)
            self.waiting.popleft()
            free_rows -= 1
        return copies

    def _allocate(self, sequence: Sequence) -> bool:
        """Allocate the pages of a first sequence, cached ones among them; whether there are any."""
        found = self.pages.find(sequence.names)
        needed = sequence.limits.num_pages - len(found)
        if self.pages.num_free_without(found) < needed:
            return False
        self.pages.share(found)
        sequence.pages = found + self.pages.allocate(needed)
        sequence.num_prefilled = sequence.prefix_tokens = len(found) * PAGE
        if sequence.siblings:  # keep the prompt's pages until they are admitted
            sequence.shared_pages = sequence.pages[: pages_for(len(sequence.prompt) - 1)]
            self.pages.share(sequence.shared_pages)
        return True

    def _name_answer(self, s: Sequence) -> None:
        """Name the full pages of prompt and completion: the next turn may begin with them."""
        # the newest token is not in the cache; s1_harness discards tokens
        if self.prefix_caching and s.thinking.thinking.mode != "s1_harness":
            ids = [*s.prompt, *s.log.tokens][:-1]
            self.pages.name(s.pages, page_names(ids, s.request.cache_salt))

    def _share_prompt(self, sequence: Sequence, first: Sequence) -> list[tuple[int, int]] | None:
        """Share the first sample's full pages of the prompt and copy the last; None: not yet."""
        full = (len(sequence.prompt) - 1) // PAGE
        needed = sequence.limits.num_pages - full
        if not first.ready or self.pages.num_free < needed:
            return None
        self.pages.share(first.shared_pages[:full])
        sequence.pages = first.shared_pages[:full] + self.pages.allocate(needed)
        # the copy also has tokens that the first sample generated; they are overwritten unread
        copies = [(page, sequence.pages[full]) for page in first.shared_pages[full:]]
        first.siblings -= 1
        if not first.siblings:
            self.pages.free(first.shared_pages)
        return copies

    def _prefill(self, budget: PrefillBudget | None) -> list[PrefillBatch]:
        batches = self._batches.plan(
            self.prefilling, self.buckets, is_decoding=any(self.rows), budget=budget
        )
        self._move_ready()
        return batches

    def _move_ready(self) -> None:
        self.ready.extend(s for s in self.prefilling if s.ready)
        self.prefilling = [s for s in self.prefilling if not s.ready]

    def _insert(self) -> list[tuple[int, Sequence]]:
        """Give free rows to sequences whose prompt is cached."""
        free = [row for row, s in enumerate(self.rows) if s is None]
        inserts = [(row, self.ready.popleft()) for row in free[: len(self.ready)]]
        for row, sequence in inserts:
            self.rows[row] = sequence
        return inserts

    def _compact(self) -> list[int] | None:
        """Move sequences to the front if that reduces the rows to decode; the new order."""
        used = [row for row, _ in self.running]
        sizes = self.buckets.rows
        if not used or size_for(sizes, len(used)) >= size_for(sizes, used[-1] + 1):
            return None
        order = used + [row for row, s in enumerate(self.rows) if s is None]
        self.rows = [self.rows[row] for row in order]
        return order
