"""New keys and values into their pages, against a dictionary; slices against a scatter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxs1.model import kv_cache
from jaxs1.model.kv_cache import PAD_POSITION, PAGE


def test_append_and_copy_page():
    """Against a dictionary from (sequence, position) to value."""
    rng = np.random.default_rng(1)
    K, H, B, T = 2, 3, 3, 5
    table = np.array([[4, 2], [1, 5], [3, 0]], np.int32)
    positions = np.array([[62, 63, 64, 65, -1], [0, -1, -1, -1, -1], [7, 8, 9, 63, 10]], np.int32)
    x = rng.normal(size=(B, T, K, H)).astype(np.float32)
    pages = jnp.full((K, 6, PAGE, H), jnp.nan)
    pages = np.asarray(jax.jit(kv_cache.append)(pages, x, table, positions))
    written = np.zeros((6, PAGE), bool)
    for b, t in np.argwhere(positions != PAD_POSITION):
        page, slot = table[b, positions[b, t] // PAGE], positions[b, t] % PAGE
        assert (pages[:, page, slot] == x[b, t]).all()
        written[page, slot] = True
    assert np.isnan(pages[:, ~written][:, PAGE:]).all()  # but for page 0, which is anybody's
    cache = kv_cache.KVCache([jnp.asarray(pages)], [jnp.asarray(-pages)])
    copied = kv_cache.copy_page(cache, np.int32(4), np.int32(1))
    assert np.array_equal(copied.k[0][:, 1], pages[:, 4], equal_nan=True)
    assert np.array_equal(copied.v[0][:, 1], -pages[:, 4], equal_nan=True)
    assert np.array_equal(copied.k[0][:, 2:], pages[:, 2:], equal_nan=True)


@pytest.mark.parametrize("at", [(0, 63, 64), (255, PAD_POSITION, 130)])
def test_append_one_is_append(at):
    keys = jax.random.split(jax.random.key(0), 2)
    B, K, H, M = 3, 2, 16, 4
    pages = jax.random.normal(keys[0], (K, 1 + B * M, PAGE, H))
    x = jax.random.normal(keys[1], (B, 1, K, H))
    table = 1 + np.random.default_rng(0).permutation(B * M).reshape(B, M).astype(np.int32)
    positions = jnp.asarray(at, jnp.int32)[:, None]
    expected = kv_cache.append(pages, x, table, positions)
    assert (kv_cache.append_one(pages, x, table, positions) == expected).all()
    assert not (expected == pages).all()
