"""Paged KV cache of the sequences being decoded.

The keys and values of a sequence are stored in pages of `PAGE` tokens, which its row of a page
table lists; the host assigns them (`jaxs1.decoding.page_allocator`). Page 0 is reserved: padding
and finished sequences write to it, and nothing reads it.

Letters in addition to those of `jaxs1/model/architecture.py`: P pages, S tokens of a page, M pages
of one sequence, X = M S tokens of one sequence at most.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxs1.model.architecture import Architecture
from jaxs1.model.sharding import Axes, ShardingRules

#: Tokens per page.
PAGE = 64
#: Page that is written to and never read.
NULL_PAGE = 0
#: Position of padding.
PAD_POSITION = -1
#: Logical axes of the pages of a layer.
AXES: Axes = ("kv_heads", None, None, None)


class KVCache(NamedTuple):
    """The cache of all layers.

    Args:
        k: keys of each layer [K, P, S, H]
        v: values of each layer [K, P, S, H]
    """

    k: list[jax.Array]
    v: list[jax.Array]


def init_cache(a: Architecture, num_pages: int, dtype: DTypeLike, rules: ShardingRules) -> KVCache:
    """An empty cache, sharded over heads like the model."""
    shape = (a.num_kv_heads, num_pages, PAGE, a.head_dim)
    sharding = rules.sharding(AXES)

    def pages() -> list[jax.Array]:
        return [jnp.zeros(shape, dtype, device=sharding) for _ in range(a.num_layers)]

    return KVCache(pages(), pages())


def token_bytes(a: Architecture, dtype: DTypeLike) -> int:
    """Size of the keys and values of one token in all layers [bytes]."""
    return 2 * a.num_layers * a.num_kv_heads * a.head_dim * jnp.dtype(dtype).itemsize


def append(
    pages_KPSH: jax.Array, x_BTKH: jax.Array, table_BM: jax.Array, positions_BT: jax.Array
) -> jax.Array:
    """Write the keys or values of new tokens to their pages.

    Args:
        pages_KPSH: pages of one layer
        x_BTKH: keys or values
        table_BM: int32, pages of each sequence in order
        positions_BT: int32, from 0 in each sequence; PAD_POSITION writes to NULL_PAGE
    """
    page_BT = jnp.take_along_axis(table_BM, jnp.maximum(positions_BT, 0) // PAGE, axis=1)
    page_BT = jnp.where(positions_BT == PAD_POSITION, NULL_PAGE, page_BT)
    x_KBTH = x_BTKH.transpose(2, 0, 1, 3).astype(pages_KPSH.dtype)
    return pages_KPSH.at[:, page_BT, positions_BT % PAGE].set(x_KBTH)


def append_one(
    pages_KPSH: jax.Array, x_B1KH: jax.Array, table_BM: jax.Array, positions_B1: jax.Array
) -> jax.Array:
    """`append` for one token per sequence, with slices instead of a scatter.

    On TPU, XLA lays out scatter operands with heads innermost and would copy the entire cache twice
    per step.
    """
    page_B = jnp.take_along_axis(table_BM, jnp.maximum(positions_B1, 0) // PAGE, axis=1)[:, 0]
    page_B = jnp.where(positions_B1[:, 0] == PAD_POSITION, NULL_PAGE, page_B)
    offset_B = positions_B1[:, 0] % PAGE
    x_KBH = x_B1KH[:, 0].swapaxes(0, 1).astype(pages_KPSH.dtype)
    for b in range(x_KBH.shape[1]):
        x_K11H = x_KBH[:, b, None, None]
        start = (0, page_B[b], offset_B[b], 0)
        pages_KPSH = jax.lax.dynamic_update_slice(pages_KPSH, x_K11H, start)
    return pages_KPSH


def copy_page(cache: KVCache, source: jax.Array, target: jax.Array) -> KVCache:
    """Copy a page, for a sequence that appends to a page it shares."""
    return jax.tree.map(lambda pages: pages.at[:, target].set(pages[:, source]), cache)
