"""The model as decoding runs it: layer after layer over a KV cache, any number of new tokens.

Training scans over stacked weights. A scan that decodes would copy every layer's weights in every
step, so here each layer has arrays of its own (`unstack`). The layers themselves are those of
`jaxs1.model.qwen`; `IMPLS` holds other ways to compute one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxs1.model import kv_cache, ops, qwen
from jaxs1.model.kv_cache import KVCache
from jaxs1.model.qwen import Qwen

#: Parameters with `layers` as a list of one tree a layer.
Params = dict[str, Any]


def unstack(params: Params, layouts: Params) -> Params:
    """Arrays of their own for every layer. The stacked ones are deleted one after another.

    Args:
        params: as `qwen.parameters` gives them
        layouts: from `shardings`
    """

    def split(array: jax.Array, *places: Any) -> list[jax.Array]:
        parts = jax.block_until_ready(jax.jit(list, out_shardings=list(places))(array))
        array.delete()
        return parts

    lists = jax.tree.map(split, params["layers"], *layouts["layers"])
    layers = [_each(lists, i) for i in range(len(layouts["layers"]))]
    return {**params, "layers": layers}


def shardings(model: Qwen) -> Params:
    """Where each parameter lives, as a tree like that of `unstack`."""
    whole = qwen.shardings(model)
    layer = jax.tree.map(lambda s: NamedSharding(s.mesh, P(*s.spec[1:])), whole["layers"])
    return {**whole, "layers": [layer] * model.architecture.num_layers}


def forward(
    model: Qwen,
    params: Params,
    cache: KVCache,
    tokens_BT: jax.Array,
    positions_BT: jax.Array,
    table_BM: jax.Array,
    *,
    impl: str = "xla",
) -> tuple[jax.Array, KVCache]:
    """Run new tokens of some sequences; their keys and values enter the cache.

    Args:
        model: abstract
        params: from `unstack`
        cache: keys and values of what came before
        tokens_BT: int32 ids
        positions_BT: int32, from 0 in each sequence; kv_cache.PADDING where there is no token
        table_BM: int32, pages of each sequence; enough for the largest position
        impl: a name in `IMPLS`; all but xla take one token of each sequence

    Returns:
        x_BTD before the final norm, and the cache.
    """
    a = model.architecture
    x = jnp.take(params["embedding"].astype(model.build.dtype), tokens_BT, axis=0)
    x = model.partition.constrain(x, "rows", "sequence", None)
    layer = IMPLS[impl](model, positions_BT, table_BM)
    k_pages, v_pages = list(cache.k), list(cache.v)
    for i in range(a.num_layers):
        x, k_pages[i], v_pages[i] = layer(params["layers"][i], x, k_pages[i], v_pages[i])
    return x, KVCache(k_pages, v_pages)


def logits(model: Qwen, params: Params, x_BD: jax.Array, *, impl: str = "xla") -> jax.Array:
    """Float32 logits [B, V] from the last layer's output."""
    a, dtype = model.architecture, model.build.dtype
    hidden = ops.rms_norm(x_BD, params["final_norm"]["scale"], a.rms_norm_eps)
    if a.tie_word_embeddings:
        weight = params["embedding"].astype(dtype)
        return jnp.einsum("BD,VD->BV", hidden, weight, preferred_element_type=jnp.float32)
    head = params["lm_head"].astype(dtype)
    return jnp.matmul(hidden, head, preferred_element_type=jnp.float32)


def paged_attention(
    q_BTNH: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    table_BM: jax.Array,
    positions_BT: jax.Array,
) -> jax.Array:
    """Causal attention of new tokens to all that their sequences hold; softmax in float32.

    Heads of keys come first, as in the cache, so that the products are batched over leading axes
    and nothing is transposed.
    """
    B, T, N, H = q_BTNH.shape
    K = k_pages.shape[0]
    G, X = N // K, table_BM.shape[1] * kv_cache.PAGE
    q = q_BTNH.reshape(B, T, K, G, H).transpose(2, 0, 1, 3, 4).reshape(K, B, T * G, H)
    k, v = (pages[:, table_BM].reshape(K, B, X, H) for pages in (k_pages, v_pages))
    scores = jnp.einsum("KBQH,KBXH->KBQX", q, k, preferred_element_type=jnp.float32) * H**-0.5
    visible_BTX = jnp.arange(X) <= positions_BT[:, :, None]
    scores = jnp.where(jnp.repeat(visible_BTX, G, axis=1), scores, ops.HIDDEN)
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    total = weights.sum(axis=-1, keepdims=True)
    # slots behind the newest token may hold anything, and zero times anything must be zero
    held_BX = (jnp.arange(X) <= positions_BT.max(axis=1, keepdims=True))[..., None]
    v = jnp.where(held_BX, v, 0)
    out = jnp.einsum("KBQX,KBXH->KBQH", weights.astype(v.dtype), v,
                     preferred_element_type=jnp.float32)  # fmt: skip
    out = (out / total).astype(q_BTNH.dtype)
    return out.reshape(K, B, T, G, H).transpose(1, 2, 0, 3, 4).reshape(B, T, N, H)


def _xla_layer(model: Qwen, positions_BT: jax.Array, table_BM: jax.Array) -> Any:
    """The training model's own layer, with an `attend` that goes through the cache."""
    a = model.architecture
    rope = ops.rope_table(positions_BT, a.head_dim, a.rope_theta)
    graph, shapes = nnx.split(model.layers)

    def layer(
        weights: Params, x: jax.Array, k_pages: jax.Array, v_pages: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            nonlocal k_pages, v_pages
            k_pages = kv_cache.append(k_pages, k, table_BM, positions_BT)
            v_pages = kv_cache.append(v_pages, v, table_BM, positions_BT)
            return paged_attention(q, k_pages, v_pages, table_BM, positions_BT)

        state = jax.tree.map(lambda leaf: leaf, shapes)
        nnx.replace_by_pure_dict(state, weights)
        x = nnx.merge(graph, state)(x, rope, attend)
        return x, k_pages, v_pages

    return layer


#: name -> (model, positions, table) -> a function (weights, x, k_pages, v_pages) of one layer.
IMPLS: dict[str, Callable[..., Any]] = {"xla": _xla_layer}


def _each(lists: Any, i: int) -> Any:
    """Layer i of a tree of lists."""
    return jax.tree.map(lambda parts: parts[i], lists, is_leaf=lambda x: isinstance(x, list))
