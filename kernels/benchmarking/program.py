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
from jax import lax
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


def random_values(seed: Any, shape: Sequence[int], dtype: Any, scale: Any = 1.0) -> jax.Array:
    """Random numbers, uniform around 0, of standard deviation `scale`.

    Each is a hash of its place and the seed (the finalizer of MurmurHash3, twice). On a GPU that is
    one kernel without temporary memory, compiled in a tenth of the time of `jax.random`'s.
    """
    x = jnp.zeros(tuple(shape), jnp.uint32)
    step = 1
    for axis in reversed(range(len(shape))):
        x += lax.broadcasted_iota(jnp.uint32, tuple(shape), axis) * jnp.uint32(step % 2**32)
        step *= shape[axis]
    key = _mixed(jnp.asarray(seed).astype(jnp.uint32) + jnp.uint32(0x9E3779B9))
    x = _mixed(_mixed(x ^ key) + key)
    # as a signed number over 2^31: uniform in [-1, 1), of variance 1/3
    unit = lax.bitcast_convert_type(x, jnp.int32).astype(jnp.float32) * 2**-31
    return (unit * (3**0.5 * scale)).astype(dtype)


def _mixed(x: jax.Array) -> jax.Array:
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def draw_program(shape: tuple[int, ...], dtype: Any, sharding: Any) -> Program:
    """(seed int32, scale float32) -> random numbers: one program for all arrays of a kind.

    Args:
        shape: shape of the array
        dtype: dtype of the array
        sharding: sharding of the array
    """

    def draw(seed: jax.Array, scale: jax.Array) -> jax.Array:
        return random_values(seed, shape, dtype, scale)

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
    """Random numbers in the form of a leaf with shape, dtype and sharding."""
    drawer = _drawer(tuple(leaf.shape), jnp.dtype(leaf.dtype), leaf.sharding)
    return drawer(np.int32(seed), np.float32(scale))
