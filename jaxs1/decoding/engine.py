"""Many requests through one model: slots, pages, admission, completions.

    for index, completions in engine.run(requests): ...

A sequence gets a slot and all pages that it can ever need when it is admitted,
so that nothing is ever taken back from it; a request that can never fit becomes an error, and the
others go on. Between chunks, finished sequences leave and waiting ones take their place.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from jaxs1.config import UserError
from jaxs1.decoding import budget
from jaxs1.decoding.base_engine import BaseEngine, StreamOutput
from jaxs1.decoding.decode_loop import ChunkOutput, CompiledFunctions
from jaxs1.decoding.decode_state import DecodeState, NewSequence, rows_of, sampling_flags, table
from jaxs1.decoding.outputs import Request, TokenLog, complete, failed
from jaxs1.decoding.page_allocator import PageAllocator, pages_for
from jaxs1.decoding.params import ThinkingParams
from jaxs1.decoding.tokenized_thinking import (
    TokenizedThinking,
    capacity,
    check_sizes,
    fit,
    newline_table,
    resolve_auto,
    script,
)
from jaxs1.model.kv_cache import PAD_POSITION, PAGE, init_cache
from jaxs1.model.transformer import Transformer

#: Prompt tokens of a row that are run at a time, at least: shorter pieces share one shape.
SHORTEST = 16


@dataclass(frozen=True)
class Limits:
    """What the engine may use.

    Args:
        max_num_seqs: sequences that are decoded at the same time
        kv_cache_tokens: tokens that the KV cache holds, of all sequences together; null: 2 GiB of them
            on a CPU, on other devices 90 % of what the weights leave free
        max_seq_len: longest sequence, prompt included [tokens]; null: what model and cache allow
        decode_steps: decode steps between two looks for waiting prompts
        prefill_chunk_tokens: prompt tokens that are run at a time
    """

    max_num_seqs: int = 16
    kv_cache_tokens: int | None = None
    max_seq_len: int | None = None
    decode_steps: int = 32
    prefill_chunk_tokens: int = 512

    def __post_init__(self) -> None:
        """Refuse what holds nothing."""
        for name, value in vars(self).items():
            if value is not None and value < 1:
                raise UserError(f"limits.{name}={value}: must be at least 1")


@dataclass(eq=False)
class _Sequence:
    """One completion in the making."""

    number: int
    sample: int
    request: Request
    script: TokenizedThinking
    prompt: list[int]
    note: str | None
    first: _Sequence | None
    pages_needed: int
    pages: list[int] = field(default_factory=list)
    shared: list[int] = field(default_factory=list)
    siblings: int = 0
    prefilled: int = 0
    written: TokenLog = field(default_factory=TokenLog)

    @property
    def ready(self) -> bool:
        """Whether all of the prompt but its last token, which begins the decoding, is cached."""
        return self.prefilled >= len(self.prompt) - 1


class Engine(BaseEngine):
    """A model that completes requests.

    Args:
        model: abstract
        params: see `model.decode_params`
        tokenizer: the model's
        limits: what may be used
        num_pages: of the KV cache, page 0 included
        cache_dtype: of keys and values
        impl: of the decode step, a name in `backends.BACKENDS`
    """

    def __init__(
        self,
        model: Transformer,
        params: Any,
        tokenizer: Any,
        limits: Limits,
        *,
        num_pages: int,
        cache_dtype: Any,
        impl: str = "xla",
    ):
        self.model, self.params, self.tokenizer, self.limits = model, params, tokenizer, limits
        held = (num_pages - 1) * PAGE
        self.context = min(limits.max_seq_len or model.architecture.max_position_embeddings, held)
        self.programs = CompiledFunctions(model, impl, limits.decode_steps)
        self.cache = init_cache(model.architecture, num_pages, cache_dtype, model.rules)
        self._pool = PageAllocator(num_pages)
        whole = model.rules.sharding(())
        self._is_newline_V = jax.device_put(newline_table(tokenizer), whole)
        self._scripts: dict[ThinkingParams, TokenizedThinking] = {}
        self._waiting: deque[_Sequence] = deque()
        self._prefilling: list[_Sequence] = []
        self._ready: deque[_Sequence] = deque()
        self._slots: list[_Sequence | None] = [None] * limits.max_num_seqs
        self._refused: list[StreamOutput] = []
        self._written: ChunkOutput | None = None
        # rows without pages are empty slots; their script takes nothing from the tokenizer
        thinking, no = ThinkingParams(mode="off", min_answer_tokens=1), ()
        asks_nothing = TokenizedThinking(thinking, no, no, no, no, no, no, no, no, no)
        nobody = _Sequence(0, 0, Request([0], thinking), asks_nothing, [0], None, None, 0)
        self._rows = jax.device_put(self._new_rows([nobody], limits.max_num_seqs), whole)

    def submit(self, request: Request, longest: int | None = None) -> int:
        """See `BaseEngine`."""
        number = self.submitted
        self.submitted += 1
        try:
            self._waiting.extend(self._sequences(number, request, longest))
        except UserError as error:
            for sample in range(request.n):
                completion = failed(request, sample, str(error))
                self._refused.append(StreamOutput(number, sample, TokenLog(), completion))
        return number

    @property
    def busy(self) -> bool:
        """See `BaseEngine`."""
        return bool(
            self._refused or self._waiting or self._prefilling or self._ready or any(self._slots)
        )

    def step(self) -> list[StreamOutput]:
        """See `BaseEngine`."""
        self.begin()
        return self.end()

    def begin(self) -> None:
        """The first half of `step`: all that the device is told. It works until `end`."""
        self._admit()
        self._prefill()
        self._place()
        if any(self._slots):
            self._written = self._chunk()

    def end(self) -> list[StreamOutput]:
        """The second half of `step`: wait for the device, and hand out what it wrote."""
        events, self._refused = self._refused, []
        if self._written is not None:
            events += self._collect(self._written)
            self._written = None
        return events

    # admission

    def _sequences(self, number: int, request: Request, longest: int | None) -> list[_Sequence]:
        """The n sequences of a request; raises `UserError` where it can never run."""
        if not len(request.prompt_ids):
            raise UserError("prompt: is empty; give at least one token")
        top = len(self.tokenizer)
        if wrong := [i for i in request.prompt_ids if not 0 <= i < top]:
            raise UserError(f"prompt: id {wrong[0]} is not in the tokenizer (0 to {top - 1})")
        asked = self._script(request.thinking)
        prompt = [*request.prompt_ids, *asked.start]
        asked = resolve_auto(asked, [(longest or len(request.prompt_ids)) + len(asked.start)])
        limit, note = fit(asked, len(prompt), self.context)
        longest_end = len(prompt) + capacity(asked, limit, self.context)
        needed = pages_for(min(self.context, longest_end))
        spare = request.n > 1 and (len(prompt) - 1) % PAGE > 0
        if needed + spare > self._pool.size:
            held = self._pool.size * PAGE
            raise UserError(
                f"limits.kv_cache_tokens={held}: too small for this request, which can need "
                f"{(needed + spare) * PAGE}; raise it or lower thinking.max and thinking.max_answer_tokens"
            )
        first = None
        sequences = []
        for sample in range(request.n):
            sequence = _Sequence(number, sample, request, asked, prompt, note, first, needed)
            first = first or sequence
            sequences.append(sequence)
        sequences[0].siblings = request.n - 1
        return sequences

    def _script(self, thinking: ThinkingParams) -> TokenizedThinking:
        if thinking not in self._scripts:
            asked = script(thinking, self.tokenizer)
            check_sizes(asked)
            self._scripts[thinking] = asked
        return self._scripts[thinking]

    def _admit(self) -> None:
        """Give pages to those that wait, in order, as long as there are pages and slots."""
        slots = self._slots.count(None) - len(self._prefilling) - len(self._ready)
        while self._waiting and slots > 0:
            sequence = self._waiting[0]
            first = sequence.first
            if first is None:
                if self._pool.free < sequence.pages_needed:
                    return
                sequence.pages = self._pool.take(sequence.pages_needed)
                if sequence.siblings:  # they come later, and find the prompt's pages still there
                    sequence.shared = sequence.pages[: pages_for(len(sequence.prompt) - 1)]
                    self._pool.share(sequence.shared)
                self._prefilling.append(sequence)
            else:
                if not first.ready or not self._share_prompt(sequence, first):
                    return
                self._ready.append(sequence)
            self._waiting.popleft()
            slots -= 1

    def _share_prompt(self, sequence: _Sequence, first: _Sequence) -> bool:
        """Take the first sample's pages of the prompt, the last one as a copy; False: none free."""
        full = (len(sequence.prompt) - 1) // PAGE
        own = sequence.pages_needed - full
        if self._pool.free < own:
            return False
        self._pool.share(first.shared[:full])
        sequence.pages = first.shared[:full] + self._pool.take(own)
        if full < len(first.shared):
            # what the first sample has written behind the prompt is overwritten before it is read
            source, target = first.shared[full], sequence.pages[full]
            self.cache = self.programs.copy_page(self.cache, np.int32(source), np.int32(target))
        first.siblings -= 1
        if not first.siblings:
            self._pool.release(first.shared)
        return True

    def _prefill(self) -> None:
        """Run prompt tokens: one batch, or as many as it takes where nothing else could run."""
        while True:
            self._ready.extend(s for s in self._prefilling if s.ready)
            self._prefilling = [s for s in self._prefilling if not s.ready]
            if not self._prefilling:
                return
            left = [len(s.prompt) - 1 - s.prefilled for s in self._prefilling]
            width = min(self.limits.prefill_chunk_tokens, max(SHORTEST, _bucket(left[0])))
            batch = self._prefilling[: max(1, self.limits.prefill_chunk_tokens // width)]
            rows = _bucket(len(batch))
            tokens_RT = np.zeros((rows, width), np.int32)
            positions_RT = np.full((rows, width), PAD_POSITION, np.int32)
            ends = []
            for r, s in enumerate(batch):
                start, end = s.prefilled, min(s.prefilled + width, len(s.prompt) - 1)
                tokens_RT[r, : end - start] = s.prompt[start:end]
                positions_RT[r, : end - start] = np.arange(start, end)
                s.prefilled = end
                ends.append(end)
            table_RM = table([s.pages for s in batch], rows, _bucket(pages_for(max(ends))))
            self.cache = self.programs.prefill(
                self.params, self.cache, tokens_RT, positions_RT, table_RM
            )
            if any(self._slots):
                return

    def _place(self) -> None:
        """Put sequences whose prompt is cached into free slots."""
        free = [i for i, s in enumerate(self._slots) if s is None]
        new = [self._ready.popleft() for _ in free[: len(self._ready)]]
        if not new:
            return
        rows = np.full(_bucket(len(new)), len(self._slots), np.int32)  # out of bounds: dropped
        rows[: len(new)] = free[: len(new)]
        for slot, sequence in zip(free, new, strict=False):
            self._slots[slot] = sequence
        self._rows = self.programs.place(self._rows, self._new_rows(new, len(rows)), rows)

    # decoding

    def _chunk(self) -> ChunkOutput:
        """Start one chunk."""
        self._compact()
        active = [(i, s) for i, s in enumerate(self._slots) if s is not None]
        rows = min(_bucket(active[-1][0] + 1), len(self._slots))
        furthest = max(len(s.prompt) + len(s.written.tokens) for _, s in active)
        furthest += self.limits.decode_steps
        pages = min(_bucket(pages_for(furthest)), self._rows.table_BM.shape[1])
        self.cache, self._rows, written = self.programs.chunk(
            self.params,
            self.cache,
            self._rows,
            self._is_newline_V,
            rows=rows,
            pages=pages,
            kinds=sampling_flags([s.request.sampling for _, s in active]),
        )
        return written

    def _collect(self, written: ChunkOutput) -> list[StreamOutput]:
        """What a chunk wrote; sequences that are whole leave their slots."""
        state = self._rows.state
        written, phase, ended_by, finish = jax.device_get(
            (written, state.phase, state.ended_by, state.finish)
        )
        events = []
        for slot, s in enumerate(self._slots):
            if s is None:
                continue
            real_N = written.kind_NB[: written.count, slot] != budget.PASSED
            new = TokenLog(*(x[: written.count, slot][real_N].tolist() for x in written[1:]))
            s.written.extend(new)
            completion = None
            if phase[slot] == budget.DONE:
                ends = {"ended_by": int(ended_by[slot]), "finish": int(finish[slot])}
                completion = complete(
                    s.request, s.sample, s.script, self.tokenizer, s.prompt, s.written,
                    **ends, note=s.note,
                )  # fmt: skip
                self._slots[slot] = None
                self._pool.release(s.pages)
            events.append(StreamOutput(s.number, s.sample, new, completion))
        return events

    def _compact(self) -> None:
        """Move sequences to the front where fewer rows will then do."""
        used = [i for i, s in enumerate(self._slots) if s is not None]
        if _bucket(len(used)) >= _bucket(used[-1] + 1):
            return
        order = used + [i for i, s in enumerate(self._slots) if s is None]
        self._slots = [self._slots[i] for i in order]
        self._rows = self.programs.reorder(self._rows, np.asarray(order, np.int32))

    def _new_rows(self, sequences: list[_Sequence], rows: int) -> DecodeState:
        """What sequences start with, for the device."""
        starts = [
            NewSequence(s.script, s.prompt, s.pages, s.request.sampling, s.request.seed, s.sample)
            for s in sequences
        ]
        return rows_of(
            starts,
            rows,
            context=self.context,
            max_pages=_bucket(pages_for(self.context)),
            is_newline_V=self._is_newline_V,
        )


def _bucket(n: int) -> int:
    """The next power of two."""
    return 1 << max(0, n - 1).bit_length()
