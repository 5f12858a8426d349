"""From logical axis names to mesh axes: the one table that decides who holds what.

Every parameter and every constrained activation names its axes; `LOGICAL_RULES` maps the names to mesh
axes. Changing a layout is changing a row here or the mesh in the recipe, nothing else.
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

MESH_AXES = ("data", "fsdp", "context", "tensor")

#: Logical axis -> mesh axes. Names that are absent are never split.
LOGICAL_RULES: dict[str, tuple[str, ...]] = {
    # parameters
    "embed": ("fsdp", "context"),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    # activations
    "rows": ("data", "fsdp"),
    "sequence": ("context",),
}

Axes = tuple[str | None, ...]


@dataclass(frozen=True)
class ShardingRules:
    """A mesh and what the table makes of it."""

    mesh: Mesh

    def size(self, name: str) -> int:
        """Number of parts that a logical axis is split into."""
        return int(
            np.prod([self.mesh.shape[axis] for axis in LOGICAL_RULES.get(name, ())], dtype=int)
        )

    def spec(self, axes: Axes, *, without: tuple[str, ...] = ()) -> PartitionSpec:
        """Logical axis names to a `PartitionSpec`; names in `without` are left whole."""
        return PartitionSpec(
            *(LOGICAL_RULES.get(a) if a is not None and a not in without else None for a in axes)
        )

    def sharding(self, axes: Axes) -> NamedSharding:
        """Where an array with these logical axes lives."""
        return NamedSharding(self.mesh, self.spec(axes))

    def constrain(self, x: jax.Array, *axes: str | None) -> jax.Array:
        """Pin an activation's layout; the partitioner inserts the exchange that this needs."""
        if self.mesh.size == 1:
            return x
        return jax.lax.with_sharding_constraint(x, self.sharding(axes))

    def shard_map(self, function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Any:
        """`function`, run by every device on its own parts; as it is where there is one device."""
        if self.mesh.size == 1:
            return function
        return jax.shard_map(
            function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        )

    def gather(self, w: jax.Array, axes: Axes) -> jax.Array:
        """A parameter whole along its FSDP axes, as the matrix product needs it.

        Called after the cast to the compute dtype, so that half as many bytes travel. The gradient
        is pinned to the parameter's own layout, which makes it a reduce-scatter; the constraint's
        own transpose would be an all-reduce.
        """
        if self.mesh.size == 1:
            return w
        whole = NamedSharding(self.mesh, self.spec(axes, without=("embed",)))
        return _gather(w, whole, self.sharding(axes))


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(w: jax.Array, whole: NamedSharding, split: NamedSharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(w, whole)


def _gather_forward(
    w: jax.Array, whole: NamedSharding, split: NamedSharding
) -> tuple[jax.Array, None]:
    return _gather(w, whole, split), None


def _gather_backward(
    whole: NamedSharding, split: NamedSharding, _: None, gradient: jax.Array
) -> tuple[jax.Array]:
    return (jax.lax.with_sharding_constraint(gradient, split),)


_gather.defvjp(_gather_forward, _gather_backward)


def make_sharding_rules(
    config: MeshConfig, devices: list[jax.Device] | None = None
) -> ShardingRules:
    """Arrange devices in a mesh of (data, fsdp, context, tensor).

    Raises:
        UserError: the axes do not multiply to the number of devices.
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
            "change --mesh.fsdp (-1 takes what the others leave)"
        )
    grid = np.asarray(devices).reshape([sizes[axis] for axis in MESH_AXES])
    return ShardingRules(Mesh(grid, MESH_AXES))


def check_divisible(architecture: Architecture, rules: ShardingRules) -> None:
    """Refuse a mesh that the model's widths do not divide into.

    Raises:
        UserError: names the mesh axis, its size and the width.
    """
    a, mesh = architecture, rules.mesh.shape
    tensor, attention = mesh["tensor"], mesh["tensor"] * mesh["context"]
    requirements = [
        ("num_attention_heads", a.num_heads, "mesh.tensor", tensor),
        ("num_key_value_heads", a.num_kv_heads, "mesh.tensor", tensor),
        ("intermediate_size", a.intermediate_size, "mesh.tensor", tensor),
        ("vocab_size", a.vocab_size, "mesh.tensor", tensor),
        ("num_attention_heads", a.num_heads, "mesh.context x mesh.tensor", attention),
        ("hidden_size", a.hidden_size, "mesh.fsdp x mesh.context", rules.size("embed")),
    ]
    for name, width, axis, size in requirements:
        if width % size:
            raise UserError(
                f"{axis}={size}: must divide the model's {name}={width}; choose a divisor"
            )


def local_bytes(tree: Any) -> float:
    """Size on one device of a tree of arrays, or of shapes with shardings [bytes]."""
    leaves = jax.tree.leaves(tree)
    return float(sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves))
