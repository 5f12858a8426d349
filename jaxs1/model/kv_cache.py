"""Keys and values of the sequences that are being decoded, in pages.

A sequence owns pages of `PAGE` tokens, listed in its row of a table; which page comes where is
decided on the host (`jaxs1.decoding.page_allocator`). Page 0 belongs to nobody: what padding and finished
sequences write goes there, and nothing reads it.

Letters beside those of `jaxs1/model/architecture.py`: P pages, S tokens of a page, M pages of one
sequence, X = M S tokens that one sequence can hold.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxs1.model.architecture import Architecture
from jaxs1.model.sharding import Axes, ShardingRules

#: Tokens of a page.
PAGE = 64
#: The page that is written to and never read.
NULL_PAGE = 0
#: Position of a token that is padding.
PAD_POSITION = -1
#: Logical axes of a layer's pages.
AXES: Axes = ("kv_heads", None, None, None)


class KVCache(NamedTuple):
    """For every layer the keys and the values, each [K, P, S, H]."""

    k: list[jax.Array]
    v: list[jax.Array]


def init_cache(a: Architecture, num_pages: int, dtype: Any, rules: ShardingRules) -> KVCache:
    """An empty cache, its heads split over devices as the model's are."""
    shape = (a.num_kv_heads, num_pages, PAGE, a.head_dim)
    sharding = rules.sharding(AXES)

    def pages() -> list[jax.Array]:
        return [jnp.zeros(shape, dtype, device=sharding) for _ in range(a.num_layers)]

    return KVCache(pages(), pages())


def token_bytes(a: Architecture, dtype: Any) -> int:
    """Bytes of one token's keys and values, all layers."""
    return 2 * a.num_layers * a.num_kv_heads * a.head_dim * jnp.dtype(dtype).itemsize


def append(
    pages_KPSH: jax.Array, x_BTKH: jax.Array, table_BM: jax.Array, positions_BT: jax.Array
) -> jax.Array:
    """Write keys or values of new tokens at their positions.

    Args:
        pages_KPSH: of one layer
        x_BTKH: what is written
        table_BM: int32, pages of each sequence in order
        positions_BT: int32, from 0 in each sequence; PAD_POSITION for what goes to the trash
    """
    page_BT = jnp.take_along_axis(table_BM, jnp.maximum(positions_BT, 0) // PAGE, axis=1)
    page_BT = jnp.where(positions_BT == PAD_POSITION, NULL_PAGE, page_BT)
    x_KBTH = x_BTKH.transpose(2, 0, 1, 3).astype(pages_KPSH.dtype)
    return pages_KPSH.at[:, page_BT, positions_BT % PAGE].set(x_KBTH)


def append_one(
    pages_KPSH: jax.Array, x_B1KH: jax.Array, table_BM: jax.Array, positions_B1: jax.Array
) -> jax.Array:
    """As `append` for one token a sequence, with slices instead of a scatter.

    For TPU: of a scatter XLA there wants the heads innermost, and copies all pages to and fro.
    """
    page_B = jnp.take_along_axis(table_BM, jnp.maximum(positions_B1, 0) // PAGE, axis=1)[:, 0]
    page_B = jnp.where(positions_B1[:, 0] == PAD_POSITION, NULL_PAGE, page_B)
    slot_B = positions_B1[:, 0] % PAGE
    x_KBH = x_B1KH[:, 0].swapaxes(0, 1).astype(pages_KPSH.dtype)
    for b in range(x_KBH.shape[1]):
        x_K11H = x_KBH[:, b, None, None]
        where = (0, page_B[b], slot_B[b], 0)
        pages_KPSH = jax.lax.dynamic_update_slice(pages_KPSH, x_K11H, where)
    return pages_KPSH


def copy_page(cache: KVCache, source: jax.Array, target: jax.Array) -> KVCache:
    """Give a sequence its own copy of a page that it shares."""
    return jax.tree.map(lambda pages: pages.at[:, target].set(pages[:, source]), cache)
