"""One layer and the logits of a decoding step, made of the kernels.

    kernels.decode.layer(weights, x_BD, position_B, k_pages, v_pages, table_BM, eps=, rotation=)
    kernels.decode.logits(x_BD, scale_D, w, eps=, tied=)

Called from inside `jax.jit`, and under `shard_map` with heads, MLP and vocabulary split over a mesh
axis. `layer_interpreted` and `logits_interpreted` are the same on a CPU in float32 (see
`kernels.interpreted`). Nothing here depends on tokens, requests or budgets.

    B sequences   D width   F width of the MLP   N query heads   K key/value heads   H head
    V vocabulary  P pages   S tokens of a page   M pages of a sequence at most
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from kernels import xla_call
from kernels.attention import KV_SPLIT, Q_ROWS, attention
from kernels.gate_up import gate_up
from kernels.head import head
from kernels.int8 import Int8, parts
from kernels.interpreted import on_jax
from kernels.launch import Array, Run
from kernels.projection import projection
from kernels.qkv import qkv
from kernels.shapes import BATCHES, PAGE

#: Widths of a head that are compiled, tested and in published models.
HEAD_DIMS = (64, 128)
#: Bytes that a thread loads at a time.
LOAD = 16


def check(
    *,
    batch: int,
    width: int,
    mlp: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    page: int = PAGE,
    dtype: str = "bfloat16",
    int8: bool = False,
    compute_capability: int | None = None,
) -> None:
    """Check that the compiled kernels support these shapes, of one device's shard of a model.

    Args:
        batch: sequences B
        width: D
        mlp: F
        heads: N
        kv_heads: K
        head_dim: H
        page: tokens of a page S
        dtype: dtype of weights, activations and pages
        int8: whether the matrices are `Int8` instead
        compute_capability: compute capability, e.g. 90; default: that of the default device

    Raises:
        ValueError: one line with the field, its value and what is supported.
    """
    xla_call.check_versions()
    xla_call.check_capability(compute_capability or xla_call.compute_capability())
    _check_shape(batch=batch, heads=heads, kv_heads=kv_heads, page=page)
    if dtype != "bfloat16":
        raise ValueError(f"dtype={dtype}: the Triton kernels are compiled for bfloat16 only")
    if head_dim not in HEAD_DIMS:
        raise ValueError(f"head_dim={head_dim}: the Triton kernels take {HEAD_DIMS}")
    for name, value in (("width", width), ("mlp", mlp)):
        multiple = LOAD if int8 else LOAD // 2
        if value % multiple:
            raise ValueError(f"{name}={value}: must be a multiple of {multiple} (16-byte loads)")


def layer(
    weights: Mapping[str, Any],
    x_BD: Array,
    position_B: Array,
    k_pages: Array,
    v_pages: Array,
    table_BM: Array,
    *,
    eps: float,
    rotation: Callable[[Array], tuple[Array, Array]],
    axis_name: str | None = None,
    compute_capability: int | None = None,
    run: Run | None = None,
) -> tuple[Array, Array, Array]:
    """One layer for one new token of every sequence.

    Args:
        weights: the layer's, as in jaxs1/model/transformer.py: attn_norm.scale [D]; attn.q.kernel
            [D, N, H], attn.k.kernel and attn.v.kernel [D, K, H], each with or without bias;
            attn.o.kernel [N, H, D]; attn.q_norm.scale and attn.k_norm.scale [H] or absent;
            mlp_norm.scale [D]; mlp.gate.kernel and mlp.up.kernel [D, F]; mlp.down.kernel [F, D].
            All kernels may be `Int8`, whose outputs come first
        x_BD: the residual stream
        position_B: position of the new token, int32: it attends to keys 0..position; negative: no
            token
        k_pages: keys [K, P, S, H]; the new key is stored in page table[b, position // S] at offset
            position % S; page 0 is reserved for writes without a token
        v_pages: values, in the same layout
        table_BM: page table: pages of each sequence in order, int32
        eps: epsilon of the norms
        rotation: positions [B] to cosine and sine of the rotary embedding, float32 [B, H/2]
        axis_name: mesh axis that heads and MLP are sharded over; partial results are summed
        compute_capability: compute capability, e.g. 90; default: that of the default device
        run: runs the kernels; default: the GPU

    Returns:
        x_BD, k_pages, v_pages; under `jit` the pages are updated in place.

    Raises:
        ValueError: a shape, dtype, GPU or version that is not supported.
    """
    attn, mlp = weights["attn"], weights["mlp"]
    run = run or _compiled(weights, x_BD, k_pages, compute_capability)
    K, _, S, H = k_pages.shape
    B, D = x_BD.shape
    N = _size(attn["q"]["kernel"]) // (D * H)
    _check_shape(batch=B, heads=N, kv_heads=K, page=S)
    q, k, v = (attn[name] for name in "qkv")
    partial_sums, squares = qkv(
        run, x_BD, weights["attn_norm"]["scale"], q["kernel"], k["kernel"], v["kernel"]
    )
    mixed_BNH, k_pages, v_pages = attention(
        run,
        partial_sums,
        squares,
        (q.get("bias"), k.get("bias"), v.get("bias")),
        (attn.get("q_norm", {}).get("scale"), attn.get("k_norm", {}).get("scale")),
        rotation(position_B),
        position_B,
        (k_pages, v_pages),
        table_BM,
        width=D,
        eps=eps,
    )
    x_BD = _add(run, mixed_BNH.reshape(B, N * H), attn["o"]["kernel"], x_BD, axis_name)
    gate, up, down = (mlp[name]["kernel"] for name in ("gate", "up", "down"))
    hidden_BF = gate_up(run, x_BD, weights["mlp_norm"]["scale"], gate, up, eps=eps)
    return _add(run, hidden_BF, down, x_BD, axis_name), k_pages, v_pages


def logits(
    x_BD: Array,
    scale_D: Array,
    w: Array | Int8,
    *,
    eps: float,
    tied: bool,
    compute_capability: int | None = None,
    run: Run | None = None,
) -> Array:
    """Final norm and output matrix: float32 logits [B, V].

    The kernel stores them rather than sampling: they are 0.04 % of the matrix's bytes, and the
    controller that masks and forces tokens needs them in XLA.

    Args:
        x_BD: the residual stream after the last layer
        scale_D: scale of the final norm
        w: [D, V], or [V, D] if it is the embedding (`tied`) or `Int8`
        eps: epsilon of the norm
        tied: whether the head is the embedding
        compute_capability: compute capability, e.g. 90; default: that of the default device
        run: runs the kernel; default: the GPU
    """
    if run is None:
        xla_call.check_versions()
        capability = compute_capability or xla_call.compute_capability()
        xla_call.check_capability(capability)
        for name, array in (("hidden states", x_BD), ("head", parts(w)[0])):
            wanted = jnp.int8 if array is not x_BD and isinstance(w, Int8) else jnp.bfloat16
            multiple = LOAD // jnp.dtype(wanted).itemsize
            wide = array.shape[1] % multiple == 0 and array.size < 2**31  # int32 offsets
            if array.dtype != wanted or not wide:
                raise ValueError(
                    f"{name}: {array.dtype}{list(array.shape)}: the Triton kernel takes bfloat16 "
                    f"(or int8 with a scale), a last axis that is a multiple of {multiple}, and "
                    "less than 2^31 elements"
                )
        run = xla_call.Compiled(capability)
    _check_shape(batch=x_BD.shape[0])
    return head(run, x_BD, scale_D, w, eps=eps, tied=tied)


#: The same on a CPU, in float32, from inside `jax.jit`; needs TRITON_INTERPRET=1 and torch.
layer_interpreted = partial(layer, run=on_jax)
logits_interpreted = partial(logits, run=on_jax)


def plain_rotation(position_B: Array, head_dim: int, theta: float) -> tuple[Array, Array]:
    """Cosine and sine [B, H / 2] of an unscaled rotary embedding of base `theta`, float32."""
    frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angle = position_B.astype(jnp.float32)[:, None] * frequency
    return jnp.cos(angle), jnp.sin(angle)


def _add(run: Run, x_BK: Array, w: Array, residual_BD: Array, axis_name: str | None) -> Array:
    """The residual + x W, where W may be sharded over a mesh axis."""
    if axis_name is None:
        return projection(run, x_BK, w, residual_BD)
    total_BD = jax.lax.psum(projection(run, x_BK, w, None), axis_name)
    return (residual_BD.astype(jnp.float32) + total_BD).astype(residual_BD.dtype)


def _compiled(
    weights: Mapping[str, Any], x_BD: Array, k_pages: Array, capability: int | None
) -> xla_call.Compiled:
    """What runs the kernels on the GPU; raises if they do not support it."""
    capability = capability or xla_call.compute_capability()
    leaves = jax.tree.leaves(dict(weights), is_leaf=lambda x: isinstance(x, Int8))
    others = (x for x in (*leaves, x_BD, k_pages) if not isinstance(x, Int8))
    dtypes = {str(x.dtype) for x in others}
    check(
        batch=x_BD.shape[0],
        width=x_BD.shape[1],
        mlp=_size(weights["mlp"]["gate"]["kernel"]) // x_BD.shape[1],
        heads=_size(weights["attn"]["q"]["kernel"]) // (x_BD.shape[1] * k_pages.shape[3]),
        kv_heads=k_pages.shape[0],
        head_dim=k_pages.shape[3],
        page=k_pages.shape[2],
        dtype=" and ".join(sorted(dtypes)),
        int8=any(isinstance(x, Int8) for x in leaves),
        compute_capability=capability,
    )
    return xla_call.Compiled(capability)


def _size(w: Array | Int8) -> int:
    """Number of elements of a weight."""
    return parts(w)[0].size


def _check_shape(*, batch: int, heads: int = 1, kv_heads: int = 1, page: int = PAGE) -> None:
    """Limits of both compiled and interpreted kernels."""
    low, high = BATCHES
    if not low <= batch <= high:
        raise ValueError(f"batch={batch}: the Triton kernels take {low} to {high} sequences")
    if heads % kv_heads or heads // kv_heads > Q_ROWS:
        raise ValueError(
            f"heads={heads}: must be a multiple of kv_heads={kv_heads}, at most {Q_ROWS} times"
        )
    if page < 16 or KV_SPLIT % page:
        raise ValueError(f"page={page}: must be a divisor of {KV_SPLIT} of at least 16 tokens")
