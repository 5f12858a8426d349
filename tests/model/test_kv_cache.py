"""One token a sequence into its page: slices as a scatter, and Pallas's attention as XLA's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from jaxs1.model import kv_cache
from jaxs1.model.kv_cache import PAD_POSITION, PAGE
from jaxs1.model.paged_attention import paged_attention_pallas, paged_attention_xla
from tests.numerics import assert_close

B, N, K, PAGES = 3, 10, 2, 4


def drawn(H):
    keys = jax.random.split(jax.random.key(0), 4)
    shape = (K, 1 + B * PAGES, PAGE, H)
    k_pages, v_pages = (jax.random.normal(key, shape) for key in keys[:2])
    q = jax.random.normal(keys[2], (B, 1, N, H))
    x = jax.random.normal(keys[3], (B, 1, K, H))
    table = 1 + np.random.default_rng(0).permutation(B * PAGES).reshape(B, PAGES)
    return q, x, k_pages, v_pages, jnp.asarray(table, jnp.int32)


@pytest.mark.parametrize("at", [(0, 63, 64), (255, PAD_POSITION, 130)])
def test_append_one_is_append(at):
    _, x, pages, _, table = drawn(16)
    positions = jnp.asarray(at, jnp.int32)[:, None]
    expected = kv_cache.append(pages, x, table, positions)
    assert (kv_cache.append_one(pages, x, table, positions) == expected).all()
    assert not (expected == pages).all()


@pytest.mark.parametrize("H", [64, 128])
def test_pallas_attention_is_paged_attention(H):
    q, _, k_pages, v_pages, table = drawn(H)
    # the kernel takes them as bfloat16, whatever they are
    k_pages, v_pages = (p.astype(jnp.bfloat16).astype(jnp.float32) for p in (k_pages, v_pages))
    positions = jnp.asarray([[0], [64], [255]], jnp.int32)
    expected = paged_attention_xla(q, k_pages, v_pages, table, positions)
    with pltpu.force_tpu_interpret_mode():
        found = paged_attention_pallas(q, k_pages, v_pages, table, positions)
    assert_close(found, expected, "kernel = plain formula")
