"""Sharding: one table from logical axis names to mesh axes.

Every parameter and every constrained activation names its axes, and `LOGICAL_RULES` maps these
names to mesh axes. To change a layout, change a row of the table or the mesh in the recipe.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxs1.config import UserError
from jaxs1.model.architecture import Architecture
from jaxs1.model.config import MeshConfig

MESH_AXES = ("data", "fsdp", "expert", "context", "tensor")

#: Logical axis -> mesh axes. Axes that are not listed are never split.
LOGICAL_RULES: dict[str, tuple[str, ...]] = {
    # parameters
    "embed": ("fsdp", "expert", "context"),
    "experts": ("expert", "fsdp", "context"),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    # activations
    "expert": ("expert",),
    "rows": ("data", "fsdp", "expert"),
    "sequence": ("context",),
}

#: What remains of a parameter's axes once it is gathered for a matrix product.
GATHERED: dict[str | None, str | None] = {"embed": None, "experts": "expert"}

Axes = tuple[str | None, ...]


@dataclass(frozen=True)
class ShardingRules:
    """`LOGICAL_RULES` applied to a mesh.

    Args:
        mesh: devices, with the axes `MESH_AXES`
    """

    mesh: Mesh

    def size(self, name: str) -> int:
        """Number of shards along a logical axis."""
        return math.prod(self.mesh.shape[axis] for axis in LOGICAL_RULES.get(name, ()))

    def spec(self, axes: Axes) -> PartitionSpec:
        """Logical axis names to a `PartitionSpec`."""
        return PartitionSpec(*(LOGICAL_RULES.get(a) if a is not None else None for a in axes))

    def gathered(self, axes: Axes) -> PartitionSpec:
        """The `PartitionSpec` of a parameter after `gather`."""
        return self.spec(tuple(GATHERED.get(a, a) for a in axes))

    def sharding(self, axes: Axes) -> NamedSharding:
        """The sharding of an array with these logical axes; `()` replicates it."""
        return NamedSharding(self.mesh, self.spec(axes))

    def constrain(self, x: jax.Array, *axes: str | None) -> jax.Array:
        """Constrain the layout of an activation; XLA inserts the collectives this needs."""
        if self.mesh.size == 1:
            return x
        return jax.lax.with_sharding_constraint(x, self.sharding(axes))

    def shard_map(self, function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Any:
        """`jax.shard_map` over the mesh; on a single device `function` itself."""
        if self.mesh.size == 1:
            return function
        return jax.shard_map(
            function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        )

    def gather(self, w: jax.Array, axes: Axes) -> jax.Array:
        """All-gather a parameter along its FSDP axes, as the matrix product needs it.

        Called after the cast to the compute dtype, which halves the bytes exchanged. The gradient
        is constrained to the parameter's own layout, which makes it a reduce-scatter; the
        constraint's own transpose would be an all-reduce.
        """
        if self.mesh.size == 1:
            return w
        gathered = NamedSharding(self.mesh, self.gathered(axes))
        return _gather(w, gathered, self.sharding(axes))


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(w: jax.Array, gathered: NamedSharding, sharded: NamedSharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(w, gathered)


def _gather_forward(
    w: jax.Array, gathered: NamedSharding, sharded: NamedSharding
) -> tuple[jax.Array, None]:
    return _gather(w, gathered, sharded), None


def _gather_backward(
    gathered: NamedSharding, sharded: NamedSharding, _: None, gradient: jax.Array
) -> tuple[jax.Array]:
    return (jax.lax.with_sharding_constraint(gradient, sharded),)


_gather.defvjp(_gather_forward, _gather_backward)


def make_sharding_rules(
    config: MeshConfig, devices: list[jax.Device] | None = None
) -> ShardingRules:
    """Arrange devices in a mesh of (data, fsdp, expert, context, tensor).

    Args:
        config: size of each axis
        devices: devices of the mesh; None takes all

    Raises:
        UserError: the product of the axes is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {axis: getattr(config, axis) for axis in MESH_AXES}
    for axis, size in sizes.items():
        if size < 1 and not (axis == "fsdp" and size == -1):
            raise UserError(f"mesh.{axis}={size}: must be at least 1")
    others = int(np.prod([size for axis, size in sizes.items() if size != -1]))
    if sizes["fsdp"] == -1:
        sizes["fsdp"] = max(1, len(devices) // others)
    if int(np.prod(list(sizes.values()))) != len(devices):
        shape = " x ".join(f"{axis} {size}" for axis, size in sizes.items())
        raise UserError(
            f"mesh={shape}: must multiply to the {len(devices)} devices of this run; "
            "change --mesh.fsdp (-1 takes the devices that the other axes leave)"
        )
    grid = np.asarray(devices).reshape([sizes[axis] for axis in MESH_AXES])
    return ShardingRules(Mesh(grid, MESH_AXES))


def local_bytes(tree: Any) -> int:
    """Bytes of one device's shards of a tree of arrays, or of shapes with shardings."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def check_divisible(architecture: Architecture, rules: ShardingRules) -> None:
    """Check that the mesh divides the model's widths.

    Raises:
        UserError: names the mesh axis, its size and the width.
    """
    a, mesh = architecture, rules.mesh.shape
    tensor, attention = mesh["tensor"], mesh["tensor"] * mesh["context"]
    if a.experts is None:
        mlp = [("intermediate_size", a.intermediate_size, "mesh.tensor", tensor)]
        if mesh["expert"] > 1:
            raise UserError(
                f"mesh.expert={mesh['expert']}: must be 1, this model has no experts; use mesh.fsdp"
            )
    else:
        mlp = [
            ("moe_intermediate_size", a.experts.width, "mesh.tensor", tensor),
            (
                "num_experts",
                a.experts.count,
                "mesh.expert x mesh.fsdp x mesh.context",
                rules.size("experts"),
            ),
        ]
    requirements = [
        ("num_attention_heads", a.num_heads, "mesh.tensor", tensor),
        ("num_key_value_heads", a.num_kv_heads, "mesh.tensor", tensor),
        *mlp,
        ("vocab_size", a.vocab_size, "mesh.tensor", tensor),
        ("num_attention_heads", a.num_heads, "mesh.context x mesh.tensor", attention),
        (
            "hidden_size",
            a.hidden_size,
            "mesh.fsdp x mesh.expert x mesh.context",
            rules.size("embed"),
        ),
    ]
    for name, width, axis, size in requirements:
        if width % size:
            raise UserError(
                f"{axis}={size}: must divide the model's {name}={width}; choose a divisor"
            )
