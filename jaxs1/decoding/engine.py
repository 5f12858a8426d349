"""One model on its devices: runs what the scheduler decides, and turns tokens into completions.

for index, completions in engine.run(requests): ...
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np

from jaxs1.config import UserError
from jaxs1.decoding.base_engine import ALL_STEPS, BaseEngine, Load, Steps
from jaxs1.decoding.buckets import Buckets, bucket
from jaxs1.decoding.budget import EndedBy, Phase, TokenKind
from jaxs1.decoding.controls import SequenceLimits, check_sizes, newline_table, with_reserve
from jaxs1.decoding.decode_loop import NO_LIMIT, ChunkOutput, CompiledFunctions
from jaxs1.decoding.decode_state import (
    NewSequence,
    empty_rows,
    no_adjustments,
    rows_of,
    sampling_flags,
    table,
)
from jaxs1.decoding.outputs import Completion, StreamOutput, TokenLog, complete, failed
from jaxs1.decoding.params import Request, ThinkingParams
from jaxs1.decoding.prefill_batches import PrefillBatch
from jaxs1.decoding.scheduler import Limits, Schedule, Scheduler
from jaxs1.decoding.scoring import joined
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
        self._init_cache = partial(
            init_cache, model.architecture, num_pages, cache_dtype, model.rules
        )
        self.cache: Any = self._init_cache()
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

    @property
    def adjusts(self) -> bool:
        """Whether the state has the arrays of `sampling.Adjustments`."""
        return self.decode_state.sampling.adjustments is not None

    def allow_adjustments(self) -> None:
        """Add these arrays; the programs for decode steps are compiled again."""
        if not self.adjusts:
            new = no_adjustments(self.limits.max_num_seqs, len(self.is_newline_V))
            new = jax.device_put(new, self.model.rules.sharding(()))
            settings = self.decode_state.sampling._replace(adjustments=new)
            self.decode_state = self.decode_state._replace(sampling=settings)

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
        first = steps.first if schedule.prefills or schedule.inserts else None
        limits = [x for x in (steps.limit, first) if x]
        limit = np.int32(min(limits)) if limits else NO_LIMIT
        self._prepare(schedule, is_timed=steps.prefill is not None)
        self._output = self._decode(schedule, limit, np.bool_(steps.eager))

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

    def release(self) -> None:
        """Drop weights and cache, so that other programs have their memory; only while idle."""
        assert not self.busy
        self.params = self.cache = None

    def load_params(self, params: Any) -> None:
        """Continue with other weights, and with an empty cache; only while idle."""
        assert not self.busy
        self.scheduler.pages.forget()
        self.params, self.cache = params, self._init_cache()

    def _resolve(
        self, request: Request, longest: int | None
    ) -> tuple[TokenizedThinking, list[int], str | None]:
        """Thinking parameters and prompt of a request in token ids, and a remark."""
        self._check_ids("prompt", request.prompt_ids)
        self._check_ids("sampling.logit_bias", request.sampling.logit_bias)
        texts = (request.answer_start, request.tool_call)
        thinking, note = self._tokenize(request.thinking, *texts), None
        if 0 <= request.max_tokens <= len(thinking.cut):
            off = dataclasses.replace(request.thinking, mode="off")
            thinking = self._tokenize(off, *texts)
            note = (
                f"max_tokens={request.max_tokens}: too few to end a thought and to answer; "
                "thinking is off"
            )
        if request.ignore_eos:
            thinking = dataclasses.replace(thinking, stops=())
        thinking = with_reserve(thinking, request.max_tokens)
        length = (longest or len(request.prompt_ids)) + len(thinking.start)
        return resolve_auto(thinking, [length]), [*request.prompt_ids, *thinking.start], note

    def _prepare(self, schedule: Schedule, *, is_timed: bool) -> None:
        """Everything before the decode steps; waits for the prefill if its time is wanted."""
        start = time.monotonic()
        for source, target in schedule.page_copies:
            self.cache = self.compiled.copy_page(self.cache, np.int32(source), np.int32(target))
        for batch in schedule.prefills:
            self._prefill(batch)
        if schedule.inserts:
            self._insert(schedule.inserts)
        if schedule.order is not None:
            order = np.asarray(schedule.order, np.int32)
            self.decode_state = self.compiled.reorder(self.decode_state, order)
        self.prefilled = [batch.shape for batch in schedule.prefills]
        if is_timed and self.prefilled:
            jax.block_until_ready(self.cache)
        self.prefill_seconds = time.monotonic() - start

    def _decode(self, schedule: Schedule, limit: Any, eager: Any) -> ChunkOutput | None:
        if not schedule.num_rows:
            return None
        requests = [s.request for _, s in self.scheduler.running]
        needed = sampling_flags(
            [r.sampling for r in requests],
            logprobs=any(r.logprobs for r in requests),
            scored=any(r.scores for r in requests),
        )
        flags = self.buckets.flags_for(needed)
        self.cache, self.decode_state, output = self.compiled.decode_steps(
            self.params,
            self.cache,
            self.decode_state,
            self.is_newline_V,
            limit,
            eager,
            rows=schedule.num_rows,
            pages=schedule.num_pages,
            flags=flags._replace(adjusted=flags.adjusted and self.adjusts),
        )
        return output

    def _prefill(self, batch: PrefillBatch) -> None:
        arrays = self._prompt_arrays(batch)
        if not batch.shape.scored:
            self.cache = self.compiled.prefill(self.params, self.cache, *arrays)
            return
        next_RT = np.zeros_like(arrays[0])
        for next_T, (s, start, end) in zip(next_RT, batch.parts, strict=False):
            next_T[: end - start] = s.prompt[start + 1 : end + 1]
        self.cache, scores_RT = self.compiled.score(self.params, self.cache, *arrays, next_RT)
        for row, (s, start, end) in enumerate(batch.parts):
            s.scores.append((scores_RT, row, end - start))

    def _prompt_arrays(self, batch: PrefillBatch) -> tuple[np.ndarray, np.ndarray, Any]:
        """Tokens, positions and page table of parts of prompts, a row for each."""
        rows, width, pages, _ = batch.shape
        tokens_RT = np.zeros((rows, width), np.int32)
        positions_RT = np.full((rows, width), PAD_POSITION, np.int32)
        for r, (s, start, end) in enumerate(batch.parts):
            tokens_RT[r, : end - start] = s.prompt[start:end]
            positions_RT[r, : end - start] = np.arange(start, end)
        return tokens_RT, positions_RT, table([s.pages for s, _, _ in batch.parts], rows, pages)

    def _insert(self, inserts: list[tuple[int, Sequence]]) -> None:
        if any(s.request.sampling.is_adjusted for _, s in inserts):
            self.allow_adjustments()
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
            adjusted=self.adjusts,
        )
        self.decode_state = self.compiled.insert(self.decode_state, new, rows)

    def _postprocess(self, output: ChunkOutput) -> list[StreamOutput]:
        """Log the new tokens; finished sequences leave their rows."""
        state = self.decode_state.state
        output, phase, ended_by, finish = jax.device_get(
            (output, state.phase, state.ended_by, state.finish)
        )
        self.num_steps = int(output.count)
        outputs, running = [], self.scheduler.running
        for (row, s), new in zip(running, _logs(output, running), strict=True):
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
        completion = complete(
            s.request, s.sample, s.thinking, self.tokenizer, s.prompt, s.log,
            ended_by=ended_by, finish=finish, note=s.note or s.limits.note,
        )  # fmt: skip
        if not s.request.prompt_scores:
            return completion
        return dataclasses.replace(completion, prompt_scores=joined((s.first or s).scores))

    def _check_ids(self, name: str, ids: Any) -> None:
        if name == "prompt" and not len(ids):
            raise UserError("prompt: is empty; give at least one token")
        size = len(self.tokenizer)
        if wrong := [i for i in ids if not 0 <= i < size]:
            raise UserError(
                f"{name}: id {wrong[0]} is not in the tokenizer; give ids from 0 to {size - 1}"
            )


def _logs(output: ChunkOutput, running: list[tuple[int, Sequence]]) -> Iterator[TokenLog]:
    """The new tokens of each row in use."""
    kind_NB = output.kind_NB[: output.count]
    is_surplus_NB = kind_NB == TokenKind.SURPLUS
    is_kept_BN = np.ascontiguousarray(((kind_NB != TokenKind.PAD) & ~is_surplus_NB).T)
    surplus_B = is_surplus_NB.sum(axis=0).tolist()
    for row, s in running:

        def column(x_NB: Any, row: int = row) -> list[Any]:
            return x_NB[: output.count, row][is_kept_BN[row]].tolist()

        tokens, forced, kinds = map(column, (output.token_NB, output.forced_NB, kind_NB))
        log = TokenLog(tokens, forced, kinds, surplus=surplus_B[row])
        if s.request.logprobs:
            columns = (output.choice_NB, output.logprob_NB, output.gated_NB)
            log.choices, log.logprobs, log.gated = map(column, columns)
        if s.request.scores and output.scores_NB is not None:
            log.scores = list(zip(*map(column, output.scores_NB), strict=True))
        yield log


def _tokenize(tokenizer: Any, params: ThinkingParams, *texts: str) -> TokenizedThinking:
    thinking = tokenize_thinking(params, tokenizer, *texts)
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
