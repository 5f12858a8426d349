"""What the benchmark runs: random inputs of every kernel, and the same formula in plain jax.

The plain formula is the oracle in float64 and the baseline in bfloat16, compiled by XLA (cuBLAS
products, fusions).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kernels import decode
from kernels.attention import attention
from kernels.benchmarking.program import random_values
from kernels.gate_up import gate_up
from kernels.head import head
from kernels.launch import Array, ceil_div
from kernels.matmul_tile import split
from kernels.projection import projection
from kernels.qkv import qkv
from kernels.shapes import PAGE, Shape

Tree = Any
#: (*sizes, inputs=) -> random numbers of variance 1 / inputs
Random = Callable[..., Array]


@dataclass(frozen=True)
class KernelCase:
    """One call of a kernel, as pure functions.

    Args:
        label: kernel, width of the model, batch and context
        draw: seed -> fixed, state: inputs that a call only reads, and inputs that it updates in
            place (pages, or nothing). Random, since zeros would run faster than real data
        kernel: (run, fixed, state, **options of the kernel) -> output, state
        plain: (fixed, state) -> output, state
        launches: timed part of `kernel`: without what only prepares its output for comparison
    """

    label: str
    draw: Callable[[Array], tuple[Tree, Tree]]
    kernel: Callable[..., tuple[Array, Tree]]
    plain: Callable[[Tree, Tree], tuple[Array, Tree]]
    launches: Callable[..., tuple[Tree, Tree]]


@functools.cache
def make(name: str, shape: Shape, batch: int, context: int, dtype: Any) -> KernelCase:
    """A kernel's case.

    Args:
        name: name of the kernel, as in `kernels.shapes.kernel_work`
        shape: shape of the model, or of one device's shard
        batch: number of sequences B
        context: tokens that each new token attends to, including itself
        dtype: bfloat16, or float32 if kernels are interpreted
    """

    def draw(inputs: Callable[[Random], tuple[Tree, Tree]], seed: Array) -> tuple[Tree, Tree]:
        seeds = (8 * seed + i for i in itertools.count())

        def random(*sizes: int, inputs: int = 1) -> Array:
            return random_values(next(seeds), sizes, dtype, inputs**-0.5)

        return inputs(random)

    draw_inputs, kernel, plain = _parts(name, shape, batch, context)
    label = f"{name}, width {shape.width}, batch {batch}, context {context}"
    launches = _qkv_launches if name == "qkv" else kernel
    return KernelCase(label, partial(draw, draw_inputs), kernel, plain, launches)


def _parts(name: str, shape: Shape, batch: int, context: int) -> tuple[Any, Any, Any]:
    """Inputs from a source of random numbers, the kernel, the plain formula."""
    D, F, V, eps = shape.width, shape.mlp, shape.vocabulary, shape.eps
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim

    def projection_inputs(random: Random) -> Any:
        K = q if name == "out" else F
        return (random(batch, K), random(K, D, inputs=K), random(batch, D)), ()

    def normed_inputs(*widths: tuple[int, ...]) -> Any:
        def inputs(random: Random) -> Any:
            weights = [random(*sizes, inputs=D) for sizes in widths]
            return (random(batch, D), 1 + random(D) / 8, *weights), ()

        return inputs

    if name == "attention":
        return (partial(_attention_inputs, shape, batch, context),
                partial(_attention_kernel, shape), partial(_attention_plain, shape))  # fmt: skip
    if name in ("out", "down"):
        return projection_inputs, _projection_kernel, _projection_plain
    if name == "qkv":
        return (normed_inputs((D, q, 1), (D, kv, 1), (D, kv, 1)),
                partial(_qkv_kernel, eps), partial(_qkv_plain, eps))  # fmt: skip
    if name == "gate_up":
        return (normed_inputs((D, F), (D, F)),
                partial(_gate_up_kernel, eps), partial(_gate_up_plain, eps))  # fmt: skip
    return (normed_inputs((V, D) if shape.tied else (D, V)),
            partial(_head_kernel, eps, shape.tied),
            partial(_head_plain, eps, shape.tied))  # fmt: skip


def _norm(x: Array, scale: Array, eps: float) -> Array:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    factor = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return (wide * factor * scale.astype(wide.dtype)).astype(x.dtype)


def _product(x: Array, w: Array) -> Array:
    """A product in float32 or wider, as in the kernels before they round it."""
    return jnp.matmul(x, w, preferred_element_type=jnp.promote_types(x.dtype, jnp.float32))


def _qkv_kernel(eps: float, run: Any, fixed: Tree, state: Tree, **options: Any) -> Any:
    """Applies the attention kernel's part of the norm, to make the result comparable."""
    partial_sums, squares = qkv(run, *fixed, **options)
    factor = jax.lax.rsqrt(squares.sum(0) / fixed[0].shape[1] + eps)
    return partial_sums.sum(0) * factor[:, None], state


def _qkv_launches(run: Any, fixed: Tree, state: Tree, **options: Any) -> Any:
    return qkv(run, *fixed, **options), state


def _qkv_plain(eps: float, fixed: Tree, state: Tree) -> tuple[Array, Tree]:
    x, scale, *weights = fixed
    n = _norm(x, scale, eps)
    return jnp.concatenate([_product(n, w[..., 0]) for w in weights], axis=1), state


def _projection_kernel(run: Any, fixed: Tree, state: Tree, **options: Any) -> Any:
    return projection(run, *fixed, **options), state


def _projection_plain(fixed: Tree, state: Tree) -> tuple[Array, Tree]:
    x, w, residual = fixed
    y = _product(x, w)
    return (residual.astype(y.dtype) + y).astype(residual.dtype), state


def _gate_up_kernel(eps: float, run: Any, fixed: Tree, state: Tree, **options: Any) -> Any:
    return gate_up(run, *fixed, eps=eps, **options), state


def _gate_up_plain(eps: float, fixed: Tree, state: Tree) -> tuple[Array, Tree]:
    x, scale, gate, up = fixed
    n = _norm(x, scale, eps)
    return (jax.nn.silu(_product(n, gate)) * _product(n, up)).astype(x.dtype), state


def _head_kernel(eps: float, tied: bool, run: Any, fixed: Any, state: Any, **options: Any) -> Any:
    return head(run, *fixed, eps=eps, tied=tied, **options), state


def _head_plain(eps: float, tied: bool, fixed: Tree, state: Tree) -> tuple[Array, Tree]:
    x, scale, w = fixed
    return _product(_norm(x, scale, eps), w.T if tied else w), state


def _attention_inputs(shape: Shape, batch: int, context: int, random: Random) -> Any:
    """Pages dealt in random order; partial sums of q, k and v as the projection leaves them."""
    K, H, D = shape.kv_heads, shape.head_dim, shape.width
    C = (shape.heads + 2 * K) * H
    M = ceil_div(context, PAGE)
    slices, _ = split(D, C)
    sums = random(slices, batch, C, inputs=slices).astype(jnp.float32)
    squares = jnp.full((slices, batch), D / slices, jnp.float32)
    pages = tuple(random(K, 1 + batch * M, PAGE, H) for _ in range(2))
    order = np.random.default_rng(0).permutation(batch * M) + 1
    table = jnp.asarray(order.reshape(batch, M), jnp.int32)
    position = jnp.full((batch,), context - 1, jnp.int32)
    rotation = decode.plain_rotation(position, H, shape.theta)
    return (sums, squares, rotation, position, table), pages


def _attention_kernel(shape: Shape, run: Any, fixed: Tree, pages: Tree) -> tuple[Array, Tree]:
    sums, squares, rotation, position, table = fixed
    out, *pages = attention(
        run, sums, squares, (None,) * 3, (None,) * 2, rotation, position, tuple(pages), table,
        width=shape.width, eps=shape.eps,
    )  # fmt: skip
    return out, tuple(pages)


def _attention_plain(shape: Shape, fixed: Tree, pages: Tree) -> tuple[Array, Tree]:
    sums, squares, (cos, sin), position, table = fixed
    N, K, H = shape.heads, shape.kv_heads, shape.head_dim
    dtype, wide = pages[0].dtype, sums.dtype
    B = len(position)
    factor = jax.lax.rsqrt(squares.sum(0) / shape.width + shape.eps)
    heads = (sums.sum(0) * factor[:, None]).reshape(B, N + 2 * K, H)
    heads = heads.astype(dtype).astype(wide)
    a, b = jnp.split(heads[:, : N + K], 2, axis=-1)
    cos, sin = cos[:, None], sin[:, None]
    turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(dtype)
    new = (turned[:, N:], heads[:, N + K :].astype(dtype))
    page = jnp.take_along_axis(table, position[:, None] // PAGE, axis=1)[:, 0]
    pages = tuple(
        p.at[:, page, position % PAGE].set(x.swapaxes(0, 1))
        for p, x in zip(pages, new, strict=True)
    )
    k_KBXH, v_KBXH = (p[:, table].reshape(K, B, -1, H) for p in pages)
    q_BKGH = turned[:, :N].reshape(B, K, N // K, H)
    scores = jnp.einsum("bkgh,kbxh->bkgx", q_BKGH, k_KBXH, preferred_element_type=wide) * H**-0.5
    hidden = jnp.arange(scores.shape[-1]) > position[:, None, None, None]
    weights = jax.nn.softmax(jnp.where(hidden, -jnp.inf, scores), axis=-1).astype(dtype)
    out = jnp.einsum("bkgx,kbxh->bkgh", weights, v_KBXH, preferred_element_type=wide)
    return out.reshape(B, N, H).astype(dtype), pages
