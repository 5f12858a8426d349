"""What layers are made of: parameters, norms, linear maps with adapters.

Every parameter names its logical axes, which `sharding.LOGICAL_RULES` maps to a layout. It is
stored in a dtype of its own and cast to the compute dtype where it is used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from jaxs1.model import ops
from jaxs1.model.architecture import Architecture
from jaxs1.model.config import LoraConfig
from jaxs1.model.linear import LINEAR
from jaxs1.model.sharding import Axes, ShardingRules


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
