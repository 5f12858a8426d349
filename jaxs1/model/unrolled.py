"""The model as decoding runs it: layer after layer over a KV cache, any number of new tokens.

Training scans over stacked weights. A scan that decodes would copy every layer's weights in every
step, so here each layer has arrays of its own (`unstack`). The layers themselves are those of
`jaxs1.model.qwen`; `IMPLS` holds other ways to compute one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxs1.config import UserError
from jaxs1.model import kv_cache, ops, qwen
from jaxs1.model.architecture import Architecture
from jaxs1.model.kv_cache import KVCache
from jaxs1.model.qwen import Qwen
from jaxs1.model.sharding import Partition

#: Parameters with `layers` as a list of one tree a layer.
Params = dict[str, Any]
#: (weights, x_BTD, k_pages, v_pages) -> (x_BTD, k_pages, v_pages)
Layer = Callable[..., Any]


def unstack(params: Params, layouts: Params) -> Params:
    """Arrays of their own for every layer. The stacked ones are deleted one after another.

    Args:
        params: as `qwen.parameters` gives them
        layouts: from `shardings`
    """

    def split(array: jax.Array, *places: Any) -> list[jax.Array]:
        parts = jax.block_until_ready(jax.jit(list, out_shardings=list(places))(array))
        array.delete()
        return parts

    lists = jax.tree.map(split, params["layers"], *layouts["layers"])
    layers = [_each(lists, i) for i in range(len(layouts["layers"]))]
    return {**params, "layers": layers}


def narrow(model: Qwen, params: Params) -> Params:
    """Kernels with outputs before inputs, as `ops.linear_narrow` takes them.

    Args:
        model: abstract
        params: from `unstack`; the arrays are deleted one after another
    """

    def turn(array: jax.Array, inputs: int) -> jax.Array:
        axes = (*range(inputs, array.ndim), *range(inputs))
        turned = jax.block_until_ready(jax.jit(partial(jnp.transpose, axes=axes))(array))
        array.delete()
        return turned

    for path, module in nnx.iter_modules(model.layers):
        if isinstance(module, qwen.Linear):
            for weights in params["layers"]:
                for name in path:
                    weights = weights[name]
                weights["kernel"] = turn(weights["kernel"], module.inputs)
    if not model.architecture.tie_word_embeddings:
        params["lm_head"] = turn(params["lm_head"], 1)
    return params


def shardings(model: Qwen) -> Params:
    """Where each parameter lives, as a tree like that of `unstack`."""
    whole = qwen.shardings(model)
    layer = jax.tree.map(lambda s: NamedSharding(s.mesh, P(*s.spec[1:])), whole["layers"])
    return {**whole, "layers": [layer] * model.architecture.num_layers}


def forward(
    model: Qwen,
    params: Params,
    cache: KVCache,
    tokens_BT: jax.Array,
    positions_BT: jax.Array,
    table_BM: jax.Array,
    *,
    impl: str = "xla",
) -> tuple[jax.Array, KVCache]:
    """Run new tokens of some sequences; their keys and values enter the cache.

    A model that was built with `linear="narrow"` takes parameters from `narrow`.

    Args:
        model: abstract
        params: from `unstack`
        cache: keys and values of what came before
        tokens_BT: int32 ids
        positions_BT: int32, from 0 in each sequence; kv_cache.PADDING where there is no token
        table_BM: int32, pages of each sequence; enough for the largest position
        impl: a name in `IMPLS`; triton and pallas take one token of each sequence

    Returns:
        x_BTD before the final norm, and the cache.
    """
    a = model.architecture
    x = _embed(model, params["embedding"], tokens_BT)
    layer = IMPLS[impl].layer(model, positions_BT, table_BM)
    k_pages, v_pages = list(cache.k), list(cache.v)
    for i in range(a.num_layers):
        x, k_pages[i], v_pages[i] = layer(params["layers"][i], x, k_pages[i], v_pages[i])
    return x, KVCache(k_pages, v_pages)


def logits(model: Qwen, params: Params, x_BD: jax.Array, *, impl: str = "xla") -> jax.Array:
    """Float32 logits [B, V] from the last layer's output."""
    return IMPLS[impl].logits(model, params, x_BD)


def _embed(model: Qwen, table_VD: jax.Array, tokens_BT: jax.Array) -> jax.Array:
    """Rows of the table; of a narrow model as integers, or XLA on CPU widens the whole table."""
    if model.build.linear != "narrow":
        return ops.embed(table_VD, tokens_BT, model.build.dtype, model.partition)
    # bound to the tokens, the table is not turned into integers once for all steps, by a copy
    table_VD, tokens_BT = lax.optimization_barrier((table_VD, tokens_BT))
    rows = jnp.take(lax.bitcast_convert_type(table_VD, jnp.uint16), tokens_BT, axis=0)
    return lax.bitcast_convert_type(rows, jnp.bfloat16).astype(model.build.dtype)


def paged_attention(
    q_BTNH: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    table_BM: jax.Array,
    positions_BT: jax.Array,
) -> jax.Array:
    """Causal attention of new tokens to all that their sequences hold; softmax in float32.

    Heads of keys come first, as in the cache, so that the products are batched over leading axes
    and nothing is transposed.
    """
    B, T, N, H = q_BTNH.shape
    K = k_pages.shape[0]
    G, X = N // K, table_BM.shape[1] * kv_cache.PAGE
    q = q_BTNH.reshape(B, T, K, G, H).transpose(2, 0, 1, 3, 4).reshape(K, B, T * G, H)
    k, v = (pages[:, table_BM].reshape(K, B, X, H) for pages in (k_pages, v_pages))
    scores = jnp.einsum("KBQH,KBXH->KBQX", q, k, preferred_element_type=jnp.float32) * H**-0.5
    visible_BTX = jnp.arange(X) <= positions_BT[:, :, None]
    scores = jnp.where(jnp.repeat(visible_BTX, G, axis=1), scores, ops.HIDDEN)
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    total = weights.sum(axis=-1, keepdims=True)
    # slots behind the newest token may hold anything, and zero times anything must be zero
    held_BX = (jnp.arange(X) <= positions_BT.max(axis=1, keepdims=True))[..., None]
    v = jnp.where(held_BX, v, 0)
    out = jnp.einsum("KBQX,KBXH->KBQH", weights.astype(v.dtype), v,
                     preferred_element_type=jnp.float32)  # fmt: skip
    out = (out / total).astype(q_BTNH.dtype)
    return out.reshape(K, B, T, G, H).transpose(1, 2, 0, 3, 4).reshape(B, T, N, H)


def pallas_attention(
    q_BTNH: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    table_BM: jax.Array,
    positions_BT: jax.Array,
) -> jax.Array:
    """As `paged_attention` for one new token a sequence: Pallas's kernel for TPU."""
    from jax.experimental.pallas.ops.tpu.paged_attention import paged_attention as kernel

    H = q_BTNH.shape[-1]
    lanes = ((0, 0),) * 3 + ((0, -H % 128),)  # the kernel takes heads of whole 128-lane registers
    q_BNH = (q_BTNH * H**-0.5).astype(q_BTNH.dtype)[:, 0]
    out = kernel(
        jnp.pad(q_BNH, lanes[1:]),
        jnp.pad(k_pages, lanes),
        jnp.pad(v_pages, lanes),
        positions_BT[:, 0] + 1,
        table_BM,
        pages_per_compute_block=math.gcd(8, table_BM.shape[1]),
    )
    return out[:, None, :, :H]


def _pallas_layer(model: Qwen, positions_BT: jax.Array, table_BM: jax.Array) -> Layer:
    """`_layer` with Pallas's attention, every device for its own heads."""
    spec = model.partition.spec
    heads, pages = spec((None, None, "heads", None)), spec(kv_cache.AXES)
    specs = (heads, pages, pages, P(), P())
    attention = model.partition.on_parts(pallas_attention, specs, heads)
    return _layer(attention, kv_cache.append_one, model, positions_BT, table_BM)


def _layer(
    attention: Any, append: Any, model: Qwen, positions_BT: jax.Array, table_BM: jax.Array
) -> Layer:
    """The training model's own layer, with an `attend` that goes through the cache."""
    a = model.architecture
    rope = ops.rope_table(positions_BT, a.head_dim, a.rope_theta)
    graph, shapes = nnx.split(model.layers)

    def layer(weights: Params, x: jax.Array, k_pages: jax.Array, v_pages: jax.Array) -> Any:
        def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            nonlocal k_pages, v_pages
            k_pages = append(k_pages, k, table_BM, positions_BT)
            v_pages = append(v_pages, v, table_BM, positions_BT)
            return attention(q, k_pages, v_pages, table_BM, positions_BT)

        state = jax.tree.map(lambda leaf: leaf, shapes)
        nnx.replace_by_pure_dict(state, weights)
        x = nnx.merge(graph, state)(x, rope, attend)
        return x, k_pages, v_pages

    return layer


def _logits(model: Qwen, params: Params, x_BD: jax.Array) -> jax.Array:
    a, dtype = model.architecture, model.build.dtype
    hidden = ops.rms_norm(x_BD, params["final_norm"]["scale"], a.rms_norm_eps)
    if a.tie_word_embeddings:
        weight = params["embedding"].astype(dtype)
        return jnp.einsum("BD,VD->BV", hidden, weight, preferred_element_type=jnp.float32)
    head = params["lm_head"].astype(dtype)
    return jnp.matmul(hidden, head, preferred_element_type=jnp.float32)


def _narrow_logits(model: Qwen, params: Params, x_BD: jax.Array) -> jax.Array:
    a = model.architecture
    hidden = ops.rms_norm(x_BD, params["final_norm"]["scale"], a.rms_norm_eps)
    head_VD = params["embedding" if a.tie_word_embeddings else "lm_head"]
    return ops.linear_narrow(hidden, head_VD, 1)


def _check_narrow(a: Architecture, partition: Partition, dtype: str, sequences: int) -> None:
    if partition.mesh.size > 1:
        raise ValueError(f"{partition.mesh.size} devices share the model: it runs on one")
    if dtype != "float32":
        raise ValueError(f"dtype={dtype}: it computes float32 with weights in bfloat16")


def _triton_layer(kernel: str, model: Qwen, positions_BT: jax.Array, table_BM: jax.Array) -> Layer:
    """Five Triton kernels a layer, for one new token a sequence."""
    from kernels import decode

    a, partition = model.architecture, model.partition
    function = partial(
        getattr(decode, kernel),
        eps=a.rms_norm_eps,
        theta=a.rope_theta,
        axis_name="tensor" if partition.mesh.size > 1 else None,
        compute_capability=_capability(partition),
    )
    weights = jax.tree.map(lambda s: s.spec, shardings(model)["layers"][0])
    pages = partition.spec(kv_cache.AXES)
    specs = (weights, P(), P(), pages, pages, P())
    run = partition.on_parts(function, specs, (P(), pages, pages))

    def layer(weights: Params, x: jax.Array, k_pages: jax.Array, v_pages: jax.Array) -> Any:
        x_BD, *pages = run(weights, x[:, 0], positions_BT[:, 0], k_pages, v_pages, table_BM)
        return x_BD[:, None], *pages

    return layer


def _triton_logits(kernel: str, model: Qwen, params: Params, x_BD: jax.Array) -> jax.Array:
    from kernels import decode

    a, partition = model.architecture, model.partition
    tied = a.tie_word_embeddings
    function = partial(
        getattr(decode, kernel),
        eps=a.rms_norm_eps,
        tied=tied,
        compute_capability=_capability(partition),
    )
    head = partition.spec(("vocab", "embed") if tied else ("embed", "vocab"))
    run = partition.on_parts(function, (P(), P(), head), partition.spec((None, "vocab")))
    return run(x_BD, params["final_norm"]["scale"], params["embedding" if tied else "lm_head"])


def _capability(partition: Partition) -> int | None:
    """Of the GPUs of a mesh, which need not be here, e.g. 90; None where they are none."""
    text = getattr(partition.mesh.devices.flat[0], "compute_capability", None)
    return None if text is None else int(str(text).replace(".", ""))


def _check_triton(a: Architecture, partition: Partition, dtype: str, sequences: int) -> None:
    capability, parts = _capability(partition), partition.mesh.size
    if capability is None:
        platform = partition.mesh.devices.flat[0].platform
        raise ValueError(f"device={platform}: Triton kernels run on NVIDIA GPUs")
    try:
        from kernels import decode
    except ImportError as error:
        raise ValueError(f"{error}: pip install 'jaxs1[cuda]'") from None
    decode.check(
        batch=sequences,
        width=a.hidden_size,
        mlp=a.intermediate_size // parts,
        heads=a.num_heads // parts,
        kv_heads=a.num_kv_heads // parts,
        head_dim=a.head_dim,
        page=kv_cache.PAGE,
        dtype=dtype,
        compute_capability=capability,
    )


def _check_pallas(a: Architecture, partition: Partition, dtype: str, sequences: int) -> None:
    platform = partition.mesh.devices.flat[0].platform
    if platform != "tpu":
        raise ValueError(f"device={platform}: Pallas's kernel of paged attention runs on TPUs")


def _one_graph() -> dict[str, str | bool]:
    """The whole loop as one CUDA graph, its condition too: no step waits for the host."""
    from kernels.xla_call import CUDA_GRAPH_OPTIONS

    return CUDA_GRAPH_OPTIONS


class Impl(NamedTuple):
    """How a step is computed.

    layer: (model, positions, table) -> Layer
    logits: (model, params, x_BD) -> logits
    check: (architecture, partition, dtype, sequences) -> ValueError where it cannot run
    options: of XLA, for the program around it
    linear: the model's implementation of products, see `qwen.Qwen`
    """

    layer: Callable[[Qwen, jax.Array, jax.Array], Layer]
    logits: Callable[[Qwen, Params, jax.Array], jax.Array]
    check: Callable[[Architecture, Partition, str, int], None] = lambda *_: None
    options: Callable[[], dict[str, str | bool]] = dict
    linear: str = "xla"


_xla_layer = partial(_layer, paged_attention, kv_cache.append)

#: "xla" is the reference. Only layers with its attention take several new tokens of a sequence.
IMPLS: dict[str, Impl] = {
    "xla": Impl(_xla_layer, _logits),
    "narrow": Impl(_xla_layer, _narrow_logits, _check_narrow, linear="narrow"),
    "pallas": Impl(_pallas_layer, _logits, _check_pallas),
    "triton": Impl(
        partial(_triton_layer, "layer"),
        partial(_triton_logits, "logits"),
        _check_triton,
        _one_graph,
    ),
    # for tests: the same kernels on a CPU, slowly
    "triton-interpreted": Impl(
        partial(_triton_layer, "layer_interpreted"), partial(_triton_logits, "logits_interpreted")
    ),
}


def check(impl: str, a: Architecture, partition: Partition, *, dtype: str, sequences: int) -> None:
    """Whether a step can be computed so, before anything is loaded or compiled.

    Args:
        impl: a name in `IMPLS`
        a: the model
        partition: devices, which need not be here
        dtype: of computation and cache
        sequences: decoded at the same time, at most

    Raises:
        UserError: what is not supported, and what is.
    """
    try:
        IMPLS[impl].check(a, partition, dtype, sequences)
    except ValueError as error:
        raise UserError(f"impl={impl}: cannot run here ({error}); give --impl xla") from None


def _each(lists: Any, i: int) -> Any:
    """Layer i of a tree of lists."""
    return jax.tree.map(lambda parts: parts[i], lists, is_leaf=lambda x: isinstance(x, list))
