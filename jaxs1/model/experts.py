"""Mixture of experts as in Qwen3 MoE: a router chooses J of E feed-forward blocks for each token.

No token is dropped. `jax.lax.ragged_dot`, the usual product over sorted tokens, is native to TPUs
only: elsewhere, JAX 0.10 multiplies every choice with every expert (of the 30B-A3B, 128 times the
products, and 34 GB of temporaries for 8,192 tokens, as compiled for an H100). So `expert_mlps`
sorts the tokens and runs over blocks of one expert's tokens; their number depends on the choices.

Letters: `jaxs1/model/architecture.py`; C tokens of a block, R = T J choices of all tokens.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from jaxs1.config import UserError
from jaxs1.model import ops
from jaxs1.model.linear import LINEAR
from jaxs1.model.modules import Builder, Linear
from jaxs1.model.sharding import LOGICAL_RULES

#: Smallest and largest number of tokens of a block. Larger products are faster, smaller blocks have
#: less padding.
BLOCK = (8, 4096)
#: Logical axes of an expert's choices and tokens.
_TOKENS = ("rows", "sequence", None)

#: Linear maps that experts have; they take no adapters.
_OF_EXPERTS = frozenset(("gate_proj", "up_proj", "down_proj"))

#: Kernels of the experts: gate [E, D, F], up [E, D, F], down [E, F, D].
Kernels = tuple[jax.Array, jax.Array, jax.Array]


class Load(NamedTuple):
    """How a layer's router distributes tokens, without padding; float32 [E].

    Args:
        chosen: number of tokens that chose each expert
        probability: sum of each expert's probabilities
    """

    chosen: jax.Array
    probability: jax.Array


def load_balancing_loss(load: Load, num_tokens: jax.Array) -> jax.Array:
    """transformers' `load_balancing_loss_func`: 1 x J where all experts are equally loaded.

    Args:
        load: of all layers, [L, E]
        num_tokens: number of tokens without padding
    """
    layers, experts = load.chosen.shape
    rows = jnp.maximum(layers * num_tokens, 1)
    chosen_E, probability_E = load.chosen.sum(0) / rows, load.probability.sum(0) / rows
    return experts * jnp.sum(chosen_E * probability_E)


def route(logits_BTE: jax.Array, *, per_token: int, renormalise: bool) -> tuple[jax.Array, ...]:
    """The experts of each token.

    Args:
        logits_BTE: of the router
        per_token: J
        renormalise: whether the weights of a token's experts sum to 1

    Returns:
        Weights [B, T, J] in the dtype of the logits, int32 experts [B, T, J], float32 probabilities
        [B, T, E].
    """
    probability_BTE = jax.nn.softmax(logits_BTE.astype(jnp.float32), axis=-1)
    weights_BTJ, experts_BTJ = lax.top_k(probability_BTE, per_token)
    if renormalise:
        weights_BTJ = weights_BTJ / weights_BTJ.sum(axis=-1, keepdims=True)
    return weights_BTJ.astype(logits_BTE.dtype), experts_BTJ, probability_BTE


class Experts(nnx.Module):
    """Router and experts, in the place of a layer's MLP.

    The experts are divided over the mesh axis `expert`, whose devices have different rows: each
    gathers the rows of all, computes what its experts contribute, and the contributions are summed
    and scattered back.
    """

    def __init__(self, *, build: Builder, rngs: nnx.Rngs):
        a = build.architecture
        assert a.experts is not None
        if build.lora.rank and not _OF_EXPERTS.isdisjoint(build.lora.target_modules):
            raise UserError(
                "lora.target_modules: adapters on experts are not supported; give "
                '["q_proj", "k_proj", "v_proj", "o_proj"]'
            )
        if LINEAR[build.linear].quantized:
            raise UserError("weights=int8: experts cannot be quantized; give --weights auto")
        self.build, self.spec = build, a.experts
        D, F, E = a.hidden_size, a.experts.width, a.experts.count
        self.router = Linear("router", (D, E), ("embed", None), build=build, rngs=rngs)
        into, out = ("experts", None, "mlp"), ("experts", "mlp", None)
        self.gate = build.normal(rngs, (E, D, F), into)
        self.up = build.normal(rngs, (E, D, F), into)
        self.down = build.normal(rngs, (E, F, D), out, depth=2 * a.num_layers)

    def __call__(self, x: jax.Array, real_BT: jax.Array) -> tuple[jax.Array, Load]:
        """x_BTD -> [B, T, D], and the load. Padding, where `real_BT` is false, has no experts."""
        rules, spec = self.build.rules, self.spec
        tokens = rules.spec(_TOKENS)
        choose = partial(route, per_token=spec.per_token, renormalise=spec.renormalise)
        run = rules.shard_map(choose, (tokens,), (tokens,) * 3)
        weights_BTJ, experts_BTJ, probability_BTE = run(self.router(x))
        # the experts of padding have a number that no expert has
        experts_BTJ = jnp.where(real_BT[..., None], experts_BTJ, spec.count)
        chosen_BTJE = jax.nn.one_hot(experts_BTJ, spec.count, dtype=jnp.float32)
        probability_BTE = jnp.where(real_BT[..., None], probability_BTE, 0)
        load = Load(chosen_BTJE.sum(axis=(0, 1, 2)), probability_BTE.sum(axis=(0, 1)))
        stored = (self.gate, self.up, self.down)
        kernels = tuple(self.build.use(w) for w in stored)
        within = tuple(rules.gathered(w.logical) for w in stored)
        is_step = x.shape[1] == 1
        divided = rules.mesh.size > 1
        apply = partial(_on_device, is_step=is_step, is_divided=divided, count=spec.count)
        run = rules.shard_map(apply, (tokens, tokens, tokens, within), tokens)
        return run(x, weights_BTJ, experts_BTJ, kernels), load


def _on_device(
    x_BTD: jax.Array,
    weights_BTJ: jax.Array,
    experts_BTJ: jax.Array,
    kernels: Kernels,
    *,
    is_step: bool,
    is_divided: bool,
    count: int,
) -> jax.Array:
    """The experts of one device, for the tokens of all devices along the axis `expert`.

    Args:
        x_BTD: tokens of this device
        weights_BTJ: weights of their experts
        experts_BTJ: their experts; `count` or more for none
        kernels: of this device's experts
        is_step: whether this is a decode step, of one token for each sequence
        is_divided: whether there are mesh axes
        count: number of experts on all devices
    """
    (expert,), (tensor,) = LOGICAL_RULES["expert"], LOGICAL_RULES["mlp"]
    arrays = [array.reshape(-1, array.shape[-1]) for array in (x_BTD, weights_BTJ, experts_BTJ)]
    if is_divided:
        arrays = [lax.all_gather(array, expert, tiled=True) for array in arrays]
    x_TD, weights_TJ, experts_TJ = arrays
    local = kernels[0].shape[0]
    if is_divided:
        experts_TJ = experts_TJ - local * lax.axis_index(expert)
    experts_TJ = jnp.where((experts_TJ >= 0) & (experts_TJ < local), experts_TJ, local)
    if is_step:
        out_TD = few_tokens(x_TD, weights_TJ, experts_TJ, kernels)
    else:
        block = block_size(experts_TJ.size // count)
        out_TD = expert_mlps(block, x_TD, weights_TJ, experts_TJ, kernels)
    out_TD = out_TD.astype(x_BTD.dtype)  # half of the bytes to exchange, if that is bfloat16
    if is_divided:
        out_TD = lax.psum(lax.psum_scatter(out_TD, expert, tiled=True), tensor)
    return out_TD.reshape(x_BTD.shape)


def block_size(mean: int) -> int:
    """Tokens of a block: the power of two up to half of an expert's average number of tokens."""
    smallest, largest = BLOCK
    return min(largest, max(smallest, 1 << max(0, mean.bit_length() - 2)))


def _mlp(
    x_CD: jax.Array, weights_C: jax.Array, gate_DF: jax.Array, up_DF: jax.Array, down_FD: jax.Array
) -> jax.Array:
    """A block of one expert's tokens, weighted."""
    hidden_CF = ops.swiglu(x_CD @ gate_DF, x_CD @ up_DF)
    return (hidden_CF * weights_C[:, None]) @ down_FD


class _Blocks(NamedTuple):
    """Blocks of choices: those of each expert are rounded up to whole blocks.

    Args:
        order_R: choices, sorted by expert
        end_E: end of each expert's choices in `order_R`
        block_end_E: end of each expert's blocks
    """

    order_R: jax.Array
    end_E: jax.Array
    block_end_E: jax.Array

    @classmethod
    def of(cls, experts_TJ: jax.Array, count: int, block: int) -> _Blocks:
        """Sort the choices; those of expert `count` are in no block."""
        chosen_R = experts_TJ.reshape(-1)
        order_R = jnp.argsort(chosen_R, stable=True)
        size_E = jnp.sum(chosen_R[:, None] == jnp.arange(count), axis=0)
        return cls(order_R, jnp.cumsum(size_E), jnp.cumsum(-(-size_E // block)))

    def choices(self, i: jax.Array, block: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Expert of block i, its choices [C], and whether each is one [C]: the last may be less."""
        expert = jnp.sum(self.block_end_E <= i)  # searchsorted would be a loop
        before = expert - 1
        first_block = jnp.where(expert > 0, self.block_end_E[before], 0)
        start = jnp.where(expert > 0, self.end_E[before], 0)
        place_C = start + (i - first_block) * block + jnp.arange(block)
        last = self.order_R.size - 1
        return expert, self.order_R[jnp.minimum(place_C, last)], place_C < self.end_E[expert]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def expert_mlps(
    block: int, x_TD: jax.Array, weights_TJ: jax.Array, experts_TJ: jax.Array, kernels: Kernels
) -> jax.Array:
    """The weighted sum of each token's experts, block by block.

    Nothing is kept for the backward pass, which computes the blocks again.

    Args:
        block: C
        x_TD: tokens
        weights_TJ: weights of their experts
        experts_TJ: int32; E for none
        kernels: of E experts

    Returns:
        float32 [T, D].
    """
    T, D = x_TD.shape
    blocks = _Blocks.of(experts_TJ, kernels[0].shape[0], block)

    def add(i: jax.Array, out_TD: jax.Array) -> jax.Array:
        _, inputs, (token_C, _) = _inputs(blocks, i, block, x_TD, weights_TJ, kernels)
        return _add_rows(out_TD, token_C, _mlp(*inputs))

    zeros = jnp.zeros((T, D), jnp.float32)
    return lax.fori_loop(0, blocks.block_end_E[-1], add, zeros)


def _inputs(
    blocks: _Blocks,
    i: jax.Array,
    block: int,
    x_TD: jax.Array,
    weights_TJ: jax.Array,
    kernels: Kernels,
) -> tuple[jax.Array, tuple[jax.Array, ...], tuple[jax.Array, jax.Array]]:
    """Expert of block i, arguments of `_mlp`, and the numbers of its tokens and choices [C].

    Where a block is not full, weights are 0 and the numbers are beyond the arrays, each once.
    """
    T, J = weights_TJ.shape
    expert, choice_C, is_choice_C = blocks.choices(i, block)
    token_C = choice_C // J
    weights_C = jnp.where(is_choice_C, weights_TJ.reshape(-1)[choice_C], 0)
    own = [lax.dynamic_index_in_dim(kernel, expert, keepdims=False) for kernel in kernels]
    beyond = jnp.arange(block)
    places = (
        jnp.where(is_choice_C, token_C, T + beyond),
        jnp.where(is_choice_C, choice_C, T * J + beyond),
    )
    return expert, (x_TD[token_C], weights_C, *own), places


def _add_rows(total: jax.Array, place_C: jax.Array, rows: jax.Array) -> jax.Array:
    """Add rows at different places; those beyond the array are dropped."""
    return total.at[place_C].add(rows.astype(total.dtype), mode="drop", unique_indices=True)


def _expert_mlps_forward(
    block: int, x_TD: jax.Array, weights_TJ: jax.Array, experts_TJ: jax.Array, kernels: Kernels
) -> tuple[jax.Array, Any]:
    out_TD = expert_mlps(block, x_TD, weights_TJ, experts_TJ, kernels)
    return out_TD, (x_TD, weights_TJ, experts_TJ, kernels)


def _expert_mlps_backward(block: int, residuals: Any, dout_TD: jax.Array) -> tuple[Any, ...]:
    x_TD, weights_TJ, experts_TJ, kernels = residuals
    blocks = _Blocks.of(experts_TJ, kernels[0].shape[0], block)

    def add(i: jax.Array, gradients: tuple[Any, ...]) -> tuple[Any, ...]:
        dx_TD, dweights_R, dkernels = gradients
        expert, inputs, (token_C, choice_C) = _inputs(blocks, i, block, x_TD, weights_TJ, kernels)
        y_CD, pull = jax.vjp(_mlp, *inputs)
        dy_CD = dout_TD.at[token_C].get(mode="fill", fill_value=0).astype(y_CD.dtype)
        dx_CD, dweights_C, *new = pull(dy_CD)
        dkernels = tuple(
            lax.dynamic_update_index_in_dim(
                total, lax.dynamic_index_in_dim(total, expert, keepdims=False) + one, expert, 0
            )
            for total, one in zip(dkernels, new, strict=True)
        )
        return (
            _add_rows(dx_TD, token_C, dx_CD),
            _add_rows(dweights_R, choice_C, dweights_C),
            dkernels,
        )

    arrays = (x_TD, weights_TJ.reshape(-1), kernels)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), arrays)
    sums = lax.fori_loop(0, blocks.block_end_E[-1], add, zeros)
    dx, dweights, dkernels = jax.tree.map(lambda d, x: d.astype(x.dtype), sums, arrays)
    return dx, dweights.reshape(weights_TJ.shape), None, dkernels


expert_mlps.defvjp(_expert_mlps_forward, _expert_mlps_backward)


def few_tokens(
    x_TD: jax.Array, weights_TJ: jax.Array, experts_TJ: jax.Array, kernels: Kernels
) -> jax.Array:
    """`expert_mlps` of a decode step, which is bound by the bytes of weights that it moves.

    Gathering the chosen experts reads T J of them, writes a copy and reads it: at most 3 T J of
    them. Computing all experts for all tokens reads E. Of 128 experts and 8 for a token, the copies
    move fewer bytes up to 5 tokens: 24 experts instead of 128 for one. Tokens are broadcast because
    XLA on GPU would otherwise make one product, for which it transposes a copy of the weights.
    """
    count, J = kernels[0].shape[0], weights_TJ.shape[1]
    if 3 * x_TD.shape[0] * J < count:
        chosen = [jnp.take(kernel, experts_TJ, axis=0, mode="clip") for kernel in kernels]
        x_TJD = jnp.broadcast_to(x_TD[:, None], (len(x_TD), J, x_TD.shape[1]))
        gate, up = (jnp.einsum("TJD,TJDF->TJF", x_TJD, w) for w in chosen[:2])
        weights_TJ = jnp.where(experts_TJ < count, weights_TJ, 0)
        hidden = ops.swiglu(gate, up) * weights_TJ[..., None]
        return jnp.einsum("TJF,TJFD->TD", hidden, chosen[2], preferred_element_type=jnp.float32)
    x_ETD = jnp.broadcast_to(x_TD, (count, *x_TD.shape))
    gate, up = (jnp.einsum("ETD,EDF->ETF", x_ETD, w) for w in kernels[:2])
    is_chosen = experts_TJ[..., None] == jnp.arange(count)
    weights_ET = jnp.sum(jnp.where(is_chosen, weights_TJ[..., None], 0), axis=1).T
    hidden = ops.swiglu(gate, up) * weights_ET[..., None]
    return jnp.einsum("ETF,EFD->TD", hidden, kernels[2], preferred_element_type=jnp.float32)
