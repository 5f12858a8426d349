"""The rows of a batch: all that the compiled loop needs to know of a sequence, made on the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxs1.decoding import budget
from jaxs1.decoding.outputs import SamplingParams
from jaxs1.decoding.sampling import SamplingFlags, SamplingState
from jaxs1.decoding.tokenized_thinking import SIZES, TokenizedThinking, build_controls
from jaxs1.model.kv_cache import NULL_PAGE, PAGE


class DecodeState(NamedTuple):
    """Where each sequence stands; a pytree of arrays whose rows are sequences.

    controls: what was asked, `is_newline_V` left out (None): one table serves all
    state: of the controller
    draw: how tokens are drawn
    token: int32, the newest token, not yet in the cache
    position: int32, where it stands, from 0 at the prompt's first token
    table_BM: int32, pages
    """

    controls: budget.Controls
    state: budget.State
    draw: SamplingState
    token: Any
    position: Any
    table_BM: Any


class NewSequence(NamedTuple):
    """A sequence whose prompt is in the cache, all but the last token.

    asked: what is asked of its thinking; prompt: ids; pages: of the cache; sampling: how it draws;
    seed, sample: its randomness
    """

    asked: TokenizedThinking
    prompt: list[int]
    pages: list[int]
    sampling: SamplingParams
    seed: int
    sample: int


def rows_of(
    starts: Sequence[NewSequence], rows: int, *, context: int, max_pages: int, is_newline_V: Any
) -> DecodeState:
    """Rows for sequences at their start; the last one is repeated to fill up.

    Args:
        starts: at most `rows`, at least one
        rows: number of rows
        context: longest sequence [tokens]
        max_pages: width of the table
        is_newline_V: from `script.newline_table`
    """
    starts = [*starts, *[starts[-1]] * (rows - len(starts))]
    prompts = [s.prompt for s in starts]
    controls, _ = build_controls([s.asked for s in starts], prompts, context, is_newline_V, SIZES)
    # no more max_new_tokens than there are pages: a row without pages is an empty slot
    held = np.asarray([len(s.pages) * PAGE - len(s.prompt) for s in starts], np.int32)
    controls = controls._replace(
        max_new_tokens=np.clip(controls.max_new_tokens, 0, np.maximum(held, 0))
    )
    return DecodeState(
        controls=controls._replace(is_newline_V=None),
        state=_init(controls),
        draw=_draw(starts, len(is_newline_V)),
        token=np.asarray([p[-1] for p in prompts], np.int32),
        position=np.asarray([len(p) - 1 for p in prompts], np.int32),
        table_BM=table([s.pages for s in starts], rows, max_pages),
    )


def table(pages: Sequence[list[int]], rows: int, max_pages: int) -> np.ndarray:
    """The page table of some sequences, int32 [rows, max_pages]; the rest is NULL_PAGE."""
    table_BM = np.full((rows, max_pages), NULL_PAGE, np.int32)
    for row_M, held in zip(table_BM, pages, strict=False):
        row_M[: len(held)] = held[:max_pages]
    return table_BM


def sampling_flags(sampling: Sequence[SamplingParams]) -> SamplingFlags:
    """What these settings need of the compiled loop."""
    drawn = [s for s in sampling if not s.is_greedy]
    return SamplingFlags(
        sampled=bool(drawn),
        filtered=any(s.top_k or s.top_p < 1 or s.min_p for s in drawn),
        penalised=any(s.repetition_penalty != 1 for s in sampling),
    )


def _draw(starts: Sequence[NewSequence], vocabulary: int) -> SamplingState:
    asked = [s.sampling for s in starts]
    seen_BV = np.zeros((len(starts), vocabulary), bool)
    for row_V, s in zip(seen_BV, starts, strict=True):
        if s.sampling.repetition_penalty != 1:
            row_V[s.prompt] = True

    def column(name: str, dtype: Any = np.float32) -> np.ndarray:
        return np.asarray([getattr(s, name) for s in asked], dtype)

    answer = [
        s.temperature if s.answer_temperature is None else s.answer_temperature for s in asked
    ]
    seed_B = np.asarray([s.seed & 0xFFFFFFFF for s in starts], np.uint32)
    sample_B = np.asarray([s.sample for s in starts], np.uint32)
    return SamplingState(
        temperature=column("temperature"),
        answer_temperature=np.asarray(answer, np.float32),
        top_k=column("top_k", np.int32),
        top_p=column("top_p"),
        min_p=column("min_p"),
        penalty=column("repetition_penalty"),
        seen_BV=seen_BV,
        key_B=_keys(seed_B, sample_B),
    )


#: One program: on its own, every operation would be a call to the device.
_init = jax.jit(budget.init)


@jax.jit
def _keys(seed_B: jax.Array, sample_B: jax.Array) -> jax.Array:
    """A random key for every sequence, uint32 [B, 2]."""

    def key(seed: jax.Array, sample: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.PRNGKey(seed), sample)

    return jax.vmap(key)(seed_B, sample_B)
