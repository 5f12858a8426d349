"""Next-token cross-entropy in chunks: the full [tokens, vocabulary] logits never exist."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxs1.data.packing import Batch
from jaxs1.model.transformer import Transformer


def batch_loss(model: Transformer, batch: Batch, *, chunk: int) -> jax.Array:
    """Weighted sum of the cross-entropy of one micro-batch of rows [B, T], float32 [].

    The weights of a step sum to 1 over all its micro-batches, so the losses of the micro-batches
    add up to the step's mean loss, per token or per sequence as the weights were made.

    Args:
        model: model with parameters
        batch: arrays [B, T]
        chunk: number of tokens per device whose logits exist at once
    """
    hidden_BTD = model(batch.tokens, batch.positions, batch.segments)
    return cross_entropy(
        hidden_BTD,
        model.head(),
        batch.targets,
        batch.weights,
        chunk=chunk,
        sequence_parts=model.rules.size("sequence"),
        row_parts=model.rules.size("rows"),
    )


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
    """Sum of weights * (logsumexp(logits) - logits[target]), float32 [].

    Args:
        hidden_BTD: hidden states
        head_DV: output matrix
        targets_BT: int32 ids
        weights_BT: float32 weight of each target
        chunk: number of tokens per device whose logits exist at once
        sequence_parts: number of devices that share a sequence; every chunk takes an equal part of
            each device's tokens
        row_parts: number of devices that share the rows
    """
    B, T, _ = hidden_BTD.shape
    local = T // sequence_parts
    wanted = min(local, max(1, B // row_parts * local // chunk))
    count = next(n for n in range(wanted, local + 1) if local % n == 0)

    def split(x: jax.Array) -> jax.Array:
        """[B, T, ...] -> [count, B, sequence_parts, T / count / sequence_parts, ...]."""
        x = x.reshape(B, sequence_parts, count, local // count, *x.shape[2:])
        return jnp.moveaxis(x, 2, 0)

    return _chunked(split(hidden_BTD), head_DV, split(targets_BT), split(weights_BT))


@jax.custom_vjp
def _chunked(hidden: jax.Array, head: jax.Array, targets: jax.Array, weights: jax.Array) -> Any:
    """Cross-entropy summed over chunks [C, ..., D]; see `_chunked_forward` for the gradient."""

    def add(total: jax.Array, chunk: Any) -> tuple[jax.Array, None]:
        loss, _ = _chunk_loss(head, *chunk)
        return total + loss, None

    total, _ = lax.scan(add, jnp.zeros((), jnp.float32), (hidden, targets, weights))
    return total


def _chunk_loss(
    head: jax.Array, hidden: jax.Array, targets: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """A chunk's loss, and its gradient with respect to the logits, in the head's dtype."""
    logits = jnp.einsum("...D,DV->...V", hidden, head, preferred_element_type=jnp.float32)
    shifted = logits - jnp.max(logits, axis=-1, keepdims=True)
    exponential = jnp.exp(shifted)
    total = jnp.sum(exponential, axis=-1)
    chosen = jnp.take_along_axis(shifted, targets[..., None], axis=-1)[..., 0]
    loss = jnp.sum((jnp.log(total) - chosen) * weights)
    is_target = lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) == targets[..., None]
    gradient = exponential * (weights / total)[..., None] - is_target * weights[..., None]
    return loss, gradient.astype(head.dtype)


def _chunked_forward(
    hidden: jax.Array, head: jax.Array, targets: jax.Array, weights: jax.Array
) -> tuple[jax.Array, Any]:
    """Loss and gradients in one pass, while a chunk's logits exist: nothing follows the loss.

    Recomputing the logits in the backward pass would cost a third more products with the head.
    """

    def add(carry: Any, chunk: Any) -> tuple[Any, jax.Array]:
        total, head_gradient = carry
        loss, dlogits = _chunk_loss(head, *chunk)
        dhidden = jnp.einsum("...V,DV->...D", dlogits, head, preferred_element_type=jnp.float32)
        axes = "".join(chr(ord("a") + i) for i in range(dlogits.ndim - 1))
        head_gradient += jnp.einsum(
            f"{axes}D,{axes}V->DV", chunk[0], dlogits, preferred_element_type=jnp.float32
        )
        return (total + loss, head_gradient), dhidden.astype(hidden.dtype)

    start = (jnp.zeros((), jnp.float32), jnp.zeros(head.shape, jnp.float32))
    (total, head_gradient), hidden_gradient = lax.scan(add, start, (hidden, targets, weights))
    return total, (hidden_gradient, head_gradient.astype(head.dtype))


def _chunked_backward(residuals: Any, upstream: jax.Array) -> tuple[Any, ...]:
    hidden_gradient, head_gradient = residuals
    return (
        (hidden_gradient * upstream).astype(hidden_gradient.dtype),
        (head_gradient * upstream).astype(head_gradient.dtype),
        None,
        None,
    )


_chunked.defvjp(_chunked_forward, _chunked_backward)
