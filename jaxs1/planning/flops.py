"""FLOPs of the matrix products of a traced function, and of experts."""

from __future__ import annotations

import math
from typing import Any

from flax import nnx
from jax.extend import core

from jaxs1.model import transformer
from jaxs1.model.transformer import Transformer


def product_flops(jaxpr: Any, devices: int) -> float:
    """FLOPs of all matrix products on one device; a loop counts as often as it runs.

    Recomputed products count again. Fused attention (cuDNN, splash) is not included, nor are loops
    whose length depends on data: `expert_flops` has those of experts.

    Args:
        jaxpr: jaxpr of the function; global shapes outside `shard_map`, local ones inside
        devices: number of devices that share the work outside `shard_map`
    """
    jaxpr = jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr
    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2.0 * math.prod(equation.outvars[0].aval.shape) * depth / devices
        elif name in ("pallas_call", "while"):
            continue
        else:
            times = params["length"] if name == "scan" else 1
            inside = 1 if name == "shard_map" else devices
            total += times * sum(product_flops(inner, inside) for inner in _inner(params))
    return total


def expert_flops(model: Transformer, tokens: float) -> float:
    """FLOPs of the experts in a train step on all devices; 0 for a dense model.

    Blocks that are not full are computed whole: half a block for each expert is padding, which is a
    quarter of the choices, since blocks are up to half of an expert's average.

    Args:
        model: abstract
        tokens: tokens of a step
    """
    a = model.architecture
    if a.experts is None:
        return 0.0
    # gate, up and down; gate and up again; gradients of the tokens, and of weights
    products = 3 + 2 + 3 + (3 if transformer.trained(model) is nnx.Param else 0)
    return 1.25 * products * 2.0 * tokens * a.num_layers * a.hidden_size * a.active_width


def _inner(params: dict[str, Any]) -> list[Any]:
    """The functions that an equation calls, without derivative rules."""
    kinds = (core.Jaxpr, core.ClosedJaxpr)
    return [value for value in params.values() if isinstance(value, kinds)]
