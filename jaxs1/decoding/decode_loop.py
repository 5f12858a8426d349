"""The compiled part of decoding: prefill, and a chunk of steps with the controller inside.

    [ model -> forbid -> choose -> budget.step ]*      one `lax.while_loop`

Everything that a sequence has lies in one row of `DecodeState`; its keys and values lie in the cache. A
function is compiled once for each bucket of shapes (rows, pages, prompt tokens).

Letters beside those of `architecture.py` and `kv_cache.py`: N steps of a chunk, R rows of a
prefill.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxs1.decoding import budget, sampling
from jaxs1.decoding.decode_state import DecodeState
from jaxs1.decoding.sampling import SamplingFlags
from jaxs1.model import decode, kv_cache
from jaxs1.model.backends import BACKENDS
from jaxs1.model.kv_cache import KVCache
from jaxs1.model.transformer import Transformer


class ChunkOutput(NamedTuple):
    """What a chunk wrote. count: steps that were run, the other rows of [N, B] are empty."""

    count: Any
    token_NB: Any
    forced_NB: Any
    kind_NB: Any


def prefill(
    model: Transformer,
    params: Any,
    cache: KVCache,
    tokens_RT: Any,
    positions_RT: Any,
    table_RM: Any,
) -> KVCache:
    """Bring tokens of prompts into the cache; positions of padding are kv_cache.PAD_POSITION."""
    return decode.forward(model, params, cache, tokens_RT, positions_RT, table_RM)[1]


def chunk(
    model: Transformer,
    params: Any,
    cache: KVCache,
    slots: DecodeState,
    is_newline_V: Any,
    *,
    steps: int,
    rows: int,
    pages: int,
    kinds: SamplingFlags,
    impl: str,
) -> tuple[KVCache, DecodeState, ChunkOutput]:
    """Up to `steps` tokens for the first `rows` slots; ends early where all are DONE.

    Args:
        model: abstract
        params: see `model.decode_params`
        cache: keys and values of all tokens but each sequence's newest
        slots: all slots
        is_newline_V: bool, as long as the tokenizer; ids beyond it are never chosen
        steps, rows, pages, kinds, impl: static. `pages` must hold every position of the chunk
    """
    vocabulary = is_newline_V.shape[0]
    active = jax.tree.map(lambda x: x[:rows], slots)
    controls = active.controls._replace(is_newline_V=is_newline_V)
    table_BM = active.table_BM[:, :pages]
    row_B = jnp.arange(rows)

    def step(carry: Any) -> Any:
        i, cache, now, written = carry
        over_B1 = (now.state.phase == budget.DONE)[:, None]
        x_B1D, cache = decode.forward(
            model,
            params,
            cache,
            now.token[:, None],
            # a sequence that has ended may have given its pages to another one
            jnp.where(over_B1, 0, now.position[:, None]),
            jnp.where(over_B1, kv_cache.NULL_PAGE, table_BM),
            impl=impl,
        )
        logits_BV = decode.logits(model, params, x_B1D[:, 0], impl=impl)[:, :vocabulary]
        ids_BE = budget.forbidden(controls, now.state)
        logits_BV = logits_BV.at[row_B[:, None], ids_BE].set(-jnp.inf, mode="drop")
        answering_B = now.state.phase == budget.ANSWER
        choice_B = sampling.sample(logits_BV, now.draw, answering_B, now.state.position, kinds)
        state, token_B, forced_B = budget.step(controls, now.state, choice_B)
        wrote_B = state.kind != budget.PASSED
        draw = now.draw
        if kinds.penalised:
            draw = draw._replace(seen_BV=draw.seen_BV.at[row_B, token_B].max(wrote_B))
        now = now._replace(
            state=state,
            draw=draw,
            token=jnp.where(wrote_B, token_B, now.token),
            position=now.position + wrote_B,
        )
        new = (token_B, forced_B, state.kind)
        written = jax.tree.map(lambda all_NB, x_B: all_NB.at[i].set(x_B), written, new)
        return i + 1, cache, now, written

    def go_on(carry: Any) -> jax.Array:
        i, _, now, _ = carry
        return (i < steps) & jnp.any(now.state.phase != budget.DONE)

    empty = jnp.zeros((steps, rows), jnp.int32)
    start = (jnp.int32(0), cache, active, (empty, empty.astype(bool), empty))
    count, cache, active, written = lax.while_loop(go_on, step, start)
    slots = jax.tree.map(lambda x, new: x.at[:rows].set(new), slots, active)
    return cache, slots, ChunkOutput(count, *written)


def place(slots: DecodeState, new: DecodeState, rows_R: Any) -> DecodeState:
    """Put new sequences into their slots; a row out of bounds is dropped."""
    return jax.tree.map(lambda x, row: x.at[rows_R].set(row, mode="drop"), slots, new)


def reorder(slots: DecodeState, rows_B: Any) -> DecodeState:
    """Row i becomes what row `rows_B[i]` was."""
    return jax.tree.map(lambda x: x[rows_B], slots)


class CompiledFunctions:
    """The functions above, compiled for one model; each shape bucket once.

    Args:
        model: abstract
        impl: of the decode step, a name in `BACKENDS`
        steps: of a chunk
    """

    def __init__(self, model: Transformer, impl: str, steps: int):
        self.impl = impl
        whole = model.rules.sharding(())
        cache = model.rules.sharding(kv_cache.AXES)
        self.prefill = jax.jit(partial(prefill, model), donate_argnums=1, out_shardings=cache)
        self.chunk = jax.jit(
            partial(chunk, model, steps=steps, impl=impl),
            static_argnames=("rows", "pages", "kinds"),
            donate_argnums=1,
            out_shardings=(cache, whole, whole),
            compiler_options=BACKENDS[impl].compiler_options(),
        )
        self.copy_page = jax.jit(kv_cache.copy_page, donate_argnums=0, out_shardings=cache)
        self.place = jax.jit(place, out_shardings=whole)
        self.reorder = jax.jit(reorder, out_shardings=whole)
