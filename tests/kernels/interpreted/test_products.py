"""The four kernels around the matrix product = numpy in float64."""

import numpy as np
import pytest
import torch

from jaxs1.model.quantization import quantize
from kernels import gate_up, head, projection, qkv
from kernels.int8 import Int8
from kernels.interpreted import on_torch
from kernels.matmul_tile import split
from tests.kernels.interpreted import plain
from tests.kernels.interpreted.layers import dequantized, weights
from tests.numerics import assert_close

BATCHES = (1, 3, 17)
WHAT = "kernel = plain formula"
EPS = 1e-6


def tensors(tree):
    if isinstance(tree, dict):
        return {key: tensors(value) for key, value in tree.items()}
    return torch.from_numpy(tree)


def case(batch, seed=0):
    """A layer, its torch twin, and rows of x in numpy and torch."""
    rng = np.random.default_rng(seed)
    w = weights(rng, 10, 2)
    x = rng.standard_normal((batch, 600)).astype(np.float32) * 3
    return w, tensors(w), x, torch.from_numpy(x)


@pytest.mark.parametrize("batch", BATCHES)
def test_qkv(batch):
    w, t, x, x_t = case(batch)
    kernels = [t["attn"][name]["kernel"] for name in "qkv"]
    partial, squares = qkv.qkv(on_torch, x_t, t["attn_norm"]["scale"], *kernels)
    assert partial.shape[0] == squares.shape[0] == 2  # slices
    n = x.astype(np.float64) * w["attn_norm"]["scale"]
    expected = [n @ w["attn"][name]["kernel"].reshape(600, -1) for name in "qkv"]
    assert_close(partial.sum(0), np.concatenate(expected, 1), WHAT)
    assert_close(squares.sum(0), np.sum(x.astype(np.float64) ** 2, 1), WHAT)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("residual", [True, False])
def test_projection(batch, residual):
    rng = np.random.default_rng(1)
    x, w, y = (
        rng.standard_normal(s).astype(np.float32) for s in ((batch, 600), (600, 200), (batch, 200))
    )
    actual = projection.projection(
        on_torch,
        torch.from_numpy(x),
        torch.from_numpy(w),
        torch.from_numpy(y) if residual else None,
    )
    assert_close(actual, x.astype(np.float64) @ w + residual * y, WHAT)


@pytest.mark.parametrize("batch", BATCHES)
def test_gate_up(batch):
    w, t, x, x_t = case(batch)
    gate, up = (t["mlp"][name]["kernel"] for name in ("gate", "up"))
    actual = gate_up.gate_up(on_torch, x_t, t["mlp_norm"]["scale"], gate, up, eps=EPS)
    n = plain.rms_norm(x, w["mlp_norm"]["scale"], EPS)
    expected = plain.swiglu(*(plain.project(n, w["mlp"][name]) for name in ("gate", "up")))
    assert_close(actual, expected, WHAT)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("tied", [True, False])
def test_head(batch, tied):
    w, t, x, x_t = case(batch)
    matrix = np.random.default_rng(2).standard_normal((600, 333)).astype(np.float32)
    given = torch.from_numpy(np.ascontiguousarray(matrix.T) if tied else matrix)
    logits = head.head(on_torch, x_t, t["attn_norm"]["scale"], given, eps=EPS, tied=tied)
    assert logits.dtype == torch.float32
    assert_close(logits, plain.rms_norm(x, w["attn_norm"]["scale"], EPS) @ matrix, WHAT)


def fixed_order(self, a, b, d, *options):
    """A product that adds up k in order. BLAS picks its order by the shape of the matrices."""
    from triton.runtime.interpreter import TensorHandle

    total = np.zeros_like(d.data)
    for k in range(a.data.shape[1]):
        total += a.data[:, k, None] * b.data[None, k]
    return TensorHandle(total + d.data, d.dtype.scalar)


@pytest.mark.parametrize("batch", [2, 17, 40])
def test_same_bits_whatever_the_neighbours(batch, monkeypatch):
    from triton.runtime.interpreter import InterpreterBuilder

    monkeypatch.setattr(InterpreterBuilder, "create_dot", fixed_order)
    _, t, _, x = case(batch)
    x[: batch - 1] = torch.nan  # and whatever they hold
    attn, mlp = t["attn"], t["mlp"]
    scale = t["attn_norm"]["scale"]

    def last(x):
        partial, squares = qkv.qkv(on_torch, x, scale, *(attn[n]["kernel"] for n in "qkv"))
        gate, up, down = (mlp[name]["kernel"] for name in ("gate", "up", "down"))
        hidden = gate_up.gate_up(on_torch, x, scale, gate, up, eps=EPS)
        x = projection.projection(on_torch, hidden, down, x)
        logits = head.head(on_torch, x, scale, gate, eps=EPS, tied=False)
        return [partial[:, -1], squares[:, -1], hidden[-1], x[-1], logits[-1]]

    for alone, together in zip(last(x[-1:]), last(x), strict=True):
        assert torch.isfinite(alone).all()
        assert torch.equal(alone, together)


def test_slices_cover_k_and_depend_on_the_weight_only():
    for inputs, columns in ((5120, 7168), (5120, 5120), (27648, 5120), (896, 1152), (128, 64)):
        slices, length = split(inputs, columns)
        assert length % 64 == 0 and (slices - 1) * length < inputs <= slices * length
    assert split(5120, 7168) == (4, 1280)  # 112 tiles: 448 programs on 132 cores
    assert split(128, 64) == (1, 128)


def test_the_interpreter_refuses_what_it_gets_wrong():
    x = torch.zeros(1, 64, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="bfloat16: the interpreter needs float32"):
        projection.projection(on_torch, x, torch.zeros(64, 64, dtype=torch.bfloat16), x)


@pytest.mark.parametrize("batch", BATCHES)
def test_head_of_int8(batch):
    w, t, x, x_t = case(batch)
    int8 = quantize(np.random.default_rng(2).standard_normal((333, 600)).astype(np.float32), 1)
    given = Int8(*map(torch.from_numpy, int8))
    expected = plain.rms_norm(x, w["attn_norm"]["scale"], EPS) @ dequantized(int8).T
    for tied in (True, False):  # stored alike
        logits = head.head(on_torch, x_t, t["attn_norm"]["scale"], given, eps=EPS, tied=tied)
        assert_close(logits, expected, WHAT)


def test_int8_is_exact_where_the_weights_are_integers():
    """Every product and sum is a small integer: no rounding can hide a wrong term."""
    rng = np.random.default_rng(3)
    values = rng.integers(-127, 128, (200, 592)).astype(np.int8)
    x = rng.integers(-3, 4, (3, 592)).astype(np.float32)
    w = Int8(torch.from_numpy(values), torch.ones(200))
    y = projection.projection(on_torch, torch.from_numpy(x), w, None)
    np.testing.assert_array_equal(y.numpy(), x.astype(int) @ values.T.astype(int))
