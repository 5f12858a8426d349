"""Weights in 8 bits: integers, and a float32 scale for each output.

    W[i, o] = values[o, i] * scale[o]        values in -127..127

Symmetric and for weights only. The scale of an output is common to all terms of its sum, so it is
applied once, after the product. Outputs come first, so that kernels load the inputs of an output
together. This file imports neither jax nor Triton.
"""

from __future__ import annotations

from typing import NamedTuple

from kernels.launch import Array

#: Largest absolute value of a quantized weight.
LARGEST = 127


class Int8(NamedTuple):
    """A quantized weight.

    Args:
        values: int8 [outputs..., inputs...]
        scale: float32 [outputs...]
    """

    values: Array
    scale: Array


def parts(w: Array | Int8) -> tuple[Array, Array | None]:
    """Values and scale of a weight; the scale is None where it is not quantized."""
    return (w.values, w.scale) if isinstance(w, Int8) else (w, None)
