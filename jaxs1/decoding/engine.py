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
from jaxs1.decoding.base_engine import BaseEngine
from jaxs1.decoding.budget import Phase, TokenKind
from jaxs1.decoding.controls import SequenceLimits, check_sizes, fit, newline_table
from jaxs1.decoding.decode_loop import ChunkOutput, CompiledFunctions
from jaxs1.decoding.decode_state import (
    DecodeState,
    NewSequence,
    empty_rows,
    rows_of,
    sampling_flags,
    table,
)
from jaxs1.decoding.outputs import StreamOutput, TokenLog, complete, failed
from jaxs1.decoding.page_allocator import PageAllocator, pages_for
from jaxs1.decoding.params import Request, ThinkingParams
from jaxs1.decoding.tokenized_thinking import (
    TokenizedThinking,
    resolve_auto,
    tokenize_thinking,
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
    thinking: TokenizedThinking
    prompt: list[int]
    limits: SequenceLimits
    first: _Sequence | None
    pages: list[int] = field(default_factory=list)
    shared: list[int] = field(default_factory=list)
    siblings: int = 0
    prefilled: int = 0
    log: TokenLog = field(default_factory=TokenLog)

    @property
    def ready(self) -> bool:
        """Whether all of the prompt but its last token, which begins the decoding, is cached."""
        return self.prefilled >= len(self.prompt) - 1


class Engine(BaseEngine):
    """A model that completes requests.

    Args:
        model: abstract
        params: from `decode.unstack`
        tokenizer: the model's
        limits: what may be used
        num_pages: of the KV cache, page 0 included
        cache_dtype: of keys and values
        impl: of the decode step, a name in `decode.IMPLS`
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
        self.compiled = CompiledFunctions(model, impl, limits.decode_steps)
        self.cache = init_cache(model.architecture, num_pages, cache_dtype, model.rules)
        self._pages = PageAllocator(num_pages)
        replicated = model.rules.sharding(())
        self._is_newline_V = jax.device_put(newline_table(tokenizer), replicated)
        self._tokenized: dict[ThinkingParams, TokenizedThinking] = {}
        self._waiting: deque[_Sequence] = deque()
        self._prefilling: list[_Sequence] = []
        self._ready: deque[_Sequence] = deque()
        self._running: list[_Sequence | None] = [None] * limits.max_num_seqs
        self._refused: list[StreamOutput] = []
        self._output: ChunkOutput | None = None
        rows = empty_rows(
            limits.max_num_seqs,
            max_pages=_bucket(pages_for(self.context)),
            is_newline_V=self._is_newline_V,
        )
        self._decode_state = jax.device_put(rows, replicated)

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
            self._refused or self._waiting or self._prefilling or self._ready or any(self._running)
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
        if any(self._running):
            self._output = self._chunk()

    def end(self) -> list[StreamOutput]:
        """The second half of `step`: wait for the device, and hand out what it wrote."""
        outputs, self._refused = self._refused, []
        if self._output is not None:
            outputs += self._collect(self._output)
            self._output = None
        return outputs

    # admission

    def _sequences(self, number: int, request: Request, longest: int | None) -> list[_Sequence]:
        """The n sequences of a request; raises `UserError` where it can never run."""
        if not len(request.prompt_ids):
            raise UserError("prompt: is empty; give at least one token")
        top = len(self.tokenizer)
        if wrong := [i for i in request.prompt_ids if not 0 <= i < top]:
            raise UserError(f"prompt: id {wrong[0]} is not in the tokenizer (0 to {top - 1})")
        thinking = self._tokenize(request.thinking)
        prompt = [*request.prompt_ids, *thinking.start]
        thinking = resolve_auto(
            thinking, [(longest or len(request.prompt_ids)) + len(thinking.start)]
        )
        limits = fit(thinking, len(prompt), self.context)
        needed = limits.num_pages
        spare = request.n > 1 and (len(prompt) - 1) % PAGE > 0
        if needed + spare > self._pages.size:
            held = self._pages.size * PAGE
            raise UserError(
                f"limits.kv_cache_tokens={held}: too small for this request, which can need "
                f"{(needed + spare) * PAGE}; raise it or lower thinking.max and thinking.max_answer_tokens"
            )
        first = None
        sequences = []
        for sample in range(request.n):
            sequence = _Sequence(number, sample, request, thinking, prompt, limits, first)
            first = first or sequence
            sequences.append(sequence)
        sequences[0].siblings = request.n - 1
        return sequences

    def _tokenize(self, thinking: ThinkingParams) -> TokenizedThinking:
        if thinking not in self._tokenized:
            tokenized = tokenize_thinking(thinking, self.tokenizer)
            check_sizes(tokenized)
            self._tokenized[thinking] = tokenized
        return self._tokenized[thinking]

    def _admit(self) -> None:
        """Give pages to those that wait, in order, as long as there are pages and slots."""
        slots = self._running.count(None) - len(self._prefilling) - len(self._ready)
        while self._waiting and slots > 0:
            sequence = self._waiting[0]
            first = sequence.first
            if first is None:
                if self._pages.num_free < sequence.limits.num_pages:
                    return
                sequence.pages = self._pages.allocate(sequence.limits.num_pages)
                if sequence.siblings:  # they come later, and find the prompt's pages still there
                    sequence.shared = sequence.pages[: pages_for(len(sequence.prompt) - 1)]
                    self._pages.share(sequence.shared)
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
        own = sequence.limits.num_pages - full
        if self._pages.num_free < own:
            return False
        self._pages.share(first.shared[:full])
        sequence.pages = first.shared[:full] + self._pages.allocate(own)
        if full < len(first.shared):
            # what the first sample has written behind the prompt is overwritten before it is read
            source, target = first.shared[full], sequence.pages[full]
            self.cache = self.compiled.copy_page(self.cache, np.int32(source), np.int32(target))
        first.siblings -= 1
        if not first.siblings:
            self._pages.free(first.shared)
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
            self.cache = self.compiled.prefill(
                self.params, self.cache, tokens_RT, positions_RT, table_RM
            )
            if any(self._running):
                return

    def _place(self) -> None:
        """Put sequences whose prompt is cached into free slots."""
        free = [i for i, s in enumerate(self._running) if s is None]
        new = [self._ready.popleft() for _ in free[: len(self._ready)]]
        if not new:
            return
        rows = np.full(_bucket(len(new)), len(self._running), np.int32)  # out of bounds: dropped
        rows[: len(new)] = free[: len(new)]
        for slot, sequence in zip(free, new, strict=False):
            self._running[slot] = sequence
        self._decode_state = self.compiled.insert(
            self._decode_state, self._new_rows(new, len(rows)), rows
        )

    # decoding

    def _chunk(self) -> ChunkOutput:
        """Start one chunk."""
        self._compact()
        active = [(i, s) for i, s in enumerate(self._running) if s is not None]
        rows = min(_bucket(active[-1][0] + 1), len(self._running))
        furthest = max(len(s.prompt) + len(s.log.tokens) for _, s in active)
        furthest += self.limits.decode_steps
        pages = min(_bucket(pages_for(furthest)), self._decode_state.table_BM.shape[1])
        self.cache, self._decode_state, written = self.compiled.decode_steps(
            self.params,
            self.cache,
            self._decode_state,
            self._is_newline_V,
            rows=rows,
            pages=pages,
            flags=sampling_flags([s.request.sampling for _, s in active]),
        )
        return written

    def _collect(self, written: ChunkOutput) -> list[StreamOutput]:
        """What a chunk wrote; sequences that are replicated leave their slots."""
        state = self._decode_state.state
        written, phase, ended_by, finish = jax.device_get(
            (written, state.phase, state.ended_by, state.finish)
        )
        outputs = []
        for slot, s in enumerate(self._running):
            if s is None:
                continue
            real_N = written.kind_NB[: written.count, slot] != TokenKind.PAD
            new = TokenLog(*(x[: written.count, slot][real_N].tolist() for x in written[1:]))
            s.log.extend(new)
            completion = None
            if phase[slot] == Phase.DONE:
                ends = {"ended_by": int(ended_by[slot]), "finish": int(finish[slot])}
                completion = complete(
                    s.request, s.sample, s.thinking, self.tokenizer, s.prompt, s.log,
                    **ends, note=s.limits.note,
                )  # fmt: skip
                self._running[slot] = None
                self._pages.free(s.pages)
            outputs.append(StreamOutput(s.number, s.sample, new, completion))
        return outputs

    def _compact(self) -> None:
        """Move sequences to the front where fewer rows will then do."""
        used = [i for i, s in enumerate(self._running) if s is not None]
        if _bucket(len(used)) >= _bucket(used[-1] + 1):
            return
        order = used + [i for i, s in enumerate(self._running) if s is None]
        self._running = [self._running[i] for i in order]
        self._decode_state = self.compiled.reorder(self._decode_state, np.asarray(order, np.int32))

    def _new_rows(self, sequences: list[_Sequence], rows: int) -> DecodeState:
        """What sequences start with, for the device."""
        starts = [
            NewSequence(
                s.thinking,
                s.prompt,
                s.pages,
                s.limits,
                s.request.sampling,
                s.request.seed,
                s.sample,
            )
            for s in sequences
        ]
        return rows_of(
            starts,
            rows,
            max_pages=_bucket(pages_for(self.context)),
            is_newline_V=self._is_newline_V,
        )


def _bucket(n: int) -> int:
    """The next power of two."""
    return 1 << max(0, n - 1).bit_length()
