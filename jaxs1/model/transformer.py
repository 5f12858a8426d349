"""Dense Qwen2, Qwen2.5 and Qwen3 decoders in Flax NNX.

Parameters are stored in a dtype of their own (float32 for training) and cast to the compute dtype
where they are used. Every parameter names its logical axes, which `sharding.LOGICAL_RULES` maps to
a layout. Layers are stacked along a leading axis and scanned, so that only one is compiled.

The model knows token ids only: no text, no loss, no optimizer. The letters in names are explained
in `jaxs1/model/architecture.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxs1.model import ops
from jaxs1.model.architecture import Architecture
from jaxs1.model.config import ComputeConfig, LoraConfig
from jaxs1.model.linear import LINEAR
from jaxs1.model.sharding import Axes, ShardingRules

NO_LORA = LoraConfig(rank=0)

#: Nested dictionary of arrays, or of what describes them.
Params = dict[str, Any]
#: Cosine and sine, [B, T, 1, H/2], from `rope.Rope.table`.
Rope = tuple[jax.Array, jax.Array]
#: (q_BTNH, k_BTKH, v_BTKH) -> out_BTNH. Hides segments and caches from the layers.
Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


class Adapter(nnx.Variable):
    """A parameter of an adapter. If a model has any, training changes only these."""


@dataclass(frozen=True)
class Builder:
    """Settings that all modules of a model share; creates and applies parameters.

    Args:
        architecture: shapes and constants
        param_dtype: dtype of the weights
        dtype: dtype of computation
        rules: the mesh
        lora: linear layers with adapters, and their rank
        adapter_dtype: dtype of the adapters
        linear: implementation of products with weights, a name in `LINEAR`
    """

    architecture: Architecture
    param_dtype: jnp.dtype
    dtype: jnp.dtype
    rules: ShardingRules
    lora: LoraConfig
    adapter_dtype: jnp.dtype
    linear: str

    def normal(
        self, rngs: nnx.Rngs, shape: tuple[int, ...], axes: Axes, depth: int = 1
    ) -> nnx.Param:
        """Normally distributed, with std = `initializer_range` / sqrt(`depth`)."""
        std = self.architecture.initializer_range * depth**-0.5
        value = std * jax.random.normal(rngs.params(), shape, jnp.float32)
        return nnx.Param(value.astype(self.param_dtype), logical=axes)

    def constant(self, value: float, shape: tuple[int, ...], axes: Axes) -> nnx.Param:
        """Constant, as norms (1) and biases (0) are initialised."""
        return nnx.Param(jnp.full(shape, value, self.param_dtype), logical=axes)

    def use(self, parameter: nnx.Variable) -> jax.Array:
        """A parameter in the compute dtype, gathered along its FSDP axes."""
        return self.rules.gather(parameter[...].astype(self.dtype), parameter.logical)

    def product(self, x: jax.Array, kernel: nnx.Variable, inputs: int) -> jax.Array:
        """x times a kernel; contracts the last `inputs` axes of x."""
        linear = LINEAR[self.linear]
        return linear.product(x, kernel.get_value(), inputs, kernel.logical, self.rules)

    def embed(self, table_VD: jax.Array, tokens_BT: jax.Array) -> jax.Array:
        """Rows of the embedding table in the compute dtype [B, T, D]."""
        return LINEAR[self.linear].embed(table_VD, tokens_BT, self.dtype, self.rules)


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation with a learnt scale."""

    def __init__(self, width: int, axes: Axes, *, build: Builder):
        self.scale = build.constant(1.0, (width,), axes)
        self.eps = build.architecture.rms_norm_eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalise the last axis."""
        return ops.rms_norm(x, self.scale[...], self.eps)


class LowRank(nnx.Module):
    """LoRA's x A B alpha / rank (Hu et al. 2021, section 4.1), added to that of a frozen kernel.

    W + A B is never computed. A is initialised uniformly within 1 / sqrt(inputs), as in PEFT, and B
    with 0.
    """

    def __init__(
        self, shape: tuple[int, ...], axes: Axes, *, build: Builder, rngs: nnx.Rngs, inputs: int
    ):
        rank, dtype = build.lora.rank, build.adapter_dtype
        bound = math.prod(shape[:inputs]) ** -0.5
        ends = (*shape[:inputs], rank), (rank, *shape[inputs:])
        a = jax.random.uniform(rngs.params(), ends[0], jnp.float32, -bound, bound).astype(dtype)
        self.a = Adapter(a, logical=(*axes[:inputs], None))
        self.b = Adapter(jnp.zeros(ends[1], dtype), logical=(None, *axes[inputs:]))
        self.build, self.inputs = build, inputs

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, T, inputs...] -> [B, T, outputs...]."""
        lora, product = self.build.lora, self.build.product
        return product(product(x, self.a, self.inputs) * (lora.alpha / lora.rank), self.b, 1)


class Linear(nnx.Module):
    """Contract the last axes of x with the first of the kernel; add a bias.

    Args:
        name: Hugging Face's name without "_proj", which selects the layers with adapters
        shape: shape of the kernel, inputs before outputs
        axes: logical axes of the kernel
        build: settings shared by all modules
        rngs: random number generators
        inputs: number of the kernel's axes that are contracted
        bias: whether there is a bias
        depth: number of terms in the residual sum that the output is added to
    """

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        axes: Axes,
        *,
        build: Builder,
        rngs: nnx.Rngs,
        inputs: int = 1,
        bias: bool = False,
        depth: int = 1,
    ):
        self.build, self.inputs = build, inputs
        self.kernel = build.normal(rngs, shape, axes, depth)
        self.bias = build.constant(0.0, shape[inputs:], axes[inputs:]) if bias else None
        adapted = build.lora.rank and f"{name}_proj" in build.lora.target_modules
        low_rank = partial(LowRank, build=build, rngs=rngs, inputs=inputs)
        self.adapter = low_rank(shape, axes) if adapted else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, T, inputs...] -> [B, T, outputs...]."""
        y = self.build.product(x, self.kernel, self.inputs)
        if self.adapter is not None:
            y = y + self.adapter(x)
        return y if self.bias is None else y + self.build.use(self.bias)


class Attention(nnx.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, *, build: Builder, rngs: nnx.Rngs):
        a = build.architecture
        D, N, K, H = a.hidden_size, a.num_heads, a.num_kv_heads, a.head_dim
        linear = partial(Linear, build=build, rngs=rngs)
        head = partial(linear, bias=a.qkv_bias)
        self.q = head("q", (D, N, H), ("embed", "heads", None))
        self.k = head("k", (D, K, H), ("embed", "kv_heads", None))
        self.v = head("v", (D, K, H), ("embed", "kv_heads", None))
        out = partial(linear, inputs=2, depth=2 * a.num_layers)
        self.o = out("o", (N, H, D), ("heads", None, "embed"))
        self.q_norm = RMSNorm(H, (None,), build=build) if a.qk_norm else None
        self.k_norm = RMSNorm(H, (None,), build=build) if a.qk_norm else None

    def __call__(self, x: jax.Array, rope: Rope, attend: Attend) -> jax.Array:
        """x_BTD -> [B, T, D]; `attend` contains the mask or the cache."""
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return self.o(attend(ops.rope(q, rope), ops.rope(k, rope), v))


class MLP(nnx.Module):
    """SwiGLU feed-forward block."""

    def __init__(self, *, build: Builder, rngs: nnx.Rngs):
        a = build.architecture
        D, F = a.hidden_size, a.intermediate_size
        linear = partial(Linear, build=build, rngs=rngs)
        self.gate = linear("gate", (D, F), ("embed", "mlp"))
        self.up = linear("up", (D, F), ("embed", "mlp"))
        self.down = linear("down", (F, D), ("mlp", "embed"), depth=2 * a.num_layers)

    def __call__(self, x: jax.Array) -> jax.Array:
        """x_BTD -> [B, T, D]."""
        return self.down(ops.swiglu(self.gate(x), self.up(x)))


class Layer(nnx.Module):
    """Pre-norm attention and MLP, each added to the residual stream."""

    def __init__(self, rngs: nnx.Rngs, build: Builder):
        D = build.architecture.hidden_size
        self.attn_norm = RMSNorm(D, (None,), build=build)
        self.attn = Attention(build=build, rngs=rngs)
        self.mlp_norm = RMSNorm(D, (None,), build=build)
        self.mlp = MLP(build=build, rngs=rngs)
        self.rules = build.rules

    def __call__(self, x: jax.Array, rope: Rope, attend: Attend) -> jax.Array:
        """x_BTD -> x_BTD."""
        constrain = self.rules.constrain
        x = constrain(x + self.attn(self.attn_norm(x), rope, attend), "rows", "sequence", None)
        x = checkpoint_name(x, "middle")
        return constrain(x + self.mlp(self.mlp_norm(x)), "rows", "sequence", None)


class Transformer(nnx.Module):
    """A decoder from token ids to hidden states; training computes the logits in chunks elsewhere.

    Args:
        architecture: shapes and constants
        compute: dtypes, recomputation, implementation of attention
        rules: the mesh
        rngs: random number generators for the initial weights
        max_segments: maximum number of sequences packed into a row, which cuDNN must know
        lora: linear layers with adapters, and their rank
        linear: implementation of products with weights, a name in `LINEAR`
    """

    def __init__(
        self,
        architecture: Architecture,
        compute: ComputeConfig,
        rules: ShardingRules,
        *,
        rngs: nnx.Rngs,
        max_segments: int = 64,
        lora: LoraConfig = NO_LORA,
        linear: str = "xla",
    ):
        a, trained_dtype = architecture, jnp.dtype(compute.param_dtype)
        param_dtype = jnp.dtype(lora.frozen_dtype) if lora.rank else trained_dtype
        dtype = jnp.dtype(compute.dtype)
        build = Builder(a, param_dtype, dtype, rules, lora, trained_dtype, linear)
        self.architecture, self.compute, self.rules = a, compute, rules
        self.build, self.max_segments = build, max_segments
        V, D = a.vocab_size, a.hidden_size
        self.embedding = build.normal(rngs, (V, D), ("vocab", "embed"))
        self.layers = nnx.vmap(Layer, in_axes=(0, None))(rngs.split(a.num_layers), build)
        self.final_norm = RMSNorm(D, (None,), build=build)
        if not a.tie_word_embeddings:
            self.lm_head = build.normal(rngs, (D, V), ("embed", "vocab"))

    def __call__(
        self, tokens_BT: jax.Array, positions_BT: jax.Array, segments_BT: jax.Array
    ) -> jax.Array:
        """Run packed rows.

        Args:
            tokens_BT: int32 ids
            positions_BT: int32, from 0 in every sequence
            segments_BT: int32, from 1 in every row; 0 is padding

        Returns:
            hidden_BTD after the final norm, in the compute dtype.
        """
        a = self.architecture
        x = self.build.embed(self.embedding[...], tokens_BT)
        x = self.rules.constrain(x, "rows", "sequence", None)
        rope = a.rope.table(positions_BT[..., None], a.head_dim)
        attend = partial(self._attend, segments_BT=segments_BT)
        graph, stacked = nnx.split(self.layers)

        def step(x: jax.Array, weights: nnx.State) -> tuple[jax.Array, None]:
            return nnx.merge(graph, weights)(x, rope, attend), None

        if self.compute.remat != "none":
            policy = REMAT_POLICIES[self.compute.remat]
            step = jax.checkpoint(step, policy=policy, prevent_cse=False)
        x, _ = lax.scan(step, x, stacked, unroll=not self.compute.scan_layers)
        return self.final_norm(x)

    def head(self) -> jax.Array:
        """The output matrix [D, V] in the compute dtype, gathered along its FSDP axes."""
        if self.architecture.tie_word_embeddings:
            return self.build.use(self.embedding).T
        return self.build.use(self.lm_head)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """hidden [..., D] -> float32 logits [..., V]."""
        return jnp.matmul(hidden, self.head(), preferred_element_type=jnp.float32)

    def _attend(
        self, q: jax.Array, k: jax.Array, v: jax.Array, *, segments_BT: jax.Array
    ) -> jax.Array:
        return ops.attention(
            q,
            k,
            v,
            segments_BT,
            impl=self.compute.attention,
            rules=self.rules,
            max_segments=self.max_segments,
            keep_scores=self.compute.remat == "none",
        )


def _saveable_attention(prim: Any, *args: Any, **params: Any) -> Any:
    """Keep q, k, v, attention's output and the residual stream after it; recompute the rest.

    cuDNN's forward primitive returns its output and statistics, which are kept here. Naming its
    output as well would store it twice (21.5 GB at 16 x 32k tokens of the 32B).
    """
    if "dot_product_attention_fwd" in prim.name:
        return True
    names = ("qkv", "attention_out", "attention_residual", "middle")
    return jax.checkpoint_policies.save_only_these_names(*names)(prim, *args, **params)


#: What is kept for the backward pass instead of recomputed, by a recipe's compute.remat.
REMAT_POLICIES: dict[str, Callable[..., Any]] = {
    "attention": _saveable_attention,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def abstract(
    architecture: Architecture, compute: ComputeConfig, rules: ShardingRules, **options: Any
) -> Transformer:
    """A model with shapes in place of weights: for layouts, conversion and restoring."""
    return nnx.eval_shape(
        lambda: Transformer(architecture, compute, rules, rngs=nnx.Rngs(0), **options)
    )


#: A kind of variables of a model: `nnx.Param` for weights, or `Adapter`.
Kind = type[nnx.Variable]


def trained(model: Transformer) -> Kind:
    """The kind of variables that training changes: adapters if there are any, else weights."""
    return Adapter if model.build.lora.rank else nnx.Param


def parameters(model: Transformer, kind: Kind = nnx.Param) -> Params:
    """The weights as a nested dictionary of arrays: the form in which they are passed around."""
    return nnx.to_pure_dict(nnx.state(model, kind))


def with_parameters(model: Transformer, *params: Params) -> Transformer:
    """The model with these weights and, if it has any, adapters.

    Pure; usable under `jit` and `grad`.
    """
    graph, state = nnx.split(model)
    state = jax.tree.map(lambda x: x, state)
    for tree in params:
        nnx.replace_by_pure_dict(state, tree)
    return nnx.merge(graph, state)


def logical_axes(model: Transformer, kind: Kind = nnx.Param) -> Params:
    """The logical axes of every parameter, as a tree like `parameters(model, kind)`."""

    def axes(path: tuple[Any, ...], parameter: nnx.Variable) -> Axes:
        stacked = path[0] == "layers"
        return (None, *parameter.logical) if stacked else parameter.logical

    state = nnx.state(model, kind)
    leaves = {path: axes(path, leaf) for path, leaf in nnx.to_flat_state(state)}
    return nnx.traversals.unflatten_mapping(leaves)


def shardings(model: Transformer, kind: Kind = nnx.Param) -> Params:
    """The sharding of every parameter, as a tree like `parameters(model, kind)`."""
    return jax.tree.map(
        model.rules.sharding, logical_axes(model, kind), is_leaf=lambda x: isinstance(x, tuple)
    )
