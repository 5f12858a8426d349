"""The forward pass of decoding: any number of new tokens, layer after layer over a KV cache.

The layers are those of `jaxs1.model.transformer`; `jaxs1.model.backends` has other implementations
of them. Parameters are stored as `jaxs1.model.decode_params` says.
"""

from __future__ import annotations

import jax

from jaxs1.model.backends import BACKENDS
from jaxs1.model.kv_cache import KVCache
from jaxs1.model.transformer import Params, Transformer


def forward(
    model: Transformer,
    params: Params,
    cache: KVCache,
    tokens_BT: jax.Array,
    positions_BT: jax.Array,
    table_BM: jax.Array,
    *,
    impl: str = "xla",
) -> tuple[jax.Array, KVCache]:
    """Process new tokens of several sequences and append their keys and values to the cache.

    Args:
        model: abstract
        params: see `decode_params`
        cache: keys and values of the preceding tokens
        tokens_BT: int32 ids
        positions_BT: int32, from 0 in each sequence; kv_cache.PAD_POSITION for padding
        table_BM: int32, pages of each sequence; enough for its largest position
        impl: a name in `BACKENDS`; triton and pallas take one token per sequence

    Returns:
        x_BTD before the final norm, and the cache.
    """
    x = model.build.embed(params["embedding"], tokens_BT)
    layer = BACKENDS[impl].layer(model, positions_BT, table_BM)
    k_pages, v_pages = list(cache.k), list(cache.v)
    for i, weights in enumerate(params["layers"]):
        x, k_pages[i], v_pages[i] = layer(weights, x, k_pages[i], v_pages[i])
    return x, KVCache(k_pages, v_pages)


def logits(model: Transformer, params: Params, x_BD: jax.Array, *, impl: str = "xla") -> jax.Array:
    """Float32 logits [B, V] from the output of the last layer; `impl` as in `forward`."""
    return BACKENDS[impl].logits(model, params, x_BD)
