"""Norms, rotary embedding, attention of training; `IMPLS` lists what has several implementations.

"xla" is the reference and the oracle of the others. An explicitly chosen implementation either runs
or fails with the reason; there is no silent fallback.

Arrays: q_BTNH, k_BTKH, v_BTKH, segments_BT (0 is padding; sequences of a row count from 1).
Legend of the letters: `jaxs1/model/architecture.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxs1.config import UserError
from jaxs1.model.linear import LINEAR
from jaxs1.model.sharding import LOGICAL_RULES, ShardingRules

#: Added to the score of a key that a query must not see.
MASK_VALUE = -1e30
#: Minimum number of queries per block of the XLA attention.
QUERY_BLOCK = 128


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """x / sqrt(mean(x^2) + eps) * scale over the last axis, computed in float32, in x's dtype."""
    x_f32 = x.astype(jnp.float32)
    normed = x_f32 * lax.rsqrt(jnp.mean(x_f32 * x_f32, axis=-1, keepdims=True) + eps)
    return (normed * scale.astype(jnp.float32)).astype(x.dtype)


def rope(x_BTNH: jax.Array, table: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotate the two halves of every head by its position, in float32."""
    cos, sin = table
    a, b = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BTNH.dtype)


def swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    """silu(gate) * up, with the non-linearity in float32."""
    return jax.nn.silu(gate.astype(jnp.float32)).astype(up.dtype) * up


def attention_xla(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segments_BT: jax.Array,
    keep_scores: bool = False,
) -> jax.Array:
    """Causal attention within segments, in blocks of queries; softmax in float32.

    A block reads only the keys up to its own end, which saves half of the products. Unless
    `keep_scores`, its scores are recomputed in the backward pass, so memory grows with T instead of
    T^2. Heads are moved to the front once: with [B, T, heads, H], XLA transposes the scores of
    every block, which on CPU takes longer than the products.
    """
    B, T, N, H = q.shape
    K = k.shape[2]
    G = N // K
    block = max(QUERY_BLOCK, -(-T // 32))
    q_BKXH = q.reshape(B, T, K, G, H).transpose(0, 2, 1, 3, 4).reshape(B, K, T * G, H)
    k_BKTH, v_BKTH = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)

    def attend(
        q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, start: int
    ) -> jax.Array:
        end = k.shape[2]
        scores = jnp.matmul(q, k.swapaxes(-1, -2), preferred_element_type=jnp.float32) * H**-0.5
        causal = jnp.arange(start, end)[:, None] >= jnp.arange(end)[None, :]
        visible = causal & (segments[:, start:end, None] == segments[:, None, :])
        bias = jnp.where(visible, 0.0, MASK_VALUE)[:, None, :, None]  # X is (query, G)
        scores = (scores.reshape(B, K, -1, G, end) + bias).reshape(scores.shape)
        # softmax, normalised after the product with v: one pass less over the scores
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
    out = out_BKXH.reshape(B, K, T, G, H).transpose(0, 2, 1, 3, 4).reshape(B, T, N, H)
    # for rematerialisation; the primitives of the other implementations name their own outputs
    return checkpoint_name(out, "attention_out")


def segment_lengths(segments_BT: jax.Array, max_segments: int) -> jax.Array:
    """Number of tokens of each sequence of a row, int32 [B, max_segments]; 0 for absent ones."""
    numbers = jnp.arange(1, max_segments + 1)
    same = segments_BT[:, None, :] == numbers[None, :, None]
    return jnp.sum(same, axis=-1, dtype=jnp.int32)


def attention_cudnn(
    q: jax.Array, k: jax.Array, v: jax.Array, segments_BT: jax.Array, max_segments: int
) -> jax.Array:
    """cuDNN's fused attention on packed rows (bf16, NVIDIA sm_80 and later)."""
    # jax.nn.dot_product_attention does not expose packed layouts; this is the function below it
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
    """Splash attention: Pallas's block-sparse flash attention for TPU."""
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as splash,
    )
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as mask

    B, T, N, H = q.shape
    K = k.shape[2]
    if T % 128:
        raise UserError(
            f"compute.attention=splash: row length {T} must be a multiple of 128; "
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


ATTENTION: dict[str, Callable[..., jax.Array]] = {
    "xla": attention_xla,
    "cudnn": attention_cudnn,
    "splash": attention_splash,
}

#: Operators with several implementations, by operator and name: `LINEAR` is chosen by the model's
#: `linear`, attention by a recipe's compute.attention.
IMPLS: dict[str, dict[str, Any]] = {"linear": LINEAR, "attention": ATTENTION}


class Requirements(NamedTuple):
    """What an implementation of attention runs on.

    Args:
        platform: platform of the devices
        device: human-readable name of such devices
        dtypes: compute dtypes
        capability: minimum CUDA compute capability, e.g. 90
    """

    platform: str
    device: str
    dtypes: tuple[str, ...]
    capability: int = 0

    def met_by(self, platform: str, dtype: str, capability: int | None) -> bool:
        """Whether a device of this platform and capability computes in this dtype."""
        return (
            platform == self.platform
            and dtype in self.dtypes
            and (capability or 0) >= self.capability
        )


#: Requirements of implementations of attention, the fastest first; cuDNN supports packed rows on
#: Hopper and later.
REQUIREMENTS = {
    "cudnn": Requirements("gpu", "NVIDIA GPU of Hopper or later", ("bfloat16",), 90),
    "splash": Requirements("tpu", "TPU", ("bfloat16", "float32")),
}


def resolve_attention(name: str, platform: str, dtype: str, capability: int | None) -> str:
    """The implementation of attention that a recipe's compute.attention selects.

    Args:
        name: a name in `ATTENTION`, or auto: the fastest that the platform and dtype support
        platform: platform of the devices: cpu, gpu or tpu
        dtype: compute dtype
        capability: CUDA compute capability, e.g. 90; None if the devices are not NVIDIA GPUs

    Raises:
        UserError: the chosen implementation cannot run on these devices.
    """
    if name == "auto":
        met = (n for n, r in REQUIREMENTS.items() if r.met_by(platform, dtype, capability))
        return next(met, "xla")
    required = REQUIREMENTS.get(name)
    if required is not None and not required.met_by(platform, dtype, capability):
        version = "" if capability is None else f" {capability / 10}"
        raise UserError(
            f"compute.attention={name}: needs an {required.device} and compute.dtype "
            f"{' or '.join(required.dtypes)}, this run has {platform}{version} and {dtype}; "
            "use auto"
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

    Devices that share a row exchange parts of every sequence for parts of the heads, attend and
    exchange back. All of it runs under `shard_map`: on its own, XLA's partitioner keeps the output
    for the backward pass in the wrong layout and moves that of all layers at every layer.

    Args:
        q: [B, T, N, H], laid out as ("rows", "sequence", "heads", None)
        k: [B, T, K, H]
        v: [B, T, K, H]
        segments_BT: int32, 0 for padding
        impl: a name in `ATTENTION`
        rules: the mesh
        max_segments: maximum number of sequences in a row
        keep_scores: keep the scores for the backward pass; fused kernels never store them

    Returns:
        [B, T, N, H] in the layout of q; values at padding are finite and arbitrary.

    Raises:
        UserError: an unknown implementation.
    """
    if impl not in ATTENTION:
        raise UserError(f"compute.attention={impl}: must be one of {', '.join(ATTENTION)}")
    options: dict[str, dict[str, Any]] = {
        "xla": {"keep_scores": keep_scores},
        "cudnn": {"max_segments": max_segments},
    }
    function = functools.partial(ATTENTION[impl], **options.get(impl, {}))

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array) -> jax.Array:
        q, k, v = (checkpoint_name(x, "qkv") for x in (q, k, v))
        return function(q, k, v, segments)

    if rules.mesh.size == 1:
        return attend(q, k, v, segments_BT)
    axes, parts = LOGICAL_RULES["sequence"], rules.size("sequence")

    def exchange(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array) -> jax.Array:
        repeat = next(r for r in range(1, parts + 1) if k.shape[2] * r % parts == 0)
        if repeat > 1:  # the key/value heads are fewer than the devices that share a row
            k, v = jnp.repeat(k, repeat, axis=2), jnp.repeat(v, repeat, axis=2)
        q, k, v = (lax.all_to_all(x, axes, 2, 1, tiled=True) for x in (q, k, v))
        return lax.all_to_all(attend(q, k, v, segments), axes, 1, 2, tiled=True)

    layout = rules.spec(("rows", "sequence", "heads", None))
    rows = rules.spec(("rows", None))
    exchanged = rules.shard_map(exchange, (layout, layout, layout, rows), layout)
    return exchanged(q, k, v, segments_BT)
