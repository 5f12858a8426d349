"""Causal attention of new tokens to the KV cache of their sequences, in XLA and in Pallas.

Letters: `jaxs1/model/architecture.py` and `jaxs1/model/kv_cache.py`; Q = T G queries of a key head.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from jaxs1.model.kv_cache import PAGE
from jaxs1.model.ops import MASK_VALUE

#: Width of a TPU's vector registers.
LANES = 128


def paged_attention_xla(
    q_BTNH: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    table_BM: jax.Array,
    positions_BT: jax.Array,
) -> jax.Array:
    """Attention of new tokens to all tokens up to themselves; softmax in float32.

    Key heads come first, as in the cache, so the products are batched over leading axes and nothing
    is transposed.

    Args:
        q_BTNH: queries of the new tokens, whose keys and values are in the cache already
        k_pages: keys of one layer [K, P, S, H]
        v_pages: values of one layer [K, P, S, H]
        table_BM: int32, pages of each sequence in order
        positions_BT: int32, from 0 in each sequence; PAD_POSITION for padding

    Returns:
        [B, T, N, H] in the dtype of q; values at padding are arbitrary.
    """
    B, T, N, H = q_BTNH.shape
    K = k_pages.shape[0]
    G, X = N // K, table_BM.shape[1] * PAGE
    q = q_BTNH.reshape(B, T, K, G, H).transpose(2, 0, 1, 3, 4).reshape(K, B, T * G, H)
    k, v = (pages[:, table_BM].reshape(K, B, X, H) for pages in (k_pages, v_pages))
    scores = jnp.einsum("KBQH,KBXH->KBQX", q, k, preferred_element_type=jnp.float32) * H**-0.5
    visible_BTX = jnp.arange(X) <= positions_BT[:, :, None]
    scores = jnp.where(jnp.repeat(visible_BTX, G, axis=1), scores, MASK_VALUE)
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    total = weights.sum(axis=-1, keepdims=True)
    # pages are uninitialised behind the newest token, and 0 * NaN must not count
    written_BX = (jnp.arange(X) <= positions_BT.max(axis=1, keepdims=True))[..., None]
    v = jnp.where(written_BX, v, 0)
    out = jnp.einsum("KBQX,KBXH->KBQH", weights.astype(v.dtype), v,
                     preferred_element_type=jnp.float32)  # fmt: skip
    out = (out / total).astype(q_BTNH.dtype)
    return out.reshape(K, B, T, G, H).transpose(1, 2, 0, 3, 4).reshape(B, T, N, H)


def paged_attention_pallas(
    q_B1NH: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    table_BM: jax.Array,
    positions_B1: jax.Array,
) -> jax.Array:
    """`paged_attention_xla` for one new token per sequence, with Pallas's kernel for TPU."""
    from jax.experimental.pallas.ops.tpu.paged_attention import paged_attention

    H = q_B1NH.shape[-1]
    padding = ((0, 0),) * 3 + ((0, -H % LANES),)  # the kernel takes heads that fill registers
    q_BNH = (q_B1NH * H**-0.5).astype(q_B1NH.dtype)[:, 0]
    out_BNH = paged_attention(
        jnp.pad(q_BNH, padding[1:]),
        jnp.pad(k_pages, padding),
        jnp.pad(v_pages, padding),
        positions_B1[:, 0] + 1,
        table_BM,
        pages_per_compute_block=math.gcd(8, table_BM.shape[1]),
    )
    return out_BNH[:, None, :, :H]
