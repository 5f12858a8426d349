"""The model that is trained, on its mesh."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from jaxs1.config import UserError
from jaxs1.model import ops, transformer
from jaxs1.model.architecture import Architecture
from jaxs1.model.sharding import check_divisible, make_sharding_rules
from jaxs1.model.transformer import Transformer
from jaxs1.rl.config import GrpoConfig
from jaxs1.rl.sizes import ROW_MULTIPLE


def policy_model(
    config: GrpoConfig,
    architecture: Architecture,
    devices: list[jax.Device],
    capability: int | None,
) -> Transformer:
    """The abstract model, as trained.

    Args:
        config: settings of the run
        architecture: shapes of the model
        devices: all devices of the run
        capability: their CUDA compute capability, e.g. 90; None if they are no NVIDIA GPUs

    Raises:
        UserError: the mesh does not fit the devices, the model, or the batch.
    """
    rules = make_sharding_rules(config.mesh, devices)
    check_divisible(architecture, rules)
    for name, value, axis, size in (
        ("rows", config.rows, "mesh.data x mesh.fsdp x mesh.expert", rules.size("rows")),
        ("row_length", config.row_length or ROW_MULTIPLE, "mesh.context", rules.size("sequence")),
        ("tensor: devices of the mesh", rules.mesh.size, "tensor", config.tensor),
    ):
        if value % size:
            raise UserError(f"{name}={value}: must be a multiple of {axis}={size}; change one")
    compute = config.compute
    attention: Any = ops.resolve_attention(
        compute.attention, devices[0].platform, compute.dtype, capability
    )
    return transformer.abstract(
        architecture,
        dataclasses.replace(compute, attention=attention),
        rules,
        max_segments=config.prompts * config.group,
        lora=config.lora,
    )
