"""Timing on a GPU: how long a kernel takes, and what the hardware can reach.

A sample is the wall time of one compiled program that makes many calls, divided by their number.
Starting a program and waiting for its end takes the host 50 to 150 us, so a program makes enough
calls to run for `LEAST_SECONDS`; it is one CUDA graph, in which a call costs no host time. Calls
cycle through copies of their inputs that are larger than the L2 cache, so inputs come from memory.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from kernels.benchmarking.cases import KernelCase
from kernels.benchmarking.program import Program, as_graph, random_values, shapes_on
from kernels.launch import Run
from kernels.projection import projection
from kernels.xla_call import NO_GRAPH_OPTIONS

#: Copies of a call's inputs hold at least this; the L2 cache of an H100 has 50 MB [bytes].
ROTATED = 256 << 20
#: A timed program runs at least this long, to keep the host's share below 3 % [s].
LEAST_SECONDS = 5e-3
#: Bandwidth that no supported GPU exceeds, for a lower bound of a call's time [bytes/s].
FASTEST_MEMORY = 8e12
#: Iterations of a ceiling's work in one program.
TURNS = 16


@dataclass(frozen=True)
class Times:
    """Times of one call [s]: median, 10th and 90th percentile of the samples."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Ceilings:
    """What the GPU reached on simple work.

    Args:
        copy: rate of reading and writing, both counted [bytes/s]
        read: rate of reading only [bytes/s]
        write: rate of writing only [bytes/s]
        matmul: rate of products of random bfloat16 matrices [flop/s]
        node: time of the smallest kernel in a sequence of them [s]
    """

    copy: float
    read: float
    write: float
    matmul: float
    node: float


def samples(call: Callable[[], Any], calls: float, number: int) -> Times:
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


# --- kernels --------------------------------------------------------------------------------


@dataclass(frozen=True)
class TimedStep:
    """A step over several copies of a case, repeated in one program.

    Args:
        program: (fixed, state) -> outputs, state, of all copies
        copies: number of copies of the case's inputs, with different random numbers
        rounds: iterations over all copies
    """

    program: Program
    copies: int
    rounds: int


def timed_step(
    name: str, case: KernelCase, step: Callable[..., Any], num_bytes: int, device: jax.Device
) -> TimedStep:
    """The program that times `step(fixed, state)` of a case.

    Args:
        name: name of the step
        case: case whose inputs it takes
        step: the kernel, or the plain formula
        num_bytes: least bytes that a call moves
        device: device to compile for
    """
    copies = min(64, max(1, math.ceil(ROTATED / num_bytes)))
    rounds = max(1, math.ceil(LEAST_SECONDS * FASTEST_MEMORY / (num_bytes * copies)))
    one = jax.eval_shape(case.draw, jax.ShapeDtypeStruct((), jnp.int32))
    fixed, state = (shapes_on(device, [tree] * copies) for tree in one)
    function = jax.jit(repeated(step, rounds), donate_argnums=1)
    label = f"{name} of {case.label}, repeated"
    program = Program(label, function, (fixed, state), options=as_graph(device))
    return TimedStep(program, copies, rounds)


def repeated(step: Callable[..., Any], rounds: int) -> Callable[..., Any]:
    """`step` over all cases, `rounds` times.

    The barrier makes a round's inputs opaque to XLA, so no call is hoisted out of the loop or
    eliminated.
    """

    def program(fixed: Any, state: Any) -> Any:
        def over_cases(fixed: Any, state: Any) -> Any:
            pairs = [step(f, s) for f, s in zip(fixed, state, strict=True)]
            return [out for out, _ in pairs], [s for _, s in pairs]

        def one_round(_: Any, carry: Any) -> Any:
            outputs, state = carry
            given, _, state = lax.optimization_barrier((fixed, outputs, state))
            return over_cases(given, state)

        shapes, _ = jax.eval_shape(over_cases, fixed, state)
        outputs = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return lax.fori_loop(0, rounds, one_round, (outputs, state))

    return program


def time_step(timed: TimedStep, inputs: Sequence[tuple[Any, Any]], number: int) -> Times:
    """Seconds of one call of the step; `inputs`, from `draw_inputs`, remain valid."""
    fixed = [f for f, _ in inputs]
    state = jax.tree.map(jnp.copy, [s for _, s in inputs])
    program = timed.program.compile()

    def call() -> Any:
        nonlocal state
        outputs, state = program(fixed, state)
        return outputs, state

    return samples(call, timed.copies * timed.rounds, number)


def input_program(case: KernelCase, device: jax.Device) -> Program:
    """Seed -> a case's inputs, on the device."""
    seed = shapes_on(device, jax.ShapeDtypeStruct((), jnp.int32))
    return Program(f"inputs of {case.label}", jax.jit(case.draw), (seed,))


@functools.cache
def _compiled_inputs(case: KernelCase, device: jax.Device) -> Any:
    return input_program(case, device).compile()


def draw_inputs(case: KernelCase, device: jax.Device, copies: int = 1) -> list[tuple[Any, Any]]:
    """(fixed, state) of a case, in `copies` with different random numbers."""
    program = _compiled_inputs(case, device)
    return [program(np.int32(seed)) for seed in range(copies)]


# --- correctness ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Check:
    """The programs that compare a kernel with float64, all on one device.

    Args:
        case: case to compare
        device: device to compile for
        kernel: (fixed, state) -> output; outside of any CUDA graph, so it also loads the kernel
        exact: (fixed, state) -> output of the plain formula in float64
    """

    case: KernelCase
    device: jax.Device
    kernel: Program
    exact: Program

    @property
    def programs(self) -> tuple[Program, ...]:
        """All programs, including that of the inputs."""
        return input_program(self.case, self.device), self.kernel, self.exact


def check_of(case: KernelCase, run: Run, device: jax.Device) -> Check:
    """The programs for a case."""

    def kernel(fixed: Any, state: Any) -> Any:
        return case.kernel(run, fixed, state)[0]

    def exact(fixed: Any, state: Any) -> Any:
        def wide(x: Any) -> Any:
            return x if jnp.issubdtype(x.dtype, jnp.integer) else x.astype(jnp.float64)

        return case.plain(*jax.tree.map(wide, (fixed, state)))[0]

    given = jax.eval_shape(case.draw, jax.ShapeDtypeStruct((), jnp.int32))
    given = shapes_on(device, given)
    options = NO_GRAPH_OPTIONS if device.platform == "gpu" else None
    return Check(
        case,
        device,
        Program(f"kernel {case.label}", jax.jit(kernel), given, options=options),
        Program(f"float64 {case.label}", jax.jit(exact), given, float64=True),
    )


def correctness(check: Check) -> tuple[float, bool]:
    """The error of a kernel's output, and whether two runs give the same bits.

    The error is the largest difference from the plain formula in float64, divided by the largest
    magnitude.
    """
    (given,) = draw_inputs(check.case, check.device)
    program = check.kernel.compile()
    first, second = (np.asarray(program(*given)) for _ in range(2))
    expected = np.asarray(check.exact.compile()(*given))
    difference = np.abs(first.astype(np.float64) - expected).max()
    same = first.tobytes() == second.tobytes()
    return float(difference / np.abs(expected).max()), same


# --- ceilings -------------------------------------------------------------------------------


@dataclass(frozen=True)
class CeilingWork:
    """Simple work in a loop.

    Args:
        program: state -> state, updated in place
        make: seed -> state
        amount: bytes, FLOPs or kernels of one program
    """

    program: Program
    make: Program
    amount: float


def _read(state: Any) -> Any:
    x, found = state
    return x, jnp.max(x ^ found)


def _copy(state: Any) -> Any:
    x, i = state
    return x + jnp.uint32(1), i


def _write(state: Any) -> Any:
    x, i = state
    return jnp.full(x.shape, i), i + jnp.uint32(1)


def _product(state: Any) -> Any:
    # two products, so that the result can replace the operand
    a, b = state
    return a, a @ (a @ b)


def ceiling_work(
    run: Run, device: jax.Device, *, size: int = 1 << 30, width: int = 8192, nodes: int = 100
) -> dict[str, CeilingWork]:
    """The work of every field of `Ceilings`.

    Args:
        run: runs kernels
        device: device to compile for
        size: size of the array that is read and written [bytes]
        width: width of the matrices that are multiplied
        nodes: number of pairs of kernels in the sequence
    """

    def array(seed: Any) -> Any:
        bits = lax.bitcast_convert_type(random_values(seed, (size // 4,), "float32"), jnp.uint32)
        return bits, jnp.uint32(0)

    def matrices(seed: Any) -> Any:
        # of length about 1, so that products of products stay so
        a = random_values(seed, (width, width), jnp.bfloat16, width**-0.5)
        return a, a

    def tiny(seed: Any) -> Any:
        wide = jnp.bfloat16 if device.platform == "gpu" else jnp.float32
        return jnp.zeros((1, 64), wide) * seed, jnp.zeros((64, 64), wide)

    def chain(state: Any) -> Any:
        x, w = state
        for _ in range(nodes):
            x = projection(run, x, w, x)
        return x, w

    def work(name: str, make: Any, step: Any, amount: float) -> CeilingWork:
        def loop(state: Any) -> Any:
            return lax.fori_loop(0, TURNS, lambda _, s: step(lax.optimization_barrier(s)), state)

        seed = jax.ShapeDtypeStruct((), jnp.int32)
        state = shapes_on(device, jax.eval_shape(make, seed))
        program = Program(
            f"ceiling {name}", jax.jit(loop, donate_argnums=0), (state,), options=as_graph(device)
        )
        inputs = Program(f"inputs of {name}", jax.jit(make), (shapes_on(device, seed),))
        return CeilingWork(program, inputs, TURNS * amount)

    return {
        "copy": work("copy", array, _copy, 2 * size),
        "read": work("read", array, _read, size),
        "write": work("write", array, _write, size),
        "matmul": work("matmul", matrices, _product, 4 * width**3),
        "node": work("node", tiny, chain, 2 * nodes),
    }


def measure_rate(work: CeilingWork, number: int) -> float:
    """Amount per second, by the median of `number` samples."""
    program = work.program.compile()
    state = work.make.compile()(np.int32(0))

    def call() -> Any:
        nonlocal state
        state = program(state)
        return state

    return work.amount / samples(call, 1, number).median


def ceilings(run: Run, device: jax.Device, number: int, **sizes: int) -> Ceilings:
    """Measure them all; `sizes` as for `ceiling_work`."""
    rates = {
        name: measure_rate(work, number)
        for name, work in ceiling_work(run, device, **sizes).items()
    }
    return Ceilings(**{**rates, "node": 1 / rates["node"]})
