"""From logits to a token: greedy, temperature, top-k, top-p, min-p, penalties, biases.

Every sequence has its own settings and its own random key, which is folded with the position: its
tokens depend neither on its neighbours nor on when it was admitted. Nothing is sorted: thresholds
are found by bisection, exactly, in as many passes as a number has bits.

Letters: B sequences, V ids, C blocks of ids, N biases.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

#: Ids per block when a token is drawn.
BLOCK = 512
#: Bits of `SamplingState.seen_BV`.
SEEN, SEEN_IN_SURPLUS = 1, 2


class SamplingFlags(NamedTuple):
    """What any sequence of a batch needs; the rest is not compiled.

    Args:
        sampled: some temperature is above 0
        filtered: some sequence uses top-k, top-p or min-p
        penalised: some sequence uses a repetition penalty
        logprobs: some request wants the log-probabilities of its choices
        adjusted: some sequence uses a presence or frequency penalty, a logit bias, or min_tokens
        scored: some request wants `scoring.TokenScores` of its tokens
    """

    sampled: bool
    filtered: bool
    penalised: bool
    logprobs: bool = False
    adjusted: bool = False
    scored: bool = False


class Adjustments(NamedTuple):
    """Presence and frequency penalties, logit biases, minimum lengths; a pytree of arrays.

    Args:
        presence: float32 [B], presence penalty
        frequency: float32 [B], frequency penalty
        count_BV: uint16, times that ids have occurred in the completion, a surplus apart; updated
            only if anything is adjusted
        biased_BN: int32, ids with a bias, padded with an id that is out of bounds
        bias_BN: float32, their biases
        min_tokens: int32 [B], tokens after the prompt before an answer may end
    """

    presence: jax.Array
    frequency: jax.Array
    count_BV: jax.Array
    biased_BN: jax.Array
    bias_BN: jax.Array
    min_tokens: jax.Array


class SamplingState(NamedTuple):
    """Sampling parameters and random keys of each sequence; a pytree of arrays.

    Args:
        temperature: float32 [B], temperature of the thinking; 0: greedy
        answer_temperature: float32 [B], temperature of the answer
        top_k: int32 [B], most likely ids to keep; 0: all
        top_p: float32 [B], probability mass to keep; 1: all
        min_p: float32 [B], smallest probability to keep, relative to the largest; 0: all
        penalty: float32 [B], repetition penalty; 1: none
        seen_BV: uint8, ids in prompt or completion: SEEN, and SEEN_IN_SURPLUS where a surplus has
            them; updated only if anything is penalised
        key_B: uint32 [B, 2], random keys
        adjustments: None where no sequence of the engine has ever needed any
    """

    temperature: jax.Array
    answer_temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    penalty: jax.Array
    seen_BV: jax.Array
    key_B: jax.Array
    adjustments: Adjustments | None = None


def sample(
    logits_BV: jax.Array,
    sampling: SamplingState,
    answering_B: jax.Array,
    position_B: jax.Array,
    flags: SamplingFlags,
) -> tuple[jax.Array, jax.Array | None]:
    """The next token of every sequence, and its log-probability where `flags` ask for it.

    Args:
        logits_BV: float32; -inf: forbidden
        sampling: parameters and random keys
        answering_B: bool, whether `answer_temperature` applies
        position_B: int32, tokens drawn or forced before; selects the random number
        flags: static, what to compile; must cover all that `sampling` needs

    Returns:
        token_B, int32; logprob_B, float32, under the distribution that the token was drawn from;
        of a greedy sequence under that of temperature 1 without filters.
    """
    if flags.adjusted:
        logits_BV = add_biases(logits_BV, adjustments_of(sampling))
    if flags.penalised:
        logits_BV = penalise(logits_BV, sampling.seen_BV, sampling.penalty)
    if flags.adjusted:
        logits_BV = penalise_output(logits_BV, adjustments_of(sampling))
    likeliest_B = jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    if not flags.sampled:
        return likeliest_B, _logprob(logits_BV, likeliest_B) if flags.logprobs else None
    temperature_B = jnp.where(answering_B, sampling.answer_temperature, sampling.temperature)
    greedy_B = temperature_B == 0
    scaled_BV = logits_BV / jnp.where(greedy_B, 1, temperature_B)[:, None]
    if flags.filtered:
        scaled_BV = keep_likely(scaled_BV, sampling.top_k, sampling.top_p, sampling.min_p)
    uniform_B = jax.vmap(_uniform)(sampling.key_B, position_B)
    drawn_B = draw_from(jax.nn.softmax(scaled_BV, axis=-1), uniform_B)
    token_B = jnp.where(greedy_B, likeliest_B, drawn_B)
    if not flags.logprobs:
        return token_B, None
    return token_B, _logprob(jnp.where(greedy_B[:, None], logits_BV, scaled_BV), token_B)


def _logprob(logits_BV: jax.Array, token_B: jax.Array) -> jax.Array:
    chosen_B = jnp.take_along_axis(logits_BV, token_B[:, None], axis=-1)[:, 0]
    return chosen_B - jax.nn.logsumexp(logits_BV, axis=-1)


def penalise(logits_BV: jax.Array, seen_BV: jax.Array, penalty_B: jax.Array) -> jax.Array:
    """Make tokens that have occurred less likely (Keskar et al. 2019, as in transformers)."""
    penalty = penalty_B[:, None]
    punished = jnp.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
    return jnp.where(seen_BV != 0, punished, logits_BV)


def add_biases(logits_BV: jax.Array, adjustments: Adjustments) -> jax.Array:
    """Add the biases, as in OpenAI's API; before all penalties, as in vLLM."""
    row_B1 = jnp.arange(logits_BV.shape[0])[:, None]
    return logits_BV.at[row_B1, adjustments.biased_BN].add(adjustments.bias_BN, mode="drop")


def penalise_output(logits_BV: jax.Array, adjustments: Adjustments) -> jax.Array:
    """Make tokens of the completion less likely; the prompt's do not count, as in vLLM."""
    count_BV = adjustments.count_BV.astype(jnp.float32)
    logits_BV = logits_BV - adjustments.frequency[:, None] * count_BV
    return logits_BV - adjustments.presence[:, None] * (count_BV > 0)


def count(sampling: SamplingState, token_B: jax.Array, is_kept_B: jax.Array) -> SamplingState:
    """Count new tokens, except for a surplus."""
    adjustments = adjustments_of(sampling)
    row_B, count_BV = jnp.arange(token_B.shape[0]), adjustments.count_BV
    before_B = count_BV[row_B, token_B]
    room_B = before_B < jnp.iinfo(jnp.uint16).max
    after_B = before_B + (is_kept_B & room_B).astype(jnp.uint16)
    count_BV = count_BV.at[row_B, token_B].set(after_B)
    return sampling._replace(adjustments=adjustments._replace(count_BV=count_BV))


def adjustments_of(sampling: SamplingState) -> Adjustments:
    """The adjustments, which a program with `flags.adjusted` needs."""
    if sampling.adjustments is None:
        raise ValueError("flags.adjusted: the state has no adjustments")
    return sampling.adjustments


def see(
    sampling: SamplingState,
    token_B: jax.Array,
    is_new_B: jax.Array,
    is_surplus_B: jax.Array,
    forget_B: jax.Array,
) -> SamplingState:
    """Mark new tokens as seen, first forgetting those of a surplus that was discarded."""
    row_B = jnp.arange(token_B.shape[0])
    seen_BV = sampling.seen_BV & jnp.where(forget_B, SEEN, 0xFF).astype(jnp.uint8)[:, None]
    bit_B = jnp.where(is_surplus_B, SEEN_IN_SURPLUS, SEEN * is_new_B).astype(jnp.uint8)
    seen_BV = seen_BV.at[row_B, token_B].set(seen_BV[row_B, token_B] | bit_B)
    return sampling._replace(seen_BV=seen_BV)


def keep_likely(
    logits_BV: jax.Array, top_k_B: jax.Array, top_p_B: jax.Array, min_p_B: jax.Array
) -> jax.Array:
    """Set all but the likely ids to -inf: top-k, then top-p of the rest, then min-p.

    Ids exactly as likely as the least likely id that is kept are kept as well.
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
    """The id at which the cumulative probability exceeds a number in [0, 1), int32 [B].

    Blocks of ids first, then ids of one block, so the long sum is a plain reduction. An id of
    probability 0 is never drawn.
    """
    B, V = p_BV.shape
    blocks_BCV = jnp.pad(p_BV, ((0, 0), (0, -V % BLOCK))).reshape(B, -1, BLOCK)
    sums_BC = blocks_BCV.sum(axis=-1)
    at_B, rest_B = _pass(sums_BC, uniform_B * sums_BC.sum(axis=-1))
    block_BV = jnp.take_along_axis(blocks_BCV, at_B[:, None, None], axis=1)[:, 0]
    inside_B, _ = _pass(block_BV, rest_B)
    return (at_B * BLOCK + inside_B).astype(jnp.int32)


def _pass(p_BV: jax.Array, target_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where the cumulative sum first exceeds the target, and the target less the sum before it."""
    # cumulative sums are rounded, each differently: they can rise slightly where p is 0, and fall
    sums_BV = jnp.where(p_BV > 0, jnp.cumsum(p_BV, axis=-1), 0)
    target_B = jnp.minimum(target_B, jnp.nextafter(sums_BV.max(axis=-1), jnp.float32(0)))
    at_B = jnp.argmax(sums_BV > target_B[:, None], axis=-1)
    before_B = jnp.take_along_axis(sums_BV - p_BV, at_B[:, None], axis=-1)[:, 0]
    return at_B, jnp.maximum(target_B - before_B, 0)


def _uniform(key: jax.Array, position: jax.Array) -> jax.Array:
    return jax.random.uniform(jax.random.fold_in(key, position))


def _ordered(x: jax.Array) -> jax.Array:
    """int32 with the order of the float32."""
    bits = lax.bitcast_convert_type(x, jnp.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _largest(holds: Callable[[jax.Array], jax.Array], shape: tuple[int, ...]) -> jax.Array:
    """The largest int32 for which a monotone predicate is true, by bisection."""
    limits = jnp.iinfo(jnp.int32)

    def halve(_: Any, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds  # true at low, false at high
        middle = (low & high) + ((low ^ high) >> 1)  # their mean, without overflow
        yes = holds(middle)
        return jnp.where(yes, middle, low), jnp.where(yes, high, middle)

    start = (jnp.full(shape, limits.min), jnp.full(shape, limits.max))
    return lax.fori_loop(0, 32, halve, start)[0]


def seed_from_text(text: str) -> int:
    """A random seed from a text, 0 to 2^28 - 1: the same on every machine."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:7], 16)
