"""The compiled part of decoding: prefill, and decode steps with the controller inside.

    [ model -> forbid -> sample -> budget.step ]*      one `lax.while_loop`

All that belongs to a sequence is in one row of `DecodeState`; its keys and values are in the cache.
Each function is compiled once per bucket of shapes (rows, pages, prompt tokens).

Letters in addition to those of `architecture.py` and `kv_cache.py`: N decode steps, R rows of a
prefill or an insertion.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxs1.decoding import budget, sampling, scoring
from jaxs1.decoding.budget import Phase, TokenKind
from jaxs1.decoding.decode_state import DecodeState
from jaxs1.decoding.sampling import SamplingFlags
from jaxs1.decoding.scoring import TokenScores
from jaxs1.model import decode, kv_cache
from jaxs1.model.backends import BACKENDS
from jaxs1.model.kv_cache import KVCache
from jaxs1.model.transformer import Transformer

#: `limit` of `decode_steps` that runs all its steps, or until every sequence has ended.
NO_LIMIT = np.int32(np.iinfo(np.int32).max)


class ChunkOutput(NamedTuple):
    """The tokens of some decode steps.

    Args:
        count: int32, steps that were run; later rows of the other arrays are unused
        token_NB: int32, token ids
        forced_NB: bool, whether the controller inserted the token
        kind_NB: int32, `budget.TokenKind` of each token
        choice_NB: int32, id that the model chose, which the controller may have replaced;
            budget.NONE where it had no choice. Like the next two None without `flags.logprobs`
        logprob_NB: float32, log-probability of the choice, see `sampling.sample`; 0 without one
        gated_NB: bool, whether the model was not allowed to end its thinking
        scores_NB: scores of token_NB; None without `flags.scored`
    """

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count
    token_NB: jax.Array
    forced_NB: jax.Array
    kind_NB: jax.Array
    choice_NB: jax.Array | None = None
    logprob_NB: jax.Array | None = None
    gated_NB: jax.Array | None = None
    scores_NB: TokenScores | None = None


class _Carry(NamedTuple):
    cache: KVCache
    state: DecodeState
    output: ChunkOutput


def prefill(
    model: Transformer,
    params: Any,
    cache: KVCache,
    tokens_RT: jax.Array,
    positions_RT: jax.Array,
    table_RM: jax.Array,
) -> KVCache:
    """Write the keys and values of prompt tokens; padding has position kv_cache.PAD_POSITION."""
    return decode.forward(model, params, cache, tokens_RT, positions_RT, table_RM)[1]


def decode_steps(
    model: Transformer,
    params: Any,
    cache: KVCache,
    decode_state: DecodeState,
    is_newline_V: jax.Array,
    limit: jax.Array,
    eager: jax.Array,
    *,
    num_steps: int,
    rows: int,
    pages: int,
    flags: SamplingFlags,
    impl: str,
) -> tuple[KVCache, DecodeState, ChunkOutput]:
    """Some tokens for each of the first `rows` rows; stops early once all are DONE.

    Args:
        model: abstract
        params: see `model.decode_params`
        cache: keys and values of all tokens but each sequence's newest
        decode_state: all rows
        is_newline_V: bool, as long as the tokenizer; ids beyond it are never sampled
        limit: int32, maximum number of steps, at most `num_steps`
        eager: bool, stop as soon as any sequence has ended
        num_steps: static, size of the output
        rows: static, number of rows that are decoded
        pages: static, pages of a row; must cover every position that these steps can reach
        flags: static, what any of the rows needs of `sampling.sample`
        impl: static, a name in `backends.BACKENDS`
    """
    active = jax.tree.map(lambda x: x[:rows], decode_state)
    table_BM = active.table_BM[:, :pages]

    def step(carry: _Carry) -> _Carry:
        logits_BV, cache = _logits(model, params, carry.cache, carry.state, table_BM, impl)
        all_BV, logits_BV = logits_BV, logits_BV[:, : is_newline_V.shape[0]]
        state, new = _next_tokens(active.controls, is_newline_V, carry.state, logits_BV, flags)
        new = (*new, scoring.scores_of(all_BV, new[0]) if flags.scored else None)
        i, *arrays = carry.output
        arrays = jax.tree.map(lambda all_NB, x_B: all_NB.at[i].set(x_B), tuple(arrays), new)
        return _Carry(cache, state, ChunkOutput(i + 1, *arrays))

    def is_unfinished(carry: _Carry) -> jax.Array:
        running_B = carry.state.state.phase != Phase.DONE
        ended = jnp.any(running_at_start_B & ~running_B)
        return (carry.output.count < limit) & jnp.any(running_B) & ~(eager & ended)

    limit = jnp.minimum(limit, num_steps)
    running_at_start_B = active.state.phase != Phase.DONE
    start = _Carry(cache, active, _empty_output(num_steps, rows, flags))
    cache, active, output = lax.while_loop(is_unfinished, step, start)
    return cache, _with_rows(decode_state, active, rows, flags), output


def _with_rows(all_B: DecodeState, active: DecodeState, rows: int, flags: SamplingFlags) -> Any:
    """The state with what steps may have changed in its first rows.

    All else goes through untouched, which takes neither operations nor memory.
    """

    def put(all_B: Any, active: Any) -> Any:
        return jax.tree.map(lambda x, new: x.at[:rows].set(new), all_B, active)

    changes_settings = flags.penalised or flags.adjusted
    return all_B._replace(
        state=put(all_B.state, active.state),
        token=put(all_B.token, active.token),
        position=put(all_B.position, active.position),
        sampling=put(all_B.sampling, active.sampling) if changes_settings else all_B.sampling,
    )


def _empty_output(num_steps: int, rows: int, flags: SamplingFlags) -> ChunkOutput:
    empty = jnp.zeros((num_steps, rows), jnp.int32)
    output = ChunkOutput(jnp.int32(0), empty, empty.astype(bool), empty)
    number = empty.astype(jnp.float32)
    if flags.logprobs:
        output = output._replace(choice_NB=empty, logprob_NB=number, gated_NB=empty.astype(bool))
    if flags.scored:
        output = output._replace(scores_NB=TokenScores(number, empty, number))
    return output


def _logits(
    model: Transformer,
    params: Any,
    cache: KVCache,
    rows: DecodeState,
    table_BM: jax.Array,
    impl: str,
) -> tuple[jax.Array, KVCache]:
    """Run the model on each row's newest token."""
    over_B1 = (rows.state.phase == Phase.DONE)[:, None]
    x_B1D, cache = decode.forward(
        model,
        params,
        cache,
        rows.token[:, None],
        # the pages of a finished sequence may belong to another one by now
        jnp.where(over_B1, 0, rows.position[:, None]),
        jnp.where(over_B1, kv_cache.NULL_PAGE, table_BM),
        impl=impl,
    )
    return decode.logits(model, params, x_B1D[:, 0], impl=impl), cache


def _next_tokens(
    controls: budget.Controls,
    is_newline_V: jax.Array,
    rows: DecodeState,
    logits_BV: jax.Array,
    flags: SamplingFlags,
) -> tuple[DecodeState, tuple[Any, ...]]:
    """Sample, let the controller decide, advance; also this step's row of a `ChunkOutput`."""
    row_B = jnp.arange(logits_BV.shape[0])
    ids_BE = budget.forbidden(controls, rows.state)
    logits_BV = logits_BV.at[row_B[:, None], ids_BE].set(-jnp.inf, mode="drop")
    if flags.adjusted:
        min_tokens_B = sampling.adjustments_of(rows.sampling).min_tokens
        ids_BS = budget.forbidden_stops(controls, rows.state, min_tokens_B)
        logits_BV = logits_BV.at[row_B[:, None], ids_BS].set(-jnp.inf, mode="drop")
    answering_B = rows.state.phase == Phase.ANSWER
    # a token after a surplus must not repeat the surplus's random number
    drawn_B = rows.state.position + rows.state.surplus
    sampled_B, logprob_B = sampling.sample(logits_BV, rows.sampling, answering_B, drawn_B, flags)
    choice = _choice(rows.state, ids_BE, sampled_B, logprob_B)
    state, token_B, forced_B = budget.step(controls, is_newline_V, rows.state, sampled_B)
    is_new_B = state.kind != TokenKind.PAD
    is_surplus_B = state.kind == TokenKind.SURPLUS
    # behind a surplus, the row is set back to the last token that is kept; the cache is overwritten
    back_B = (rows.state.kind == TokenKind.SURPLUS) & ~is_surplus_B
    settings = rows.sampling
    if flags.penalised:
        settings = sampling.see(settings, token_B, is_new_B, is_surplus_B, back_B)
    if flags.adjusted:
        settings = sampling.count(settings, token_B, is_new_B & ~is_surplus_B)
    rows = rows._replace(
        state=state,
        sampling=settings,
        token=jnp.where(is_new_B, token_B, rows.token),
        position=rows.position + is_new_B - jnp.where(back_B, state.surplus, 0),
    )
    return rows, (token_B, forced_B, state.kind, *choice)


def _choice(
    state: budget.State, ids_BE: jax.Array, sampled_B: jax.Array, logprob_B: jax.Array | None
) -> tuple[jax.Array | None, ...]:
    """The model's choice of this step, its log-probability, and whether ends were forbidden."""
    if logprob_B is None:
        return None, None, None
    chooses_B = (state.phase == Phase.THINK) | (state.phase == Phase.ANSWER)
    return (
        jnp.where(chooses_B, sampled_B, budget.NONE),
        jnp.where(chooses_B, logprob_B, 0),
        (ids_BE != budget.NEVER).any(axis=1),
    )


def insert(decode_state: DecodeState, new: DecodeState, rows_R: jax.Array) -> DecodeState:
    """Write new sequences into rows; a row number out of bounds is dropped."""
    return jax.tree.map(lambda x, row: x.at[rows_R].set(row, mode="drop"), decode_state, new)


def reorder(decode_state: DecodeState, rows_B: jax.Array) -> DecodeState:
    """Move row `rows_B[i]` to row i."""
    return jax.tree.map(lambda x: x[rows_B], decode_state)


def halt(decode_state: DecodeState, rows_R: jax.Array) -> DecodeState:
    """Set rows to DONE: from now on they use no page. A row number out of bounds is dropped."""
    phase = decode_state.state.phase.at[rows_R].set(Phase.DONE, mode="drop")
    return decode_state._replace(state=decode_state.state._replace(phase=phase))


def end_thinking(
    decode_state: DecodeState, is_newline_V: jax.Array, rows_R: jax.Array
) -> DecodeState:
    """End the thinking of some rows now, as if their budget were used up and no Wait were left.

    A row number out of bounds is dropped; rows that do not think are only kept from thinking again.
    """
    controls, state = decode_state.controls, decode_state.state
    budget_B = controls.thinking_budget.at[rows_R].set(state.thinking_used[rows_R], mode="drop")
    num_waits_B = controls.num_waits.at[rows_R].set(0, mode="drop")
    controls = controls._replace(thinking_budget=budget_B, num_waits=num_waits_B)
    waits_left_B = state.waits_left.at[rows_R].set(0, mode="drop")
    before = state._replace(waits_left=waits_left_B)
    state = budget.cut_where_used_up(controls, is_newline_V, before)
    changed_B1 = (state.phase != before.phase)[:, None]
    state = state._replace(recent_BH=jnp.where(changed_B1, budget.NONE, state.recent_BH))
    return decode_state._replace(controls=controls, state=state)


class CompiledFunctions:
    """The functions above, jitted for one model.

    Args:
        model: abstract
        impl: implementation of the decode step, a name in `backends.BACKENDS`
        num_steps: decode steps per call
    """

    def __init__(self, model: Transformer, impl: str, num_steps: int):
        self.model, self.impl = model, impl
        replicated = model.rules.sharding(())
        cache = model.rules.sharding(kv_cache.AXES)
        self.prefill = jax.jit(partial(prefill, model), donate_argnums=1, out_shardings=cache)
        self.decode_steps = jax.jit(
            partial(decode_steps, model, num_steps=num_steps, impl=impl),
            static_argnames=("rows", "pages", "flags"),
            donate_argnums=1,
            out_shardings=(cache, replicated, replicated),
            compiler_options=BACKENDS[impl].compiler_options(),
        )
        self.score = jax.jit(
            partial(scoring.score, model),
            donate_argnums=1,
            out_shardings=(cache, replicated),
        )
        self.copy_page = jax.jit(kv_cache.copy_page, donate_argnums=0, out_shardings=cache)
        self.insert = jax.jit(insert, out_shardings=replicated)
        self.halt = jax.jit(halt, out_shardings=replicated)
        self.end_thinking = jax.jit(end_thinking, out_shardings=replicated)
        self.reorder = jax.jit(reorder, out_shardings=replicated)
