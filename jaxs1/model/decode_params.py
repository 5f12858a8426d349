"""Parameters as decoding stores them: a list of layers, each with arrays of its own.

Training scans over stacked layers. A scan that decodes would copy the weights of every layer in
every step, so decoding takes {"embedding", "layers": [...], "final_norm", "lm_head"}. Kernels have
the axes that the model's implementation of products reads (`jaxs1.model.linear`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec

from jaxs1.model import transformer
from jaxs1.model.linear import LINEAR
from jaxs1.model.modules import Linear
from jaxs1.model.sharding import local_bytes
from jaxs1.model.transformer import Params, Transformer
from kernels.int8 import Int8

#: Dotted path of a parameter in the model, and the layer, if it is one of the layers' parameters.
Key = tuple[str, int | None]


class Stored(NamedTuple):
    """How decoding stores a parameter, or that of one layer.

    Args:
        array: shape, dtype and sharding; of the values if it is quantized
        order: its axes, as axes of the model's parameter without the layer axis
        scale: shape, dtype and sharding of the scale; None if it is not quantized
        inputs: number of its last axes whose elements share a scale
    """

    array: jax.ShapeDtypeStruct
    order: tuple[int, ...]
    scale: jax.ShapeDtypeStruct | None = None
    inputs: int = 0

    @property
    def leaf(self) -> jax.ShapeDtypeStruct | Int8:
        """What takes the parameter's place in the tree."""
        return self.array if self.scale is None else Int8(self.array, self.scale)


def stored(model: Transformer) -> dict[str, Stored]:
    """How each parameter is stored, by its dotted path in the model."""
    shapes = flatten_dict(transformer.parameters(model), sep=".")
    shardings = flatten_dict(transformer.shardings(model), sep=".")
    linear = LINEAR[model.build.linear]
    inputs = _input_axes(model) if linear.outputs_first else {}
    quantized = _quantized(model) if linear.quantized else {}
    found = {}
    for path, parameter in shapes.items():
        skipped = int(in_layers(path))
        shape, spec = parameter.shape[skipped:], shardings[path].spec[skipped:]
        first = inputs.get(path, 0)
        order = (*range(first, len(shape)), *range(first))
        sharding = NamedSharding(model.rules.mesh, PartitionSpec(*(spec[i] for i in order)))
        array = jax.ShapeDtypeStruct(
            tuple(shape[i] for i in order), parameter.dtype, sharding=sharding
        )
        found[path] = Stored(array, order)
        if path in quantized:
            found[path] = _quantize(found[path], quantized[path])
    return found


def _quantize(stored: Stored, inputs: int) -> Stored:
    """The same parameter in int8, with a scale for each output."""
    array, sharding = stored.array, stored.array.sharding
    outputs = array.ndim - inputs
    per_output = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[:outputs]))
    scale = jax.ShapeDtypeStruct(array.shape[:outputs], jnp.float32, sharding=per_output)
    values = jax.ShapeDtypeStruct(array.shape, jnp.int8, sharding=sharding)
    return Stored(values, stored.order, scale, inputs)


def in_layers(path: str) -> bool:
    """Whether a parameter of the model has a leading layer axis."""
    return path.startswith("layers.")


def assemble(arrays: Mapping[Key, Any]) -> Params:
    """Arrays by path and layer as the tree that decoding takes."""
    flat = {
        path if layer is None else f"layers.{layer}.{path.removeprefix('layers.')}": array
        for (path, layer), array in arrays.items()
    }
    tree = unflatten_dict(flat, sep=".")
    return {**tree, "layers": [tree["layers"][str(i)] for i in range(len(tree["layers"]))]}


def abstract_params(model: Transformer) -> Params:
    """Shapes, dtypes and shardings of the parameters."""
    found = stored(model)
    return assemble({(path, i): found[path].leaf for path in found for i in _layers(model, path)})


def loading_peak(model: Transformer) -> int:
    """Most bytes on a device while `convert.weights.load_decode_params` runs, for `plan`.

    The parameters themselves, and up to one layer of them in transit.
    """
    params = abstract_params(model)
    return local_bytes(params) + local_bytes(params["layers"][0])


def unstack(model: Transformer, params: Params) -> Params:
    """Convert parameters in memory, e.g. those of a training run; those on disk are loaded so.

    The arrays are converted and deleted one after another.

    Args:
        model: abstract, on the same mesh
        params: as returned by `transformer.parameters`
    """
    arrays = flatten_dict(params, sep=".")
    parts: dict[Key, jax.Array] = {}
    for path, (array, order, scale, _) in stored(model).items():
        if scale is not None:
            raise NotImplementedError(f"{path}: only weights on disk are quantized")
        split = _split(arrays.pop(path), in_layers(path), order, array.sharding)
        parts |= {(path, i): part for i, part in zip(_layers(model, path), split, strict=True)}
    return assemble(parts)


def _split(
    array: jax.Array, is_stacked: bool, order: tuple[int, ...], sharding: NamedSharding
) -> list[jax.Array]:
    """The array of each layer, or the array itself, with its axes in another order."""
    if not is_stacked and order == tuple(range(array.ndim)):
        return [array]

    def split(x: jax.Array) -> list[jax.Array]:
        return [jnp.transpose(part, order) for part in (x if is_stacked else [x])]

    shardings = [sharding] * (array.shape[0] if is_stacked else 1)
    parts = jax.block_until_ready(jax.jit(split, out_shardings=shardings)(array))
    array.delete()
    return parts


def _layers(model: Transformer, path: str) -> list[int | None]:
    """The layers that a parameter has an array for; [None] outside the layers."""
    return [*range(model.architecture.num_layers)] if in_layers(path) else [None]


def _input_axes(model: Transformer) -> dict[str, int]:
    """Number of input axes of each kernel, by its dotted path."""
    inputs = {
        ".".join(("layers", *map(str, path), "kernel")): module.inputs
        for path, module in nnx.iter_modules(model.layers)
        if isinstance(module, Linear)
    }
    return inputs if model.architecture.tie_word_embeddings else {**inputs, "lm_head": 1}


def _quantized(model: Transformer) -> dict[str, int]:
    """Number of input axes of what is quantized, by dotted path: kernels and the head."""
    tied = model.architecture.tie_word_embeddings
    return _input_axes(model) | ({"embedding": 1} if tied else {})
