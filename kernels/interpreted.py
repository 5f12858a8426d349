"""Kernels on a CPU: Triton's interpreter, one program after the other. For tests, in float32.

Triton chooses between compiler and interpreter when it is imported (and transformers imports it):
the environment variable TRITON_INTERPRET=1 must be set before that. `tl.dot` in bfloat16 is
silently wrong in the interpreter (triton issue 11584), therefore 16-bit inputs are refused.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from kernels.launch import Array, Launch

#: Triton's interpreter patches its own module while it runs; XLA's CPU calls come from threads.
_ONE_AT_A_TIME = threading.Lock()


def on_torch(launch: Launch, inputs: Sequence[Array | None]) -> tuple[Array, ...]:
    """Interpret a launch on torch CPU tensors; outputs start as NaN, which reveals gaps.

    Raises:
        RuntimeError: Triton was imported without TRITON_INTERPRET=1.
        ValueError: an input is 16 bits wide.
    """
    import torch
    from triton.runtime.interpreter import InterpretedFunction

    if not isinstance(launch.kernel, InterpretedFunction):
        raise RuntimeError(
            f"{launch.name} is a compiled kernel; to interpret it, set TRITON_INTERPRET=1 in the "
            "environment before triton is imported"
        )
    for x in inputs:
        if x is not None and x.dtype in (torch.bfloat16, torch.float16):
            raise ValueError(f"{launch.name}: {x.dtype}: the interpreter needs float32")
    shared = {output: inputs[i] for i, output in launch.in_place.items()}
    outputs: list[Any] = []
    for i, (shape, dtype) in enumerate(launch.outputs):
        kind = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        outputs.append(shared[i] if i in shared else torch.full(shape, torch.nan, dtype=kind))
    with _ONE_AT_A_TIME:
        launch.kernel[launch.grid](*inputs, *outputs, **launch.constants)
    return tuple(outputs)


def on_jax(launch: Launch, inputs: Sequence[Array | None]) -> tuple[Array, ...]:
    """`on_torch` as a call from inside `jax.jit` to the host; in-place outputs are copies.

    For one device: callbacks of several CPU devices hang when the program also sums over them.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np
    import torch

    present = [x is not None for x in inputs]

    def host(*arrays: Any) -> tuple[Any, ...]:
        tensors = (torch.from_numpy(np.array(x)) for x in arrays)
        given = [next(tensors) if exists else None for exists in present]
        typed = tuple((shape, getattr(torch, str(jnp.dtype(d)))) for shape, d in launch.outputs)
        concrete = Launch(launch.kernel, launch.grid, typed, launch.constants, launch.in_place)
        return tuple(y.numpy() for y in on_torch(concrete, given))

    result = tuple(jax.ShapeDtypeStruct(shape, jnp.dtype(d)) for shape, d in launch.outputs)
    return tuple(
        jax.pure_callback(
            host, result, *(x for x in inputs if x is not None), vmap_method="sequential"
        )
    )
