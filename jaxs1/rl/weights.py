"""The trainer's weights as decoding stores them: cast and divided by layer, never on the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jax.sharding import NamedSharding

from jaxs1.model import decode_params
from jaxs1.model.sharding import ShardingRules
from jaxs1.model.transformer import Params, Transformer

#: (trained parameters, frozen parameters or None) -> parameters for decoding.
Converter = Callable[[Any, Any], Params]


def make_converter(model: Transformer, decoder: Transformer) -> Converter:
    """Make the jitted function from parameters of training to those of decoding.

    Adapters are merged: W + A B alpha / rank, computed in float32.

    Args:
        model: abstract, as trained
        decoder: abstract, as decoded, without adapters, on the same devices in the same order
    """
    stored = decode_params.stored(decoder)
    shardings = jax.tree.map(lambda x: x.sharding, decode_params.abstract_params(decoder))

    def convert(params: Any, frozen: Any) -> Params:
        flat = flatten_dict(params if frozen is None else frozen, sep=".")
        if frozen is not None:
            flat |= _merged(model, flat, flatten_dict(params, sep="."))
        parts: dict[decode_params.Key, jax.Array] = {}
        for path, (array, order, _, _) in stored.items():
            layers = decode_params.in_layers(path)
            arrays = list(flat[path]) if layers else [flat[path]]
            for i, x in enumerate(arrays):
                key = (path, i if layers else None)
                parts[key] = jnp.transpose(x.astype(array.dtype), order)
        return decode_params.assemble(parts)

    return jax.jit(convert, out_shardings=shardings)


def _merged(
    model: Transformer, weights: dict[str, jax.Array], adapters: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    """Kernels with their adapters, by path."""
    scale = model.build.lora.alpha / model.build.lora.rank
    merged = {}
    for path, a in adapters.items():
        if not path.endswith(".adapter.a"):
            continue
        b, kernel = adapters[f"{path[:-1]}b"], f"{path.removesuffix('adapter.a')}kernel"
        product = jax.vmap(lambda a, b: jnp.tensordot(a, b, axes=1))(
            a.astype(jnp.float32), b.astype(jnp.float32)
        )
        merged[kernel] = weights[kernel].astype(jnp.float32) + scale * product
    return merged


def of_replica(model: Transformer, params: Params, rules: ShardingRules) -> Params:
    """The parameters of one replica, on its own devices, without copying any.

    Args:
        model: abstract, as decoded, on the replica's devices
        params: parameters on the devices of all replicas, each of which has all of them
        rules: mesh of the replica
    """
    devices = set(rules.mesh.devices.flat)

    def part(x: jax.Array, like: jax.ShapeDtypeStruct) -> jax.Array:
        sharding = like.sharding
        assert isinstance(sharding, NamedSharding)
        held = [shard.data for shard in x.addressable_shards if shard.device in devices]
        return jax.make_array_from_single_device_arrays(x.shape, sharding, held)

    return jax.tree.map(part, params, decode_params.abstract_params(model))
