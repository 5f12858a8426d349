"""Operators that read weights: bf16x3 against float64 and against XLA's, on the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxs1.model import linear
from jaxs1.model.linear import LINEAR
from tests.numerics import assert_close
from tests.tiny_models import one_device


@pytest.mark.parametrize("rows", [1, 2, 5, 48])
@pytest.mark.parametrize(("outputs", "inputs"), [((7,), (300,)), ((4, 8), (64,)), ((9,), (6, 50))])
def test_bf16x3_product_is_float32s(rows, outputs, inputs):
    """All 24 bits of x count: without the last 8 the error is above 2e-6, without 16 above 3e-4."""
    rng = np.random.default_rng(rows)
    x = rng.normal(size=(1, rows, *inputs)).astype(np.float32)
    w = jnp.asarray(rng.normal(size=(*outputs, *inputs)), jnp.bfloat16)
    n = len(inputs)
    found = jax.jit(linear.product_bf16x3, static_argnums=2)(x, w, n)
    w_64 = np.moveaxis(np.asarray(w, np.float64), range(-n, 0), range(n))
    expected = np.tensordot(x.astype(np.float64), w_64, n)
    assert found.dtype == jnp.float32
    assert_close(found, expected, "bf16x3 product = float64")


@pytest.mark.parametrize("flat", [True, False])
def test_product_is_numpys(flat):
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(2, 5, 3, 8)), rng.normal(size=(3, 8, 4, 6))
    found = linear.product(x.astype(np.float32), w.astype(np.float32), 2, flat=flat)
    assert_close(found, np.tensordot(x, w, 2), "operator = plain formula")


@pytest.mark.parametrize("tied", [True, False])
def test_bf16x3_reads_the_weights_that_xla_reads(tied):
    """Stored otherwise, they mean the same: rows of the embedding, logits, products."""
    rng = np.random.default_rng(1)
    table = jnp.asarray(rng.normal(size=(60, 16)), jnp.bfloat16)
    tokens = rng.integers(0, 60, (2, 7))
    xla, bf16x3 = LINEAR["xla"], LINEAR["bf16x3"]
    rows = [op.embed(table, tokens, jnp.float32, one_device()) for op in (xla, bf16x3)]
    assert rows[0].dtype == rows[1].dtype == jnp.float32
    assert (rows[0] == rows[1]).all()
    hidden = rng.normal(size=(3, 16)).astype(np.float32)
    a = xla.logits(hidden, table if tied else table.T, tied=tied)
    assert_close(bf16x3.logits(hidden, table, tied=tied), a, "operator = plain formula")
    kernel = jnp.asarray(rng.normal(size=(16, 2, 5)), jnp.bfloat16)
    axes = ("embed", "heads", None)
    a = xla.product(hidden[None], kernel, 1, axes, one_device())
    b = bf16x3.product(hidden[None], jnp.moveaxis(kernel, 0, -1), 1, axes, one_device())
    assert_close(b, a, "operator = plain formula")
