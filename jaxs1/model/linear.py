"""Operators that read weights: matrix products, embedding lookups and logits, as `LINEAR[name]`.

"xla" is the reference. The other implementations store weights in a form of their own, which
`jaxs1.model.decode` gives them.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from jaxs1.model.sharding import LOGICAL_RULES, Axes, ShardingRules
from kernels.int8 import Int8

#: Most rows for which bf16x3 puts the weights on the left of the product.
FEW_ROWS = 16


class Linear(Protocol):
    """An implementation of the operators that read weights.

    Attributes:
        weight_dtype: dtype that all weights are stored in; None: any, cast where they are used
        outputs_first: whether kernels are stored as [outputs..., inputs...]
        quantized: whether kernels and the head are stored as `Int8`
    """

    weight_dtype: str | None
    outputs_first: bool
    quantized: bool

    def product(
        self, x: jax.Array, w: Any, inputs: int, axes: Axes, rules: ShardingRules
    ) -> jax.Array:
        """Contract the last `inputs` axes of x with the input axes of a kernel.

        Args:
            x: [B, T, inputs...] in the compute dtype
            w: kernel as stored, an array or `Int8`
            inputs: number of input axes
            axes: logical axes of the kernel, inputs before outputs
            rules: the mesh
        """

    def embed(
        self, table_VD: Any, tokens_BT: jax.Array, dtype: DTypeLike, rules: ShardingRules
    ) -> jax.Array:
        """Rows of the embedding table as [B, T, D] in `dtype`; see `embed`."""

    def logits(self, hidden_BD: jax.Array, head: Any, *, tied: bool) -> jax.Array:
        """Float32 logits [B, V].

        Args:
            hidden_BD: hidden states after the final norm
            head: embedding [V, D] of a tied model, else the output matrix as stored
            tied: whether `head` is the embedding
        """


class Xla:
    """Weights of any dtype, cast to the compute dtype: the reference."""

    weight_dtype: str | None = None
    outputs_first = False
    quantized = False

    def product(
        self, x: jax.Array, w: jax.Array, inputs: int, axes: Axes, rules: ShardingRules
    ) -> jax.Array:
        """See `Linear`."""
        w = rules.gather(w.astype(x.dtype), axes)
        return product(x, w, inputs, flat=rules.size("sequence") == 1)

    def embed(
        self, table_VD: jax.Array, tokens_BT: jax.Array, dtype: DTypeLike, rules: ShardingRules
    ) -> jax.Array:
        """See `Linear`."""
        return embed(table_VD, tokens_BT, dtype, rules)

    def logits(self, hidden_BD: jax.Array, head: jax.Array, *, tied: bool) -> jax.Array:
        """See `Linear`."""
        head = head.astype(hidden_BD.dtype)
        if tied:
            return jnp.einsum("BD,VD->BV", hidden_BD, head, preferred_element_type=jnp.float32)
        return jnp.matmul(hidden_BD, head, preferred_element_type=jnp.float32)


class Bf16x3:
    """Float32 products with weights that stay in bfloat16; on one device."""

    weight_dtype: str | None = "bfloat16"
    outputs_first = True
    quantized = False

    def product(
        self, x: jax.Array, w: jax.Array, inputs: int, axes: Axes, rules: ShardingRules
    ) -> jax.Array:
        """See `Linear`."""
        return product_bf16x3(x, w, inputs)

    def embed(
        self, table_VD: jax.Array, tokens_BT: jax.Array, dtype: DTypeLike, rules: ShardingRules
    ) -> jax.Array:
        """See `Linear`. Reads rows as integers, because XLA on CPU would widen the entire table."""
        # tied to the tokens by the barrier, or the conversion would be hoisted out of the decode
        # loop, where it copies the table
        table_VD, tokens_BT = lax.optimization_barrier((table_VD, tokens_BT))
        rows = jnp.take(lax.bitcast_convert_type(table_VD, jnp.uint16), tokens_BT, axis=0)
        return lax.bitcast_convert_type(rows, jnp.bfloat16).astype(dtype)

    def logits(self, hidden_BD: jax.Array, head: jax.Array, *, tied: bool) -> jax.Array:
        """See `Linear`."""
        return product_bf16x3(hidden_BD, head, 1)


class Int8Linear:
    """Weights in int8, converted to the compute dtype where they are used."""

    weight_dtype: str | None = None
    outputs_first = True
    quantized = True

    def product(
        self, x: jax.Array, w: Int8, inputs: int, axes: Axes, rules: ShardingRules
    ) -> jax.Array:
        """See `Linear`."""
        values = _convert_here(w.values, x)
        last = [tuple(range(a.ndim - inputs, a.ndim)) for a in (x, values)]
        y = jnp.tensordot(x, values, axes=last, preferred_element_type=jnp.float32)
        return (y * w.scale).astype(x.dtype)

    def embed(
        self,
        table_VD: Int8 | jax.Array,
        tokens_BT: jax.Array,
        dtype: DTypeLike,
        rules: ShardingRules,
    ) -> jax.Array:
        """See `Linear`. Only the table of a tied model is quantized."""
        if not isinstance(table_VD, Int8):
            return embed(table_VD, tokens_BT, dtype, rules)
        values_BTD = embed(table_VD.values, tokens_BT, jnp.float32, rules)
        scale_BT1 = embed(table_VD.scale[:, None], tokens_BT, jnp.float32, rules)
        return (values_BTD * scale_BT1).astype(dtype)

    def logits(self, hidden_BD: jax.Array, head: Int8, *, tied: bool) -> jax.Array:
        """See `Linear`."""
        values = _convert_here(head.values, hidden_BD)
        y_BV = jnp.einsum("BD,VD->BV", hidden_BD, values, preferred_element_type=jnp.float32)
        return y_BV * head.scale


LINEAR: dict[str, Linear] = {"xla": Xla(), "bf16x3": Bf16x3(), "int8": Int8Linear()}


def _convert_here(values: jax.Array, x: jax.Array) -> jax.Array:
    """Integers in x's dtype; the barrier keeps XLA from converting all weights before the loop."""
    values, _ = lax.optimization_barrier((values, x))
    return values.astype(x.dtype)


def product(x: jax.Array, w: jax.Array, inputs: int, *, flat: bool) -> jax.Array:
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


def product_bf16x3(x: jax.Array, w: jax.Array, inputs: int) -> jax.Array:
    """`product` of float32 activations with bfloat16 weights, which are not widened.

    A float32 is the sum of three bfloat16 with 8 of its 24 bits each, and the product of two
    bfloat16 is exact in float32. So one product of bfloat16 with three times the rows, whose parts
    are then added, rounds no more than one of float32 does. XLA's CPU library rearranges the right
    operand; for few rows the weights are therefore the left one.

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
    """Three bfloat16 arrays whose sum is the float32 array x."""
    terms = []
    for _ in range(3):
        # XLA may leave out a conversion to bfloat16 and back, but not this
        term = lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
        terms.append(term.astype(jnp.bfloat16))
        x = x - term
    return terms


def embed(
    table_VD: jax.Array, tokens_BT: jax.Array, dtype: DTypeLike, rules: ShardingRules
) -> jax.Array:
    """Rows of the embedding table, in `dtype`.

    Where the table is split along D, every device looks up its columns for all tokens of its
    group, then columns are exchanged for tokens. XLA's partitioner would replicate table and
    result. Gradients of the same row are added in the dtype of the table.

    Args:
        table_VD: laid out as ("vocab", "embed")
        tokens_BT: int32, laid out as ("rows", "sequence")
        dtype: dtype of the result
        rules: the mesh

    Returns:
        [B, T, D], laid out as ("rows", "sequence", None).
    """
    if rules.mesh.size == 1:
        return jnp.take(table_VD, tokens_BT, axis=0).astype(dtype)
    columns, vocabulary = LOGICAL_RULES["embed"], LOGICAL_RULES["vocab"]

    def look_up(table: jax.Array, tokens: jax.Array) -> jax.Array:
        ids = lax.all_gather(tokens, columns) - table.shape[0] * lax.axis_index(vocabulary)
        is_local = (ids >= 0) & (ids < table.shape[0])
        found = jnp.take(table, jnp.where(is_local, ids, 0), axis=0).astype(dtype)
        found = lax.psum(jnp.where(is_local[..., None], found, 0), vocabulary)
        return lax.all_to_all(found, columns, 0, 3, tiled=True)[0]

    table, tokens = rules.spec(("vocab", "embed")), rules.spec(("rows", "sequence"))
    layout = rules.spec(("rows", "sequence", None))
    return rules.shard_map(look_up, (table, tokens), layout)(table_VD, tokens_BT)
