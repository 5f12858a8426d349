"""From logits to a token: greedy, temperature, top-k, top-p, min-p, repetition penalty.

Every sequence has its own settings and its own random key, of which each position takes a new one,
so that its tokens depend neither on its neighbours nor on when it was admitted. Nothing is sorted:
a threshold is found by bisection, exactly, in as many passes as a number has bits.

Letters: B sequences, V ids, C blocks of ids.
"""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

#: Ids that are summed at a time when a token is drawn.
BLOCK = 512


class SamplingFlags(NamedTuple):
    """What any sequence of a batch needs: what is not needed is not compiled.

    sampled: a temperature above 0; filtered: top-k, top-p or min-p; penalised: seen tokens
    """

    sampled: bool
    filtered: bool
    penalised: bool


class SamplingState(NamedTuple):
    """How each sequence draws: arrays [B], float32 but for `top_k` (int32, 0: all ids).

    seen_BV: bool, ids that occurred in prompt or completion, kept up where anything is penalised
    key_B: the sequences' random keys, uint32 [B, 2]
    """

    temperature: Any
    answer_temperature: Any
    top_k: Any
    top_p: Any
    min_p: Any
    penalty: Any
    seen_BV: Any
    key_B: Any


def sample(
    logits_BV: jax.Array,
    sampling: SamplingState,
    answering_B: jax.Array,
    position_B: jax.Array,
    flags: SamplingFlags,
) -> jax.Array:
    """The next token of every sequence, int32 [B].

    Args:
        logits_BV: float32; -inf for what is forbidden
        sampling: settings
        answering_B: bool, whether `answer_temperature` holds
        position_B: int32, tokens behind the prompt: names the random number
        flags: static; what `sampling` asks for beyond it is not done
    """
    if flags.penalised:
        logits_BV = penalise(logits_BV, sampling.seen_BV, sampling.penalty)
    likeliest_B = jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    if not flags.sampled:
        return likeliest_B
    temperature_B = jnp.where(answering_B, sampling.answer_temperature, sampling.temperature)
    greedy_B = temperature_B == 0
    scaled_BV = logits_BV / jnp.where(greedy_B, 1, temperature_B)[:, None]
    if flags.filtered:
        scaled_BV = keep_likely(scaled_BV, sampling.top_k, sampling.top_p, sampling.min_p)
    uniform_B = jax.vmap(_uniform)(sampling.key_B, position_B)
    drawn_B = draw_from(jax.nn.softmax(scaled_BV, axis=-1), uniform_B)
    return jnp.where(greedy_B, likeliest_B, drawn_B)


def penalise(logits_BV: jax.Array, seen_BV: jax.Array, penalty_B: jax.Array) -> jax.Array:
    """Make tokens that occurred less likely (Keskar et al. 2019, as in transformers)."""
    penalty = penalty_B[:, None]
    punished = jnp.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
    return jnp.where(seen_BV, punished, logits_BV)


def keep_likely(
    logits_BV: jax.Array, top_k_B: jax.Array, top_p_B: jax.Array, min_p_B: jax.Array
) -> jax.Array:
    """-inf for all but the likely ids: top-k, then top-p of what is left, then min-p.

    Ids that are exactly as likely as the last one that stays, stay as well.
    """
    V = logits_BV.shape[-1]
    rank_BV = _ordered(logits_BV)
    wanted_B = jnp.where(top_k_B > 0, jnp.minimum(top_k_B, V), V)
    kth_B = _largest(lambda t_B: (rank_BV >= t_B[:, None]).sum(-1) >= wanted_B, top_k_B.shape)
    logits_BV = jnp.where(rank_BV >= kth_B[:, None], logits_BV, -jnp.inf)

    p_BV = jax.nn.softmax(logits_BV, axis=-1)
    rank_BV = _ordered(p_BV)

    def reach(t_B: jax.Array) -> jax.Array:
        return jnp.where(rank_BV >= t_B[:, None], p_BV, 0).sum(-1) >= top_p_B

    last_B = jnp.where(top_p_B < 1, _largest(reach, top_p_B.shape), jnp.iinfo(jnp.int32).min)
    likely_BV = rank_BV >= last_B[:, None]
    likely_BV &= p_BV >= min_p_B[:, None] * p_BV.max(axis=-1, keepdims=True)
    return jnp.where(likely_BV, logits_BV, -jnp.inf)


def draw_from(p_BV: jax.Array, uniform_B: jax.Array) -> jax.Array:
    """The id at which the running sum of probabilities passes a number in [0, 1), int32 [B].

    In two steps, blocks of ids and ids of a block, so that the long sum is a plain reduction. An
    id of probability 0 is never drawn.
    """
    B, V = p_BV.shape
    blocks_BCV = jnp.pad(p_BV, ((0, 0), (0, -V % BLOCK))).reshape(B, -1, BLOCK)
    sums_BC = blocks_BCV.sum(axis=-1)
    at_B, rest_B = _pass(sums_BC, uniform_B * sums_BC.sum(axis=-1))
    block_BV = jnp.take_along_axis(blocks_BCV, at_B[:, None, None], axis=1)[:, 0]
    inside_B, _ = _pass(block_BV, rest_B)
    return (at_B * BLOCK + inside_B).astype(jnp.int32)


def _pass(p_BV: jax.Array, target_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where the running sum first exceeds the target, and the target less what comes before."""
    # running sums are rounded, each in its own way: they can rise by a hair where p is 0, and fall
    sums_BV = jnp.where(p_BV > 0, jnp.cumsum(p_BV, axis=-1), 0)
    target_B = jnp.minimum(target_B, jnp.nextafter(sums_BV.max(axis=-1), jnp.float32(0)))
    at_B = jnp.argmax(sums_BV > target_B[:, None], axis=-1)
    before_B = jnp.take_along_axis(sums_BV - p_BV, at_B[:, None], axis=-1)[:, 0]
    return at_B, jnp.maximum(target_B - before_B, 0)


def _uniform(key: jax.Array, position: jax.Array) -> jax.Array:
    return jax.random.uniform(jax.random.fold_in(key, position))


def _ordered(x: jax.Array) -> jax.Array:
    """int32 that are ordered as the float32 are."""
    bits = lax.bitcast_convert_type(x, jnp.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _largest(holds: Any, shape: tuple[int, ...]) -> jax.Array:
    """The largest int32 for which `holds` (true up to some number) is true, by bisection."""
    limits = jnp.iinfo(jnp.int32)

    def halve(_: Any, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds  # holds at low, not at high
        middle = (low & high) + ((low ^ high) >> 1)  # their mean, without overflow
        yes = holds(middle)
        return jnp.where(yes, middle, low), jnp.where(yes, high, middle)

    start = (jnp.full(shape, limits.min), jnp.full(shape, limits.max))
    return lax.fori_loop(0, 32, halve, start)[0]


def seed_from_text(text: str) -> int:
    """A random seed from a text, 0 to 2^28 - 1: the same on every machine."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:7], 16)
