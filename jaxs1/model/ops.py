"""The model's operators, each by name in one or more implementations.

`IMPLS[op][name]` is a function; "xla" is the reference of every op and the oracle of the others.
A named implementation runs or raises with the reason: nothing falls back in silence.

Arrays: q_BTNH, k_BTKH, v_BTKH, segments_BT (0 is padding; sequences of a row count from 1).
Legend of the letters: `jaxs1/model/architecture.py`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxs1.config import UserError
from jaxs1.model.sharding import LOGICAL_RULES, ShardingRules

#: Added to the score of a key that a query may not see.
MASK_VALUE = -1e30
#: Rows up to which a bf16x3 product of all weights of a layer is faster with these on the left.
FEW_ROWS = 16
#: Queries that one block of the XLA attention takes at least.
QUERY_BLOCK = 128


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """x / sqrt(mean(x^2) + eps) * scale over the last axis, in float32, back in x's dtype."""
    x_f32 = x.astype(jnp.float32)
    normed = x_f32 * lax.rsqrt(jnp.mean(x_f32 * x_f32, axis=-1, keepdims=True) + eps)
    return (normed * scale.astype(jnp.float32)).astype(x.dtype)


def rope_table(positions_BT: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of the rotary embedding (Su et al. 2021), float32 [B, T, 1, H/2]."""
    frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angle = positions_BT.astype(jnp.float32)[..., None, None] * frequency
    return jnp.cos(angle), jnp.sin(angle)


def rope(x_BTNH: jax.Array, table: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotate the two halves of every head by its position, in float32."""
    cos, sin = table
    a, b = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BTNH.dtype)


def swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    """silu(gate) * up, the non-linearity in float32."""
    return jax.nn.silu(gate.astype(jnp.float32)).astype(up.dtype) * up


def linear(x: jax.Array, w: jax.Array, inputs: int, *, flat: bool) -> jax.Array:
    """Contract the last `inputs` axes of x with the first of w.

    Args:
        x: [B, T, inputs...]
        w: [inputs..., outputs...]
        inputs: number of axes that are contracted
        flat: multiply matrices [B T, in] and [in, out]. XLA on CPU is then 2.5 x as fast, because
            the gradient of w needs no transposed copy of a 3-D array; a mesh that splits T cannot
    """
    if not flat:
        return jnp.tensordot(x, w, axes=inputs)
    rows, outputs = x.shape[: x.ndim - inputs], w.shape[inputs:]
    width = math.prod(w.shape[:inputs])
    return (x.reshape(-1, width) @ w.reshape(width, -1)).reshape(*rows, *outputs)


def linear_bf16x3(x: jax.Array, w: jax.Array, inputs: int) -> jax.Array:
    """As `linear` of float32 with bfloat16 weights, which are read as they are.

    A float32 is the sum of three bfloat16, 8 bits of its 24 each, and the product of two bfloat16
    is exact in float32: so one product of bfloat16 with three times the rows, whose parts are then
    added, rounds no more than one of float32 does. XLA's CPU library rearranges the right operand:
    where rows are few, the weights are the left one.

    Args:
        x: float32 [rows..., inputs...]
        w: bfloat16 [outputs..., inputs...]
        inputs: number of axes that are contracted

    Returns:
        float32 [rows..., outputs...].
    """
    rows, outputs = x.shape[: x.ndim - inputs], w.shape[: w.ndim - inputs]
    width, count = math.prod(w.shape[w.ndim - inputs :]), math.prod(rows)
    w_OI, x_RI = w.reshape(-1, width), x.reshape(count, width)
    if count <= FEW_ROWS:
        x_IR = jnp.concatenate(_terms(x_RI.T), axis=1)
        y_OR = jnp.einsum("OI,IR->OR", w_OI, x_IR, preferred_element_type=jnp.float32)
        y = y_OR.reshape(-1, 3, count).sum(axis=1).T
    else:
        x_RI = jnp.concatenate(_terms(x_RI))
        y_RO = jnp.einsum("RI,OI->RO", x_RI, w_OI, preferred_element_type=jnp.float32)
        y = y_RO[:count] + y_RO[count : 2 * count] + y_RO[2 * count :]
    return y.reshape(*rows, *outputs)


def _terms(x: jax.Array) -> list[jax.Array]:
    """Three bfloat16 whose sum is a float32."""
    terms = []
    for _ in range(3):
        # a conversion there and back is one that XLA may leave out
        term = lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
        terms.append(term.astype(jnp.bfloat16))
        x = x - term
    return terms


def attention_xla(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segments_BT: jax.Array,
    keep_scores: bool = False,
) -> jax.Array:
    """Causal attention within segments, block by block of queries; softmax in float32.

    A block sees only the keys up to its own end, which saves half of the products, and its scores
    are computed again in the backward pass, so that memory grows with T, not with T^2; unless they
    are kept. Heads are brought to the front once: with [B, T, heads, H] as it comes, XLA transposes
    every block's scores, which on CPU takes longer than the products.
    """
    B, T, N, H = q.shape
    K = k.shape[2]
    G = N // K
    block = max(QUERY_BLOCK, -(-T // 32))
    q_BKXH = q.reshape(B, T, K, G, H).transpose(0, 2, 1, 3, 4).reshape(B, K, T * G, H)
    k_BKTH, v_BKTH = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)

    def attend(q, k, v, segments, start):
        end = k.shape[2]
        scores = jnp.matmul(q, k.swapaxes(-1, -2), preferred_element_type=jnp.float32) * H**-0.5
        causal = jnp.arange(start, end)[:, None] >= jnp.arange(end)[None, :]
        visible = causal & (segments[:, start:end, None] == segments[:, None, :])
        bias = jnp.where(visible, 0.0, MASK_VALUE)[:, None, :, None]  # X is (query, G)
        scores = (scores.reshape(B, K, -1, G, end) + bias).reshape(scores.shape)
        # softmax, divided after the product with v: one pass less over the scores
        weights = jnp.exp(scores - lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
        total = weights.sum(axis=-1, keepdims=True)
        out = jnp.matmul(weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
        return (out / total).astype(v.dtype)

    if not keep_scores:
        attend = jax.checkpoint(attend, static_argnums=(4,))
    blocks = []
    for start in range(0, T, block):
        end = min(start + block, T)
        queries = q_BKXH[:, :, start * G : end * G]
        keys, values = k_BKTH[:, :, :end], v_BKTH[:, :, :end]
        blocks.append(attend(queries, keys, values, segments_BT[:, :end], start))
    out_BKXH = jnp.concatenate(blocks, axis=2)
    return out_BKXH.reshape(B, K, T, G, H).transpose(0, 2, 1, 3, 4).reshape(B, T, N, H)


def segment_lengths(segments_BT: jax.Array, max_segments: int) -> jax.Array:
    """Tokens of each of a row's sequences, int32 [B, max_segments]; 0 where there are fewer."""
    numbers = jnp.arange(1, max_segments + 1)
    same = segments_BT[:, None, :] == numbers[None, :, None]
    return jnp.sum(same, axis=-1, dtype=jnp.int32)


def attention_cudnn(
    q: jax.Array, k: jax.Array, v: jax.Array, segments_BT: jax.Array, max_segments: int
) -> jax.Array:
    """cuDNN's fused attention on packed rows (bf16, NVIDIA sm_80 and later)."""
    # jax.nn.dot_product_attention does not expose packed layouts; this is the layer below it.
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    lengths = segment_lengths(segments_BT, max_segments)
    offsets = jnp.pad(jnp.cumsum(lengths, axis=-1, dtype=jnp.int32), ((0, 0), (1, 0)))
    return cudnn.dot_product_attention(
        q,
        k,
        v,
        q_seqlen=lengths,
        kv_seqlen=lengths,
        q_offsets=offsets,
        kv_offsets=offsets,
        scale=q.shape[-1] ** -0.5,
        mask_type=cudnn.MaskType.PADDING_CAUSAL,
        qkv_layout="BTNH",
    )


def attention_splash(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segments_BT: jax.Array,
    *,
    interpret: bool = False,
) -> jax.Array:
    """Splash attention, Pallas's block-sparse flash attention for TPU."""
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as splash,
    )
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as mask

    B, T, N, H = q.shape
    K = k.shape[2]
    if T % 128:
        raise UserError(
            f"compute.attention=splash: rows must be a multiple of 128 tokens, this one has {T}; "
            "set --data.row_multiple to a multiple of 128"
        )
    large, small = (next(b for b in (s, s // 2, s // 4, 128) if T % b == 0) for s in (1024, 512))
    blocks = splash.BlockSizes(
        block_q=small,
        block_kv=large,
        block_kv_compute=small,
        block_q_dkv=small,
        block_kv_dkv=large,
        block_kv_dkv_compute=small,
        block_q_dq=small,
        block_kv_dq=large,
    )
    kernel = splash.make_splash_mqa_single_device(
        mask.MultiHeadMask([mask.CausalMask((T, T)) for _ in range(N // K)]),
        block_sizes=blocks,
        residual_checkpoint_name="attention_residual",
        interpret=interpret,
    )
    q_BKGTH = (q * q.shape[-1] ** -0.5).reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
    k_BKTH, v_BKTH = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    over_heads = jax.vmap(kernel, in_axes=(0, 0, 0, None))
    out = jax.vmap(over_heads)(q_BKGTH, k_BKTH, v_BKTH, splash.SegmentIds(segments_BT, segments_BT))
    return out.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


IMPLS: dict[str, dict[str, Callable[..., jax.Array]]] = {
    "rms_norm": {"xla": rms_norm},
    "rope": {"xla": rope},
    "swiglu": {"xla": swiglu},
    "linear": {"xla": linear, "bf16x3": linear_bf16x3},
    "attention": {"xla": attention_xla, "cudnn": attention_cudnn, "splash": attention_splash},
}

#: Training attention -> the platform, its name in words, dtypes, and the least CUDA compute
#: capability: cuDNN takes packed rows from Hopper on.
ATTENTION_NEEDS = {
    "cudnn": ("gpu", "NVIDIA GPU of Hopper or later", ("bfloat16",), (9, 0)),
    "splash": ("tpu", "TPU", ("bfloat16", "float32"), (0, 0)),
}


def resolve_attention(
    name: str, platform: str, dtype: str, capability: tuple[int, int] = (9, 0)
) -> str:
    """The implementation of training attention that a recipe's compute.attention stands for.

    Args:
        name: a name in `IMPLS["attention"]`, or auto: the fastest that the platform and dtype allow
        platform: of the devices: cpu, gpu or tpu
        dtype: compute dtype
        capability: CUDA compute capability of a GPU

    Raises:
        UserError: a named implementation that cannot run here.
    """
    can = {
        impl: platform == needed and dtype in dtypes and (platform != "gpu" or capability >= least)
        for impl, (needed, _, dtypes, least) in ATTENTION_NEEDS.items()
    }
    if name == "auto":
        return next((impl for impl, works in can.items() if works), "xla")
    if not can.get(name, True):
        _, words, dtypes, _ = ATTENTION_NEEDS[name]
        here = f"{platform} {'.'.join(map(str, capability))}" if platform == "gpu" else platform
        raise UserError(
            f"compute.attention={name}: needs an {words} and compute.dtype "
            f"{' or '.join(dtypes)}, this run has {here} and {dtype}; use auto"
        )
    return name


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segments_BT: jax.Array,
    *,
    impl: str,
    rules: ShardingRules,
    max_segments: int,
    keep_scores: bool = False,
) -> jax.Array:
    """Causal attention within the segments of packed rows.

    Devices that share a row exchange "a part of every sequence" for "a part of the heads", attend
    and exchange back. All of it runs under `shard_map`: left to itself, the partitioner keeps
    attention's output for the backward pass in the wrong layout and moves all layers' at every
    layer.

    Args:
        q: [B, T, N, H], laid out as ("rows", "sequence", "heads", None)
        k: [B, T, K, H]
        v: [B, T, K, H]
        segments_BT: int32, 0 for padding
        impl: a name in `IMPLS["attention"]`
        rules: the mesh
        max_segments: upper bound of the sequences in a row
        keep_scores: for the backward pass; those of fused kernels never exist

    Returns:
        [B, T, N, H] in q's layout; rows of padding are finite and mean nothing.

    Raises:
        UserError: an unknown implementation.
    """
    if impl not in IMPLS["attention"]:
        known = ", ".join(IMPLS["attention"])
        raise UserError(f"compute.attention={impl}: must be one of {known}")
    function = IMPLS["attention"][impl]
    if impl == "cudnn":
        function = functools.partial(function, max_segments=max_segments)
    if impl == "xla":
        function = functools.partial(function, keep_scores=keep_scores)

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array) -> jax.Array:
        q, k, v = (checkpoint_name(x, "qkv") for x in (q, k, v))
        out = function(q, k, v, segments)
        # the other implementations' primitives keep their own outputs
        return checkpoint_name(out, "attention_out") if impl == "xla" else out

    if rules.mesh.size == 1:
        return attend(q, k, v, segments_BT)
    axes, parts = LOGICAL_RULES["sequence"], rules.size("sequence")

    def exchange(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array) -> jax.Array:
        repeat = next(r for r in range(1, parts + 1) if k.shape[2] * r % parts == 0)
        if repeat > 1:  # fewer key/value heads than devices that share a row
            k, v = jnp.repeat(k, repeat, axis=2), jnp.repeat(v, repeat, axis=2)
        q, k, v = (lax.all_to_all(x, axes, 2, 1, tiled=True) for x in (q, k, v))
        return lax.all_to_all(attend(q, k, v, segments), axes, 1, 2, tiled=True)

    layout = rules.spec(("rows", "sequence", "heads", None))
    rows = rules.spec(("rows", None))
    exchanged = rules.shard_map(exchange, (layout, layout, layout, rows), layout)
    return exchanged(q, k, v, segments_BT)


def embed(table_VD: jax.Array, tokens_BT: jax.Array, dtype: Any, rules: ShardingRules) -> jax.Array:
    """Rows of the embedding table, in `dtype`.

    Where the table is split along D, every device looks up its columns for all tokens that its
    group holds, then columns are exchanged for tokens. The partitioner would replicate table and
    result. Gradients of the same row add up in the table's dtype.

    Args:
        table_VD: laid out as ("vocab", "embed")
        tokens_BT: int32, laid out as ("rows", "sequence")
        dtype: of the result
        rules: the mesh

    Returns:
        [B, T, D], laid out as ("rows", "sequence", None).
    """
    if rules.mesh.size == 1:
        return jnp.take(table_VD, tokens_BT, axis=0).astype(dtype)
    columns, vocabulary = LOGICAL_RULES["embed"], LOGICAL_RULES["vocab"]

    def look_up(table: jax.Array, tokens: jax.Array) -> jax.Array:
        ids = lax.all_gather(tokens, columns) - table.shape[0] * lax.axis_index(vocabulary)
        is_here = (ids >= 0) & (ids < table.shape[0])
        found = jnp.take(table, jnp.where(is_here, ids, 0), axis=0).astype(dtype)
        found = lax.psum(jnp.where(is_here[..., None], found, 0), vocabulary)
        return lax.all_to_all(found, columns, 0, 3, tiled=True)[0]

    table, tokens = rules.spec(("vocab", "embed")), rules.spec(("rows", "sequence"))
    layout = rules.spec(("rows", "sequence", None))
    return rules.shard_map(look_up, (table, tokens), layout)(table_VD, tokens_BT)
