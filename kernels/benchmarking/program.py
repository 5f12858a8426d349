"""Named programs that are described before they are compiled, perhaps for an absent device.

Everything that is timed or checked on a GPU is a `Program`: the same description is compiled for
the GPU that runs it or ahead of time for an absent one.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from kernels.xla_call import CUDA_GRAPH_OPTIONS


@dataclass(frozen=True)
class Program:
    """A function and the shapes that it is compiled for.

    Args:
        name: name that equal programs share
        function: function from `jax.jit`
        arguments: arrays, or shapes with shardings
        static: compile-time constants, by argument name
        options: XLA options
        float64: whether it is traced with 64-bit types
    """

    name: str
    function: Any
    arguments: Sequence[Any]
    static: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] | None = None
    float64: bool = False

    def lower(self) -> Any:
        """Trace it."""
        with jax.enable_x64(True) if self.float64 else contextlib.nullcontext():
            return self.function.lower(*self.arguments, **self.static)

    def compile(self) -> Any:
        """The executable."""
        options = dict(self.options) if self.options is not None else None
        return self.lower().compile(compiler_options=options)

    def compile_timed(self) -> tuple[Any, dict[str, float]]:
        """The executable, and the seconds of tracing and compiling."""
        start = time.perf_counter()
        lowered = self.lower()
        traced = time.perf_counter()
        options = dict(self.options) if self.options is not None else None
        program = lowered.compile(compiler_options=options)
        seconds = {"trace_s": traced - start, "compile_s": time.perf_counter() - traced}
        return program, seconds


def shapes_on(device: jax.Device, tree: Any) -> Any:
    """A tree of arrays or shapes as shapes on a device."""
    where = SingleDeviceSharding(device)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree)


def as_graph(device: jax.Device) -> dict[str, str | bool] | None:
    """XLA options of a timed program: a CUDA graph on a GPU."""
    return CUDA_GRAPH_OPTIONS if device.platform == "gpu" else None


def draw_program(shape: tuple[int, ...], dtype: Any, sharding: Any) -> Program:
    """(seed int32, scale float32) -> normal random numbers: one program for all arrays of a kind.

    Args:
        shape: shape of the array
        dtype: dtype of the array
        sharding: sharding of the array
    """

    def draw(seed: jax.Array, scale: jax.Array) -> jax.Array:
        # threefry would need several times the memory and time
        key = jax.random.key(seed, impl="unsafe_rbg")
        return jax.random.normal(key, shape, dtype) * scale.astype(dtype)

    def scalar(kind: Any) -> Any:
        return jax.ShapeDtypeStruct((), kind, sharding=replicated(sharding))

    name = f"draw {jnp.dtype(dtype)}{list(shape)}"
    function = jax.jit(draw, out_shardings=sharding)
    return Program(name, function, (scalar(jnp.int32), scalar(jnp.float32)))


def replicated(sharding: Any) -> Any:
    """The sharding of a scalar that all devices of a sharding need."""
    if isinstance(sharding, jax.sharding.NamedSharding):
        return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
    return sharding


@functools.cache
def _drawer(shape: tuple[int, ...], dtype: Any, sharding: Any) -> Callable[..., jax.Array]:
    return draw_program(shape, dtype, sharding).compile()


def draw(leaf: Any, seed: int, scale: float = 1.0) -> jax.Array:
    """Normal random numbers with the shape, dtype and sharding of a leaf."""
    drawer = _drawer(tuple(leaf.shape), jnp.dtype(leaf.dtype), leaf.sharding)
    return drawer(np.int32(seed), np.float32(scale))
