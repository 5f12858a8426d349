"""The rows of a batch: all that the compiled loop needs of each sequence, prepared on the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxs1.decoding import budget
from jaxs1.decoding.budget import NEVER
from jaxs1.decoding.controls import SequenceLimits, build_controls
from jaxs1.decoding.params import MAX_BIASES, SamplingParams, ThinkingParams
from jaxs1.decoding.sampling import SEEN, Adjustments, SamplingFlags, SamplingState
from jaxs1.decoding.tokenized_thinking import TokenizedThinking
from jaxs1.model.kv_cache import NULL_PAGE


class DecodeState(NamedTuple):
    """State of the sequences of a batch; a pytree of arrays whose rows are sequences.

    Args:
        controls: settings of the controller
        state: state of the controller
        sampling: sampling parameters and random keys
        token: int32 [B], newest token, not yet in the cache
        position: int32 [B], its position, counted from the prompt's first token
        table_BM: int32, pages of each sequence
    """

    controls: budget.Controls
    state: budget.State
    sampling: SamplingState
    token: jax.Array
    position: jax.Array
    table_BM: jax.Array


class NewSequence(NamedTuple):
    """A sequence whose prompt is in the cache, except for the last token.

    Args:
        thinking: thinking parameters in token ids
        prompt: token ids, start of thinking included
        pages: pages of the cache
        limits: budget and maximum length, from `controls.fit`
        sampling: sampling parameters
        seed: random seed of the request
        sample: index among the request's completions
    """

    thinking: TokenizedThinking
    prompt: list[int]
    pages: list[int]
    limits: SequenceLimits
    sampling: SamplingParams
    seed: int
    sample: int


def rows_of(
    sequences: Sequence[NewSequence],
    rows: int,
    *,
    max_pages: int,
    is_newline_V: jax.Array | np.ndarray,
    adjusted: bool = False,
) -> DecodeState:
    """The first state of some sequences; the last one is repeated to fill up the rows.

    Args:
        sequences: at least one, at most `rows`
        rows: number of rows
        max_pages: width of the page table
        is_newline_V: from `controls.newline_table`
        adjusted: whether the state has `sampling.Adjustments`
    """
    sequences = [*sequences, *[sequences[-1]] * (rows - len(sequences))]
    prompts = [s.prompt for s in sequences]
    controls = build_controls(
        [s.thinking for s in sequences], prompts, [s.limits for s in sequences]
    )
    token: Any = np.asarray([p[-1] for p in prompts], np.int32)
    position: Any = np.asarray([len(p) - 1 for p in prompts], np.int32)
    return DecodeState(
        controls=controls,
        state=_init(controls, is_newline_V),
        sampling=_sampling(sequences, len(is_newline_V), adjusted),
        token=token,
        position=position,
        table_BM=table([s.pages for s in sequences], rows, max_pages),
    )


def empty_rows(
    rows: int,
    *,
    max_pages: int,
    is_newline_V: jax.Array | np.ndarray,
    adjusted: bool = False,
) -> DecodeState:
    """Rows without a sequence: DONE from the start."""
    params = ThinkingParams(mode="off", min_answer_tokens=1)
    thinking = TokenizedThinking(params, (), (), (), (), (), (), (), (), ())
    nothing = SequenceLimits(budget=0, max_new_tokens=0, num_pages=0)
    sequence = NewSequence(thinking, [0], [], nothing, SamplingParams(), seed=0, sample=0)
    return rows_of(
        [sequence], rows, max_pages=max_pages, is_newline_V=is_newline_V, adjusted=adjusted
    )


def table(pages: Sequence[list[int]], rows: int, max_pages: int) -> Any:
    """The page table of some sequences, int32 [rows, max_pages], padded with NULL_PAGE."""
    table_BM = np.full((rows, max_pages), NULL_PAGE, np.int32)
    for row_M, held in zip(table_BM, pages, strict=False):
        row_M[: len(held)] = held[:max_pages]
    return table_BM


def sampling_flags(
    sampling: Sequence[SamplingParams], *, logprobs: bool = False, scored: bool = False
) -> SamplingFlags:
    """What these settings need of the compiled loop, and whether log-probabilities are wanted."""
    sampled = [s for s in sampling if not s.is_greedy]
    return SamplingFlags(
        sampled=bool(sampled),
        filtered=any(s.top_k or s.top_p < 1 or s.min_p for s in sampled),
        penalised=any(s.repetition_penalty != 1 for s in sampling),
        adjusted=any(s.is_adjusted for s in sampling),
        logprobs=logprobs,
        scored=scored,
    )


def no_adjustments(rows: int, vocabulary: int) -> Adjustments:
    """Adjustments that change nothing."""
    return _adjustments([SamplingParams()] * rows, vocabulary)


def _adjustments(params: Sequence[SamplingParams], vocabulary: int) -> Adjustments:
    rows = len(params)
    biased_BN: Any = np.full((rows, MAX_BIASES), NEVER, np.int32)
    bias_BN: Any = np.zeros((rows, MAX_BIASES), np.float32)
    for row, p in enumerate(params):
        biased_BN[row, : len(p.logit_bias)] = list(p.logit_bias)
        bias_BN[row, : len(p.logit_bias)] = list(p.logit_bias.values())
    presence: Any = np.asarray([p.presence_penalty for p in params], np.float32)
    frequency: Any = np.asarray([p.frequency_penalty for p in params], np.float32)
    count_BV: Any = np.zeros((rows, vocabulary), np.uint16)
    min_tokens: Any = np.asarray([p.min_tokens for p in params], np.int32)
    return Adjustments(presence, frequency, count_BV, biased_BN, bias_BN, min_tokens)


def _sampling(sequences: Sequence[NewSequence], vocabulary: int, adjusted: bool) -> SamplingState:
    params = [s.sampling for s in sequences]
    seen_BV: Any = np.zeros((len(sequences), vocabulary), np.uint8)
    for row_V, s in zip(seen_BV, sequences, strict=True):
        if s.sampling.repetition_penalty != 1:
            row_V[s.prompt] = SEEN

    def column(name: str, dtype: Any = np.float32) -> Any:
        return np.asarray([getattr(p, name) for p in params], dtype)

    answer: Any = np.asarray(
        [p.temperature if p.answer_temperature is None else p.answer_temperature for p in params],
        np.float32,
    )
    seed_B = np.asarray([s.seed & 0xFFFFFFFF for s in sequences], np.uint32)
    sample_B = np.asarray([s.sample for s in sequences], np.uint32)
    return SamplingState(
        temperature=column("temperature"),
        answer_temperature=answer,
        top_k=column("top_k", np.int32),
        top_p=column("top_p"),
        min_p=column("min_p"),
        penalty=column("repetition_penalty"),
        seen_BV=seen_BV,
        key_B=_keys(seed_B, sample_B),
        adjustments=_adjustments(params, vocabulary) if adjusted else None,
    )


#: Jitted, or every operation would be a launch of its own.
_init = jax.jit(budget.init)


@jax.jit
def _keys(seed_B: jax.Array, sample_B: jax.Array) -> jax.Array:
    """A random key for every sequence, uint32 [B, 2]."""

    def key(seed: jax.Array, sample: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.PRNGKey(seed), sample)

    return jax.vmap(key)(seed_B, sample_B)
