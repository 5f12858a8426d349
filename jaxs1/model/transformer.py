"""The decoder of all families in Flax NNX: dense, or with a mixture of experts.

Layers are stacked along a leading axis and scanned, so that only one is compiled. What they are
made of is in `jaxs1/model/modules.py`.

The model knows token ids only: no text, no loss, no optimizer. The letters in names are explained
in `jaxs1/model/architecture.py`.
"""

from __future__ import annotations

from collections.abc import Callable
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
from jaxs1.model.experts import Experts, Load, load_balancing_loss
from jaxs1.model.modules import Adapter, Builder, Linear, RMSNorm
from jaxs1.model.sharding import Axes, ShardingRules

NO_LORA = LoraConfig(rank=0)

#: Nested dictionary of arrays, or of what describes them.
Params = dict[str, Any]
#: Cosine and sine, [B, T, 1, H/2], from `rope.Rope.table`.
Rope = tuple[jax.Array, jax.Array]
#: (q_BTNH, k_BTKH, v_BTKH) -> out_BTNH. Hides segments and caches from the layers.
Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


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
        block: Any = MLP if build.architecture.experts is None else Experts
        self.mlp = block(build=build, rngs=rngs)
        self.rules = build.rules

    def __call__(
        self, x: jax.Array, rope: Rope, attend: Attend, real_BT: jax.Array
    ) -> tuple[jax.Array, Load | None]:
        """x_BTD -> x_BTD, and the load of its experts if it has any; `real_BT`: no padding."""
        constrain = self.rules.constrain
        x = constrain(x + self.attn(self.attn_norm(x), rope, attend), "rows", "sequence", None)
        x = checkpoint_name(x, "middle")
        y, load = self.mlp_norm(x), None
        if isinstance(self.mlp, Experts):
            y, load = self.mlp(y, real_BT)
        else:
            y = self.mlp(y)
        return constrain(x + y, "rows", "sequence", None), load


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
        return self.hidden_and_router_loss(tokens_BT, positions_BT, segments_BT)[0]

    def hidden_and_router_loss(
        self, tokens_BT: jax.Array, positions_BT: jax.Array, segments_BT: jax.Array
    ) -> tuple[jax.Array, jax.Array | None]:
        """`__call__`, and the load-balancing loss, float32 []; None where there are no experts."""
        a, real_BT = self.architecture, segments_BT != 0
        x = self.build.embed(self.embedding[...], tokens_BT)
        x = self.rules.constrain(x, "rows", "sequence", None)
        rope = a.rope.table(positions_BT[..., None], a.head_dim)
        attend = partial(self._attend, segments_BT=segments_BT)
        graph, stacked = nnx.split(self.layers)

        def step(x: jax.Array, weights: nnx.State) -> tuple[jax.Array, Load | None]:
            return nnx.merge(graph, weights)(x, rope, attend, real_BT)

        if self.compute.remat != "none":
            policy = REMAT_POLICIES[self.compute.remat]
            step = jax.checkpoint(step, policy=policy, prevent_cse=False)
        x, load_LE = lax.scan(step, x, stacked, unroll=not self.compute.scan_layers)
        router_loss = None if load_LE is None else load_balancing_loss(load_LE, jnp.sum(real_BT))
        return self.final_norm(x), router_loss

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
