"""FLOPs of the matrix products of a traced function."""

from __future__ import annotations

import math
from typing import Any

from jax.extend import core


def product_flops(jaxpr: Any, devices: int) -> float:
    """FLOPs of all matrix products on one device; a loop counts as often as it runs.

    Recomputed products count again. Fused attention (cuDNN, splash) is not included.

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
        elif name == "pallas_call":
            continue
        else:
            times = params["length"] if name == "scan" else 1
            inside = 1 if name == "shard_map" else devices
            total += times * sum(product_flops(inner, inside) for inner in _inner(params))
    return total


def _inner(params: dict[str, Any]) -> list[Any]:
    """The functions that an equation calls, without derivative rules."""
    kinds = (core.Jaxpr, core.ClosedJaxpr)
    return [value for value in params.values() if isinstance(value, kinds)]
