"""Weights in 8 bits, made while a checkpoint is loaded for decoding.

Symmetric, one scale for each output: scale[o] = max_i |W[i, o]| / 127, values = round(W / scale).
`LOG.md` has the errors of this choice and of scales for groups of inputs, on trained weights.
"""

from __future__ import annotations

import numpy as np

from kernels.int8 import LARGEST, Int8


def quantize(w: np.ndarray, inputs: int) -> Int8:
    """Quantize a weight.

    Args:
        w: float32 [outputs..., inputs...]
        inputs: number of its input axes

    Returns:
        Int8 of numpy arrays; an output whose weights are all 0 has scale 1.

    Raises:
        ValueError: a weight is infinite or not a number.
    """
    axes = tuple(range(w.ndim - inputs, w.ndim))
    largest = np.abs(w).max(axis=axes, keepdims=True)
    if not np.isfinite(largest).all():
        raise ValueError("holds NaN or infinity")
    scale = np.where(largest > 0, largest / LARGEST, 1).astype(np.float32)
    return Int8(np.rint(w / scale).astype(np.int8), scale.squeeze(axes))
