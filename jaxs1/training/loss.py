"""Losses of the next token in chunks: the full [tokens, vocabulary] logits never exist.

A loss is an `Objective`: a function of the target's negative log-probability (nll), token by token.
Cross-entropy is the simplest one, `weighted_nll`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxs1.data.packing import Batch
from jaxs1.model.transformer import Transformer


class TokenMetrics(NamedTuple):
    """Metrics of tokens, by name: of each token from an `Objective`, otherwise of many.

    Args:
        sums: float32, summed over tokens
        maxima: float32, of which the largest is taken
    """

    sums: dict[str, jax.Array]
    maxima: dict[str, jax.Array]

    def merge(self, other: TokenMetrics) -> TokenMetrics:
        """The metrics of both, of other tokens."""
        return TokenMetrics(
            jax.tree.map(jnp.add, self.sums, other.sums),
            jax.tree.map(jnp.maximum, self.maxima, other.maxima),
        )


NO_METRICS = TokenMetrics({}, {})

#: (nll, entropy of the distribution, columns of the batch) -> loss and metrics of every token. All
#: arrays have the same shape; a token's results depend on that token only.
Objective = Callable[[jax.Array, jax.Array, Any], tuple[jax.Array, TokenMetrics]]


class Distribution(NamedTuple):
    """The distribution that targets are drawn from, where it is not simply the model's.

    Args:
        temperature: divisor of the logits
        vocabulary: number of ids that can be drawn, the first ones; None: all
        gated_ids: ids that cannot be drawn where a token is gated
    """

    temperature: float = 1.0
    vocabulary: int | None = None
    gated_ids: tuple[int, ...] = ()


MODEL = Distribution()


def weighted_nll(
    nll: jax.Array, entropy: jax.Array, weights: jax.Array
) -> tuple[jax.Array, TokenMetrics]:
    """The objective of supervised training; its columns are the weights."""
    return nll * weights, NO_METRICS


def supervised_loss(
    model: Transformer, batch: Batch, *, chunk: int
) -> tuple[jax.Array, TokenMetrics]:
    """Weighted sum of the cross-entropy of one micro-batch of rows [B, T].

    The weights of a step sum to 1 over all its micro-batches, so the losses of the micro-batches
    add up to the step's mean loss, per token or per sequence as the weights were made. To that of a
    mixture of experts, the load-balancing loss of the micro-batch is added, with the coefficient of
    config.json and the micro-batch's share of the weights.

    Args:
        model: model with parameters
        batch: arrays [B, T]
        chunk: number of tokens per device whose logits exist at once

    Returns:
        Loss, float32 [], and "router_loss", the load-balancing loss without its coefficient.
    """
    hidden_BTD, router_loss = model.hidden_and_router_loss(
        batch.tokens, batch.positions, batch.segments
    )
    loss = cross_entropy(
        hidden_BTD,
        model.head(),
        batch.targets,
        batch.weights,
        chunk=chunk,
        sequence_parts=model.rules.size("sequence"),
        row_parts=model.rules.size("rows"),
    )
    experts = model.architecture.experts
    if router_loss is None or experts is None or not experts.loss_coefficient:
        return loss, NO_METRICS
    router_loss = router_loss * jnp.sum(batch.weights)
    metrics = TokenMetrics({"router_loss": lax.stop_gradient(router_loss)}, {})
    return loss + experts.loss_coefficient * router_loss, metrics


def cross_entropy(
    hidden_BTD: jax.Array,
    head_DV: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    *,
    chunk: int,
    sequence_parts: int = 1,
    row_parts: int = 1,
) -> jax.Array:
    """Sum of weights * (logsumexp(logits) - logits[target]), float32 []; see `token_loss`."""
    return token_loss(
        hidden_BTD,
        head_DV,
        targets_BT,
        weights_BT,
        objective=weighted_nll,
        chunk=chunk,
        sequence_parts=sequence_parts,
        row_parts=row_parts,
    )[0]


def token_loss(
    hidden_BTD: jax.Array,
    head_DV: jax.Array,
    targets_BT: jax.Array,
    columns_BT: Any,
    *,
    objective: Objective,
    chunk: int,
    gated_BT: jax.Array | None = None,
    distribution: Distribution = MODEL,
    sequence_parts: int = 1,
    row_parts: int = 1,
) -> tuple[jax.Array, TokenMetrics]:
    """Sum of an objective over all tokens, float32 [], and the metrics of all.

    Args:
        hidden_BTD: hidden states
        head_DV: output matrix
        targets_BT: int32 ids
        columns_BT: what the objective reads, a pytree of arrays
        objective: loss of a token
        chunk: number of tokens per device whose logits exist at once
        gated_BT: bool, where `distribution.gated_ids` could not be drawn; None: nowhere
        distribution: distribution that the targets are drawn from
        sequence_parts: number of devices that share a sequence; every chunk takes an equal part of
            each device's tokens
        row_parts: number of devices that share the rows
    """
    split = _Chunks(targets_BT.shape, chunk, sequence_parts, row_parts).split
    return _chunked(
        objective,
        distribution,
        split(hidden_BTD),
        head_DV,
        split(targets_BT),
        gated_BT if gated_BT is None else split(gated_BT),
        jax.tree.map(split, columns_BT),
    )


def target_logprobs(
    hidden_BTD: jax.Array,
    head_DV: jax.Array,
    targets_BT: jax.Array,
    *,
    chunk: int,
    gated_BT: jax.Array,
    distribution: Distribution,
    sequence_parts: int = 1,
    row_parts: int = 1,
) -> jax.Array:
    """The log-probability of every target, float32 [B, T]; arguments as in `token_loss`."""
    chunks = _Chunks(targets_BT.shape, chunk, sequence_parts, row_parts)
    parts = tuple(chunks.split(x) for x in (hidden_BTD, targets_BT, gated_BT))

    def logprobs(hidden: jax.Array, targets: jax.Array, gated: jax.Array) -> jax.Array:
        return -_softmax(distribution, head_DV, hidden, targets, gated).nll

    return chunks.join(lax.map(lambda part: logprobs(*part), parts))


class _Chunks:
    """Equal parts of the tokens of rows [B, T]; see `token_loss`."""

    def __init__(self, shape: tuple[int, ...], chunk: int, sequence_parts: int, row_parts: int):
        B, T = self.shape = shape
        local = T // sequence_parts
        wanted = min(local, max(1, B // row_parts * local // chunk))
        self.count = next(n for n in range(wanted, local + 1) if local % n == 0)
        self.parts = sequence_parts

    def split(self, x: jax.Array) -> jax.Array:
        """[B, T, ...] -> [count, B, sequence_parts, T / count / sequence_parts, ...]."""
        B, T = self.shape
        x = x.reshape(B, self.parts, self.count, T // self.parts // self.count, *x.shape[2:])
        return jnp.moveaxis(x, 2, 0)

    def join(self, x: jax.Array) -> jax.Array:
        """The inverse of `split` for arrays [B, T]."""
        return jnp.moveaxis(x, 0, 2).reshape(self.shape)


class _Softmax(NamedTuple):
    """A chunk's distribution: numerators and denominator of its probabilities, nll of targets."""

    shifted: jax.Array
    exponential: jax.Array
    total: jax.Array
    nll: jax.Array


def _softmax(
    distribution: Distribution,
    head: jax.Array,
    hidden: jax.Array,
    targets: jax.Array,
    gated: jax.Array | None,
) -> _Softmax:
    logits = jnp.einsum("...D,DV->...V", hidden, head, preferred_element_type=jnp.float32)
    logits = _as_drawn(distribution, logits, gated)
    shifted = logits - jnp.max(logits, axis=-1, keepdims=True)
    exponential = jnp.exp(shifted)
    total = jnp.sum(exponential, axis=-1)
    chosen = jnp.take_along_axis(shifted, targets[..., None], axis=-1)[..., 0]
    return _Softmax(shifted, exponential, total, jnp.log(total) - chosen)


def _as_drawn(distribution: Distribution, logits: jax.Array, gated: jax.Array | None) -> jax.Array:
    """Logits as the sampler has them: -inf for ids that could not be drawn."""
    temperature, vocabulary, gated_ids = distribution
    if temperature != 1:
        logits = logits / temperature
    ids = _ids(logits)
    if vocabulary is not None and vocabulary < logits.shape[-1]:
        logits = jnp.where(ids < vocabulary, logits, -jnp.inf)
    if gated is not None and gated_ids:
        is_end = sum((ids == i for i in gated_ids[1:]), ids == gated_ids[0])
        logits = jnp.where(gated[..., None] & is_end, -jnp.inf, logits)
    return logits


def _ids(logits: jax.Array) -> jax.Array:
    return lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)


def _chunk_loss(
    objective: Objective,
    distribution: Distribution,
    head: jax.Array,
    hidden: jax.Array,
    targets: jax.Array,
    gated: jax.Array | None,
    columns: Any,
) -> tuple[tuple[jax.Array, TokenMetrics], jax.Array]:
    """A chunk's loss and metrics, and the gradient by its logits, in the head's dtype."""
    shifted, exponential, total, nll = _softmax(distribution, head, hidden, targets, gated)
    likely = jnp.where(exponential > 0, exponential * shifted, 0)  # 0 log 0 = 0
    entropy = jnp.log(total) - jnp.sum(likely, axis=-1) / total
    loss, pull, metrics = jax.vjp(lambda x: objective(x, entropy, columns), nll, has_aux=True)
    (slope,) = pull(jnp.ones_like(loss))
    if distribution.temperature != 1:
        slope = slope / distribution.temperature
    is_target = _ids(shifted) == targets[..., None]
    gradient = exponential * (slope / total)[..., None] - is_target * slope[..., None]
    metrics = TokenMetrics(
        jax.tree.map(jnp.sum, metrics.sums), jax.tree.map(jnp.max, metrics.maxima)
    )
    return (jnp.sum(loss), metrics), gradient.astype(head.dtype)


def _before_first(chunk_loss: Callable[..., Any], *chunks: Any) -> tuple[jax.Array, TokenMetrics]:
    """Loss and metrics of no chunk."""
    (loss, metrics), _ = jax.eval_shape(chunk_loss, *jax.tree.map(lambda x: x[0], chunks))
    return jnp.zeros(loss.shape, loss.dtype), empty_metrics(metrics)


def empty_metrics(like: TokenMetrics) -> TokenMetrics:
    """The metrics of no token; `like` has the shapes."""
    sums = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like.sums)
    return TokenMetrics(sums, jax.tree.map(lambda x: jnp.full(x.shape, -jnp.inf), like.maxima))


def _add(
    before: tuple[jax.Array, TokenMetrics], new: tuple[jax.Array, TokenMetrics]
) -> tuple[jax.Array, TokenMetrics]:
    return before[0] + new[0], before[1].merge(new[1])


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _chunked(
    objective: Objective,
    distribution: Distribution,
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    gated: jax.Array | None,
    columns: Any,
) -> Any:
    """Loss and metrics of chunks [C, ..., D]; see `_chunked_forward` for the gradient."""
    chunk_loss = partial(_chunk_loss, objective, distribution, head)

    def add(total: Any, chunk: Any) -> tuple[Any, None]:
        return _add(total, chunk_loss(*chunk)[0]), None

    chunks = (hidden, targets, gated, columns)
    return lax.scan(add, _before_first(chunk_loss, *chunks), chunks)[0]


def _chunked_forward(
    objective: Objective,
    distribution: Distribution,
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    gated: jax.Array | None,
    columns: Any,
) -> tuple[Any, Any]:
    """Loss and gradients in one pass, while a chunk's logits exist: nothing follows the loss.

    Recomputing the logits in the backward pass would cost a third more products with the head.
    """
    chunk_loss = partial(_chunk_loss, objective, distribution, head)

    def add(carry: Any, chunk: Any) -> tuple[Any, jax.Array]:
        total, head_gradient = carry
        new, dlogits = chunk_loss(*chunk)
        dhidden = jnp.einsum("...V,DV->...D", dlogits, head, preferred_element_type=jnp.float32)
        axes = "".join(chr(ord("a") + i) for i in range(dlogits.ndim - 1))
        head_gradient += jnp.einsum(
            f"{axes}D,{axes}V->DV", chunk[0], dlogits, preferred_element_type=jnp.float32
        )
        return (_add(total, new), head_gradient), dhidden.astype(hidden.dtype)

    chunks = (hidden, targets, gated, columns)
    start = (_before_first(chunk_loss, *chunks), jnp.zeros(head.shape, jnp.float32))
    (total, head_gradient), hidden_gradient = lax.scan(add, start, chunks)
    return total, (hidden_gradient, head_gradient.astype(head.dtype))


def _chunked_backward(
    objective: Objective, distribution: Distribution, residuals: Any, upstream: Any
) -> tuple[Any, ...]:
    hidden_gradient, head_gradient = residuals
    by_loss, _ = upstream
    return (
        (hidden_gradient * by_loss).astype(hidden_gradient.dtype),
        (head_gradient * by_loss).astype(head_gradient.dtype),
        None,
        None,
        None,
    )


_chunked.defvjp(_chunked_forward, _chunked_backward)
