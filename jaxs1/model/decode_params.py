"""Parameters as decoding stores them: a list of layers, each with arrays of its own.

Training scans over stacked layers. A scan that decodes would copy the weights of every layer in
every step, so decoding takes {"embedding", "layers": [...], "final_norm", "lm_head"}. Kernels have
the axes that the model's implementation of products reads (`jaxs1.model.linear`).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec

from jaxs1.model import transformer
from jaxs1.model.linear import LINEAR
from jaxs1.model.transformer import Params, Transformer

#: Beginning of the dotted paths of a layer's parameters.
LAYERS = "layers."


class Stored(NamedTuple):
    """How decoding stores a parameter, or that of one layer.

    Args:
        array: shape, dtype and sharding
        order: its axes, as axes of the model's parameter without the layer axis
    """

    array: jax.ShapeDtypeStruct
    order: tuple[int, ...]


def stored(model: Transformer) -> dict[str, Stored]:
    """How each parameter is stored, by its dotted path in the model."""
    shapes = flatten_dict(transformer.parameters(model), sep=".")
    shardings = flatten_dict(transformer.shardings(model), sep=".")
    inputs = _input_axes(model) if LINEAR[model.build.linear].outputs_first else {}
    found = {}
    for path, parameter in shapes.items():
        skipped = int(path.startswith(LAYERS))
        shape, spec = parameter.shape[skipped:], shardings[path].spec[skipped:]
        first = inputs.get(path, 0)
        order = (*range(first, len(shape)), *range(first))
        sharding = NamedSharding(model.rules.mesh, PartitionSpec(*(spec[i] for i in order)))
        array = jax.ShapeDtypeStruct(
            tuple(shape[i] for i in order), parameter.dtype, sharding=sharding
        )
        found[path] = Stored(array, order)
    return found


def abstract_params(model: Transformer) -> Params:
    """Shapes, dtypes and shardings of the parameters."""
    tree = unflatten_dict({path: s.array for path, s in stored(model).items()}, sep=".")
    return {**tree, "layers": [tree["layers"]] * model.architecture.num_layers}


def unstack(model: Transformer, params: Params) -> Params:
    """Parameters for decoding from those in memory, e.g. of a training run.

    The arrays are converted and deleted one after another; see `convert.weights.load_decode_params`
    for those on disk.

    Args:
        model: abstract, on the same mesh
        params: as returned by `transformer.parameters`
    """
    arrays = flatten_dict(params, sep=".")
    single: dict[str, jax.Array] = {}
    layers: list[dict[str, jax.Array]] = [{} for _ in range(model.architecture.num_layers)]
    for path, (array, order) in stored(model).items():
        targets = layers if path.startswith(LAYERS) else [single]
        parts = _split(arrays.pop(path), targets is layers, order, array.sharding)
        for target, part in zip(targets, parts, strict=True):
            target[path.removeprefix(LAYERS)] = part
    return {
        **unflatten_dict(single, sep="."),
        "layers": [unflatten_dict(layer, sep=".") for layer in layers],
    }


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


def _input_axes(model: Transformer) -> dict[str, int]:
    """Number of input axes of each kernel, by its dotted path."""
    inputs = {
        ".".join(("layers", *map(str, path), "kernel")): module.inputs
        for path, module in nnx.iter_modules(model.layers)
        if isinstance(module, transformer.Linear)
    }
    return inputs if model.architecture.tie_word_embeddings else {**inputs, "lm_head": 1}
