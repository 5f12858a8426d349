"""Timing on a GPU: what a kernel takes, and what the hardware can do.

A sample is the wall time of one compiled program that makes many calls, divided by their number.
The program is recorded as a CUDA graph (`GRAPH`), so that a call costs no host time. Calls go round
over copies of their inputs that together are larger than the L2 cache: each comes from memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kernels.cases import Case
from kernels.launch import Run
from kernels.projection import projection

#: XLA options of timed programs: everything in one CUDA graph.
GRAPH: dict[str, str | bool] = {
    "xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,WHILE",
    "xla_gpu_graph_min_graph_size": "1",
}
#: Copies of a call's inputs hold at least this; the L2 cache of an H100 has 50 MB [bytes].
ROTATED = 512 << 20


@dataclass(frozen=True)
class Times:
    """Of one call [s]: median, and the 10th and 90th percentile of the samples."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Ceilings:
    """What the GPU reached with plain work.

    Args:
        copy: reading and writing [bytes/s, both counted]
        read: only reading [bytes/s]
        write: only writing [bytes/s]
        matmul: products of random bfloat16 matrices [flop/s]
        node: the smallest kernel, one after the other [s]
    """

    copy: float
    read: float
    write: float
    matmul: float
    node: float


def samples(call: Callable[[], Any], calls: int, number: int) -> Times:
    """Time of one of the `calls` that `call()` makes; it is run twice before the first sample."""
    for _ in range(2):
        jax.block_until_ready(call())
    found = []
    for _ in range(number):
        start = time.perf_counter()
        jax.block_until_ready(call())
        found.append((time.perf_counter() - start) / calls)
    low, median, high = np.percentile(found, [10, 50, 90])
    return Times(float(median), float(low), float(high))


def compiled(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """`jax.jit`, compiled for these arguments; as a CUDA graph on a GPU."""
    graph = GRAPH if jax.default_backend() == "gpu" else None
    return jax.jit(function, **options).lower(*arguments).compile(compiler_options=graph)


def case_times(cases: Sequence[Case], step: Callable[..., Any], number: int) -> Times:
    """Time of `step(fixed, state)`, called on one case after the other; state is taken over."""
    fixed = [case.fixed for case in cases]
    state = jax.tree.map(jnp.copy, [case.state for case in cases])

    def all_of_them(fixed: Any, state: Any) -> Any:
        pairs = [step(f, s) for f, s in zip(fixed, state, strict=True)]
        return [out for out, _ in pairs], [s for _, s in pairs]

    program = compiled(all_of_them, fixed, state, donate_argnums=1)

    def call() -> Any:
        nonlocal state
        out, state = program(fixed, state)
        return out, state

    return samples(call, len(cases), number)


def correctness(case: Case, run: Run) -> tuple[float, bool]:
    """Of a kernel's output: its error, and whether two runs give the same bits.

    The error is the largest difference from the plain formula in float64, over its largest
    magnitude.
    """
    program = jax.jit(lambda fixed, state: case.kernel(run, fixed, state)[0])
    first, second = (np.asarray(program(case.fixed, case.state)) for _ in range(2))
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):

        def exact(x: Any) -> Any:
            x = np.asarray(x)
            return jnp.asarray(x if x.dtype.kind == "i" else x.astype(np.float64))

        expected, _ = case.plain(*jax.tree.map(exact, (case.fixed, case.state)))
        expected = np.asarray(expected)
    difference = np.abs(first.astype(np.float64) - expected).max()
    same = first.tobytes() == second.tobytes()
    return float(difference / np.abs(expected).max()), same


def ceilings(
    run: Run, number: int, *, size: int = 1 << 30, width: int = 8192, nodes: int = 100
) -> Ceilings:
    """Measure them.

    Args:
        run: who runs kernels
        number: of samples
        size: of the array that is read and written [bytes]
        width: of the matrices that are multiplied
        nodes: pairs of kernels that follow one another
    """
    array = jax.random.bits(jax.random.key(0), (size // 4,), jnp.uint32)
    matrix = jax.random.normal(jax.random.key(1), (width, width), jnp.bfloat16)

    def median(function: Callable[..., Any], *arguments: Any, calls: int = 1) -> float:
        program = compiled(function, *arguments)
        return samples(lambda: program(*arguments), calls, number).median

    def chain(x: Any, w: Any) -> Any:
        for _ in range(nodes):
            x = projection(run, x, w, x)
        return x

    wide = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    tiny = jnp.zeros((1, 64), wide), jnp.zeros((64, 64), wide)
    return Ceilings(
        copy=2 * size / median(lambda x: x + jnp.uint32(1), array),
        read=size / median(lambda x: jnp.max(x), array),
        write=size / median(lambda x: jnp.full((size // 4,), x), jnp.uint32(1)),
        matmul=2 * width**3 / median(lambda a: a @ a, matrix),
        node=median(chain, *tiny, calls=2 * nodes),
    )
