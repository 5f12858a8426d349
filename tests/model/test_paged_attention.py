"""Attention to a paged cache: XLA's against a plain formula, Pallas's against XLA's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from jaxs1.model.kv_cache import PAGE
from jaxs1.model.paged_attention import paged_attention_pallas, paged_attention_xla
from tests.numerics import assert_close

B, N, K, PAGES = 3, 10, 2, 4


def drawn(H, T=1):
    keys = jax.random.split(jax.random.key(0), 3)
    shape = (K, 1 + B * PAGES, PAGE, H)
    k_pages, v_pages = (jax.random.normal(key, shape) for key in keys[:2])
    q = jax.random.normal(keys[2], (B, T, N, H))
    table = 1 + np.random.default_rng(0).permutation(B * PAGES).reshape(B, PAGES)
    return q, k_pages, v_pages, jnp.asarray(table, jnp.int32)


def test_equals_the_plain_formula_over_pages_full_of_nan():
    q, k_pages, v_pages, table = drawn(16, T=3)
    positions = np.array([[0, 1, 2], [63, 64, 65], [253, 254, 255]])
    keys, values = (np.asarray(pages, np.float64) for pages in (k_pages, v_pages))
    q, table = np.asarray(q), np.asarray(table)
    expected = np.zeros(q.shape)
    held = np.zeros(k_pages.shape[1:3], bool)
    for b in range(B):
        for t, last in enumerate(positions[b]):
            page, offset = table[b, np.arange(last + 1) // PAGE], np.arange(last + 1) % PAGE
            held[page, offset] = True
            for n in range(N):
                k, v = (pages[n // (N // K)][page, offset] for pages in (keys, values))
                weights = np.exp(k @ np.asarray(q[b, t, n], np.float64) / 4)
                expected[b, t, n] = weights @ v / weights.sum()
    hidden = [jnp.where(held[None, :, :, None], x, jnp.nan) for x in (k_pages, v_pages)]
    found = paged_attention_xla(q, *hidden, table, jnp.asarray(positions, jnp.int32))
    assert_close(found, expected, "operator = plain formula")


@pytest.mark.parametrize("H", [64, 128])
def test_pallas_attention_is_paged_attention(H):
    q, k_pages, v_pages, table = drawn(H)
    # the kernel takes them as bfloat16, whatever they are
    k_pages, v_pages = (p.astype(jnp.bfloat16).astype(jnp.float32) for p in (k_pages, v_pages))
    positions = jnp.asarray([[0], [64], [255]], jnp.int32)
    expected = paged_attention_xla(q, k_pages, v_pages, table, positions)
    with pltpu.force_tpu_interpret_mode():
        found = paged_attention_pallas(q, k_pages, v_pages, table, positions)
    assert_close(found, expected, "kernel = plain formula")
