"""Parts kernels, shapes and probe: results of single kernels, and how they may be loaded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu_parts.context import CheckContext, raise_if
from jaxs1.config import one_line
from kernels.bench import KERNELS, LARGEST_ERROR, Bench, checked_context, points
from kernels.benchmarking.cases import make
from kernels.benchmarking.program import Program, as_graph, shapes_on
from kernels.benchmarking.timing import Check, check_of, correctness
from kernels.projection import projection
from kernels.shapes import Shape

#: Width of the probe's matrix: unlike any other kernel's in the check, so it is not loaded yet.
PROBE_WIDTH = 192


def kernels(ctx: CheckContext) -> None:
    """Every kernel at the model's shapes, at the smallest batch."""
    _compare(ctx, _checks(ctx, ctx.shape, ctx.batches[:1], (ctx.context,)))


def kernels_programs(ctx: CheckContext) -> Iterator[Program]:
    """Inputs, kernel and float64 formula of each."""
    for check in _checks(ctx, ctx.shape, ctx.batches[:1], (ctx.context,)).values():
        yield from check.programs


def shapes(ctx: CheckContext) -> None:
    """Every kernel at the larger batches, and at shapes that no tile divides."""
    _compare(ctx, _all_shapes(ctx))


def shapes_programs(ctx: CheckContext) -> Iterator[Program]:
    """As `kernels_programs`."""
    for check in _all_shapes(ctx).values():
        yield from check.programs


def probe(ctx: CheckContext) -> None:
    """Whether a kernel may be loaded while a CUDA graph is captured: jaxlib loads at first use.

    If it may not, the other parts run every kernel outside of a graph first.
    """
    (program,) = probe_programs(ctx)
    x, w, y = (jnp.full(a.shape, value, a.dtype, device=a.sharding)
               for a, value in zip(program.arguments, (1, 1, 0), strict=True))  # fmt: skip
    try:
        found = np.asarray(program.compile()(x, w, y).astype(jnp.float32))
    except Exception as error:
        ctx.facts.add("kernel loaded in a graph", passed=False, error=one_line(error)[:500])
        raise
    right = bool((found == 8 * 64).all())
    ctx.facts.add("kernel loaded in a graph", passed=right, value=float(found.flat[0]))
    raise_if([] if right else [f"a sum of 8 x 64 ones is {found.flat[0]}"])


def probe_programs(ctx: CheckContext) -> Iterator[Program]:
    """A chain of kernels as one CUDA graph."""

    def chain(x: Any, w: Any, y: Any) -> Any:
        for _ in range(8):
            y = projection(ctx.runner, x, w, y)
        return y

    sizes = ((1, 64), (64, PROBE_WIDTH), (1, PROBE_WIDTH))
    given = [shapes_on(ctx.device, jax.ShapeDtypeStruct(s, jnp.dtype(ctx.dtype))) for s in sizes]
    yield Program("probe", jax.jit(chain), given, options=as_graph(ctx.device))


def _all_shapes(ctx: CheckContext) -> dict[tuple[str, int, int], Check]:
    large = _checks(ctx, ctx.shape, ctx.batches[1:], (ctx.context,))
    return large | _checks(ctx, ctx.odd_shape, ctx.odd_batches, ctx.odd_contexts)


def _checks(
    ctx: CheckContext, shape: Shape, batches: tuple[int, ...], contexts: tuple[int, ...]
) -> dict[tuple[str, int, int], Check]:
    """(kernel, batch, context) -> its programs."""
    found = {}
    for name, batch, context in points(Bench(list(KERNELS), batch=[*batches], context=[*contexts])):
        held = checked_context(shape, batch, context)
        case = make(name, shape, batch, held, ctx.dtype)
        found[name, batch, held] = check_of(case, ctx.runner, ctx.device)
    return found


def _compare(ctx: CheckContext, checks: dict[tuple[str, int, int], Check]) -> None:
    problems = []
    for (name, batch, context), check in checks.items():
        where = {"kernel": name, "batch": batch, "context": context}
        try:
            error, same = correctness(check)
        except Exception as failure:  # the other kernels are still checked
            ctx.facts.add(f"kernel {check.case.label}", **where, error=one_line(failure)[:300])
            problems.append(f"{name} at batch {batch}: {one_line(failure)[:100]}")
            continue
        passed = error <= LARGEST_ERROR[ctx.dtype] and same
        ctx.facts.add(f"kernel {check.case.label}", **where, difference=error, repeatable=same,
                      passed=passed)  # fmt: skip
        if not passed:
            problems.append(
                f"{name} at batch {batch}, context {context}: differs from float64 by {error:.1e} "
                f"of the largest value (at most {LARGEST_ERROR[ctx.dtype]:.0e})"
                + ("" if same else ", and two runs differ")
            )
    raise_if(problems)
