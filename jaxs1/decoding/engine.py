"""One model on its devices: runs what the scheduler decides, and turns tokens into completions.

for index, completions in engine.run(requests): ...
"""

from __future__ import annotations

import dataclasses
from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np

from jaxs1.config import UserError
from jaxs1.decoding.base_engine import ALL_STEPS, BaseEngine, Load, Steps
from jaxs1.decoding.buckets import Buckets, bucket, size_for
from jaxs1.decoding.budget import EndedBy, Phase, TokenKind
from jaxs1.decoding.controls import SequenceLimits, check_sizes, newline_table, with_reserve
from jaxs1.decoding.decode_loop import NO_LIMIT, ChunkOutput, CompiledFunctions
from jaxs1.decoding.decode_state import NewSequence, empty_rows, rows_of, sampling_flags, table
from jaxs1.decoding.outputs import Completion, StreamOutput, TokenLog, complete, failed
from jaxs1.decoding.page_allocator import pages_for
from jaxs1.decoding.params import Request, ThinkingParams
from jaxs1.decoding.prefill_batches import PrefillBatch
from jaxs1.decoding.scheduler import Limits, Schedule, Scheduler
from jaxs1.decoding.sequence import Sequence
from jaxs1.decoding.tokenized_thinking import (
    TokenizedThinking,
    resolve_auto,
    tokenize_thinking,
)
from jaxs1.model.kv_cache import PAD_POSITION, PAGE, init_cache
from jaxs1.model.transformer import Transformer


class Engine(BaseEngine):
    """A model that completes requests.

    Args:
        model: abstract
        params: see `model.decode_params`
        tokenizer: tokenizer of the model
        limits: limits of the engine
        num_pages: pages of the KV cache, page 0 included
        cache_dtype: dtype of keys and values
        impl: implementation of the decode step, a name in `backends.BACKENDS`
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
        longest = limits.max_seq_len or model.architecture.max_position_embeddings
        self.context = min(longest, (num_pages - 1) * PAGE)
        self.scheduler = Scheduler(limits, context=self.context, num_pages=num_pages)
        self.compiled = CompiledFunctions(model, impl, limits.decode_steps)
        self.cache = init_cache(model.architecture, num_pages, cache_dtype, model.rules)
        replicated = model.rules.sharding(())
        self.is_newline_V = jax.device_put(newline_table(tokenizer), replicated)
        rows = empty_rows(
            limits.max_num_seqs,
            max_pages=self.scheduler.max_pages,
            is_newline_V=self.is_newline_V,
        )
        self.decode_state = jax.device_put(rows, replicated)
        # not a method: a cycle would keep the device's memory until the next garbage collection
        self._tokenize = lru_cache(256)(partial(_tokenize, tokenizer))
        self._refused: list[StreamOutput] = []
        self._output: ChunkOutput | None = None

    def check(self, request: Request) -> SequenceLimits:
        """See `BaseEngine`."""
        thinking, prompt, note = self._resolve(request, None)
        limits = self.scheduler.fit(request, thinking, prompt)
        return limits._replace(note=note or limits.note)

    def submit(self, request: Request, longest: int | None = None) -> int:
        """See `BaseEngine`."""
        number = self.submitted
        self.submitted += 1
        try:
            thinking, prompt, note = self._resolve(request, longest)
            self.scheduler.add(number, request, thinking, prompt, note)
        except UserError as error:
            for sample in range(request.n):
                completion = failed(request, sample, str(error))
                self._refused.append(StreamOutput(number, sample, TokenLog(), completion))
        return number

    def cancel(self, number: int) -> None:
        """See `BaseEngine`."""
        self._refused = [output for output in self._refused if output.request != number]
        if rows := self.scheduler.cancel(number):
            padded = _padded(rows, len(self.scheduler.rows))
            self.decode_state = self.compiled.halt(self.decode_state, padded)

    def end_thinking(self, number: int) -> bool:
        """See `BaseEngine`."""
        was_thinking, rows = self.scheduler.end_thinking(number)
        if rows:
            padded = _padded(rows, len(self.scheduler.rows))
            self.decode_state = self.compiled.end_thinking(
                self.decode_state, self.is_newline_V, padded
            )
        return was_thinking

    def load(self) -> Load:
        """See `BaseEngine`."""
        return self.scheduler.load()

    @property
    def busy(self) -> bool:
        """See `BaseEngine`."""
        return bool(self._refused) or self.scheduler.busy

    def begin(self, steps: Steps = ALL_STEPS) -> None:
        """See `BaseEngine`."""
        schedule = self.scheduler.schedule(steps.prefill)
        parts = [part for batch in schedule.prefills for part in batch.parts]
        self.num_prefilled = sum(end - start for _, start, end in parts)
        limits = [x for x in (steps.limit, steps.first if schedule.inserts else None) if x]
        limit = np.int32(min(limits)) if limits else NO_LIMIT
        self._output = self._run(schedule, limit, np.bool_(steps.eager))

    def end(self) -> list[StreamOutput]:
        """See `BaseEngine`."""
        outputs, self._refused = self._refused, []
        self.num_steps = 0
        if self._output is not None:
            outputs += self._postprocess(self._output)
            self._output = None
        return outputs

    @property
    def buckets(self) -> Buckets:
        """Sizes of the compiled programs; may be replaced while the engine is idle."""
        return self.scheduler.buckets

    @buckets.setter
    def buckets(self, buckets: Buckets) -> None:
        self.scheduler.buckets = buckets

    def _resolve(
        self, request: Request, longest: int | None
    ) -> tuple[TokenizedThinking, list[int], str | None]:
        """Thinking parameters and prompt of a request in token ids, and a remark."""
        self._check_ids(request.prompt_ids)
        thinking, note = self._tokenize(request.thinking), None
        if 0 <= request.max_tokens <= len(thinking.cut):
            thinking = self._tokenize(dataclasses.replace(request.thinking, mode="off"))
            note = (
                f"max_tokens={request.max_tokens}: too few to end a thought and to answer; "
                "thinking is off"
            )
        thinking = with_reserve(thinking, request.max_tokens)
        length = (longest or len(request.prompt_ids)) + len(thinking.start)
        return resolve_auto(thinking, [length]), [*request.prompt_ids, *thinking.start], note

    def _run(self, schedule: Schedule, limit: Any, eager: Any) -> ChunkOutput | None:
        for source, target in schedule.page_copies:
            self.cache = self.compiled.copy_page(self.cache, np.int32(source), np.int32(target))
        for batch in schedule.prefills:
            self._prefill(batch)
        if schedule.inserts:
            self._insert(schedule.inserts)
        if schedule.order is not None:
            order = np.asarray(schedule.order, np.int32)
            self.decode_state = self.compiled.reorder(self.decode_state, order)
        if not schedule.num_rows:
            return None
        needed = sampling_flags([s.request.sampling for _, s in self.scheduler.running])
        self.cache, self.decode_state, output = self.compiled.decode_steps(
            self.params,
            self.cache,
            self.decode_state,
            self.is_newline_V,
            limit,
            eager,
            rows=schedule.num_rows,
            pages=schedule.num_pages,
            flags=self.buckets.flags_for(needed),
        )
        return output

    def _prefill(self, batch: PrefillBatch) -> None:
        rows = size_for(self.buckets.rows, len(batch.parts))
        tokens_RT = np.zeros((rows, batch.width), np.int32)
        positions_RT = np.full((rows, batch.width), PAD_POSITION, np.int32)
        for r, (s, start, end) in enumerate(batch.parts):
            tokens_RT[r, : end - start] = s.prompt[start:end]
            positions_RT[r, : end - start] = np.arange(start, end)
        longest = max(end for _, _, end in batch.parts)
        num_pages = size_for(self.buckets.pages, pages_for(longest))
        table_RM = table([s.pages for s, _, _ in batch.parts], rows, num_pages)
        self.cache = self.compiled.prefill(
            self.params, self.cache, tokens_RT, positions_RT, table_RM
        )

    def _insert(self, inserts: list[tuple[int, Sequence]]) -> None:
        rows = _padded([row for row, _ in inserts], len(self.scheduler.rows))
        sequences = [
            NewSequence(
                s.thinking, s.prompt, s.pages, s.limits, s.request.sampling, s.request.seed,
                s.sample,
            )
            for _, s in inserts
        ]  # fmt: skip
        new = rows_of(
            sequences,
            len(rows),
            max_pages=self.scheduler.max_pages,
            is_newline_V=self.is_newline_V,
        )
        self.decode_state = self.compiled.insert(self.decode_state, new, rows)

    def _postprocess(self, output: ChunkOutput) -> list[StreamOutput]:
        """Log the new tokens; finished sequences leave their rows."""
        state = self.decode_state.state
        output, phase, ended_by, finish = jax.device_get(
            (output, state.phase, state.ended_by, state.finish)
        )
        self.num_steps = int(output.count)
        outputs = []
        for row, s in self.scheduler.running:
            new = _log(output, row)
            s.log.extend(new)
            completion, cause = None, _cause(s, EndedBy(ended_by[row]))
            if phase[row] == Phase.DONE:
                self.scheduler.finish(row)
                completion = self._complete(s, cause, int(finish[row]))
            outputs.append(
                StreamOutput(s.number, s.sample, new, completion, cause, s.prefix_tokens)
            )
        return outputs

    def _complete(self, s: Sequence, ended_by: str, finish: int) -> Completion:
        return complete(
            s.request, s.sample, s.thinking, self.tokenizer, s.prompt, s.log,
            ended_by=ended_by, finish=finish, note=s.note or s.limits.note,
        )  # fmt: skip

    def _check_ids(self, ids: Any) -> None:
        if not len(ids):
            raise UserError("prompt: is empty; give at least one token")
        size = len(self.tokenizer)
        if wrong := [i for i in ids if not 0 <= i < size]:
            raise UserError(
                f"prompt: id {wrong[0]} is not in the tokenizer; give ids from 0 to {size - 1}"
            )


def _log(output: ChunkOutput, row: int) -> TokenLog:
    """The new tokens of one row."""
    kind_N = output.kind_NB[: output.count, row]
    is_surplus_N = kind_N == TokenKind.SURPLUS
    is_kept_N = (kind_N != TokenKind.PAD) & ~is_surplus_N
    arrays = (output.token_NB, output.forced_NB, output.kind_NB)
    tokens, forced, kinds = (x_NB[: output.count, row][is_kept_N].tolist() for x_NB in arrays)
    return TokenLog(tokens, forced, kinds, surplus=int(is_surplus_N.sum()))


def _tokenize(tokenizer: Any, params: ThinkingParams) -> TokenizedThinking:
    thinking = tokenize_thinking(params, tokenizer)
    check_sizes(thinking)
    return thinking


def _cause(s: Sequence, ended_by: EndedBy) -> str:
    """Why thinking ended; the device knows only limits, not where they come from."""
    if s.thinking.thinking.mode != s.request.thinking.mode:  # max_tokens leaves no thinking
        return "none"
    if s.ended_by_client and ended_by == EndedBy.BUDGET:
        return "client"
    clamped = ended_by == EndedBy.BUDGET and s.limits.note is not None
    if s.limits.limited_by == "max_tokens" and (clamped or ended_by == EndedBy.CONTEXT):
        return "max_tokens"
    return ended_by.name.lower()


def _padded(rows: list[int], out_of_bounds: int) -> np.ndarray:
    """Row numbers, padded to a power of two with one that is dropped."""
    padded = np.full(bucket(len(rows)), out_of_bounds, np.int32)
    padded[: len(rows)] = rows
    return padded
