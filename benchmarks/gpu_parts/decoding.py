"""Parts slice, model, batches and prefill: the real decode loop on random weights."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from benchmarks.gpu_parts.context import CheckContext, raise_if
from benchmarks.gpu_parts.environment import memory
from benchmarks.random_weights_loop import (
    RandomWeightsLoop,
    logit_gap,
    logit_gap_program,
    make_thinking,
    required_bytes,
)
from kernels.benchmarking.program import Program
from kernels.shapes import layer_work, step_work

#: Largest accepted gap between XLA's highest logit and that of Triton's token, in standard
#: deviations of the logits. bfloat16 rounding gave 0.01 on a CPU; a random token is about 4 away.
LARGEST_GAP = 0.25
#: Prompt lengths of the slice [tokens]: a page is 64.
PROMPT_LENGTHS = (1, 63, 64, 130)
#: Decode steps of the slice.
SLICE_STEPS = 64
#: Prefills in sequence, to let the host run ahead of the device.
PREFILLS = 4


# --- slice ----------------------------------------------------------------------------------


def slice_programs(ctx: CheckContext) -> Iterator[Program]:
    """Weights, prefill, decode steps in three forms, and XLA's logits of their output."""
    loop, rows = _slice_loop(ctx), len(PROMPT_LENGTHS)
    yield from loop.draw_programs()
    yield loop.prefill_program(rows, max(PROMPT_LENGTHS))
    yield loop.decode_program(ctx.impl, SLICE_STEPS, ctx.without_graph)
    yield loop.decode_program(ctx.impl, SLICE_STEPS)
    yield loop.decode_program("xla", SLICE_STEPS)
    yield logit_gap_program(loop, rows, max(PROMPT_LENGTHS) + SLICE_STEPS, SLICE_STEPS)


def slice_(ctx: CheckContext) -> None:
    """A few layers, with forcing and Waits: without graph = as graph = XLA, and the times of all.

    Runs without a graph first, to load no kernel while a graph is captured.
    """
    add, problems = ctx.facts.add, []
    loop = _slice_loop(ctx).fill()
    prompts = slice_prompts()
    loop.prefill(prompts)
    plain, took = loop.decode_program(ctx.impl, SLICE_STEPS, ctx.without_graph).compile_timed()
    free = loop.call(plain, loop.insert(prompts, [make_thinking()] * len(prompts)))
    # the token that ends thinking is one that the model generates
    ends = [int(ids[20]) for ids in free.token_NB.T]
    waits = [
        make_thinking(budget=48, waits=2, end=ends[2]),
        make_thinking(budget=40, waits=1, end=ends[3]),
    ]
    state = loop.insert(prompts, [make_thinking(), make_thinking(budget=24), *waits])
    output = loop.call(plain, state)
    forced = int(output.forced_NB.sum())
    add("slice without graph", **took, tokens=int(output.token_NB.size), forced=forced)
    problems += [] if forced else ["nothing was forced"]

    start = time.perf_counter()
    graph, launches = loop.compile_decode(ctx.impl, SLICE_STEPS)
    compiled = time.perf_counter() - start
    runs, different = three_runs(loop, graph, state)
    same = bool((runs[0] == output.token_NB).all())
    add("slice as graph", compile_s=compiled, launches=launches, same_as_without_graph=same,
        three_runs_equal=not different)  # fmt: skip
    problems += different + ([] if same else ["tokens with and without a graph differ"])
    if ctx.on_gpu and launches and ("kWhile" in launches or "kCommandBuffer" not in launches):
        problems.append(f"the loop is no CUDA graph: {launches}")

    gap = logit_gap(loop, prompts, output)
    add("slice against XLA's logits", largest_gap=gap, passed=gap <= LARGEST_GAP)
    problems += [] if gap <= LARGEST_GAP else [f"logit gap {gap:.3f} above {LARGEST_GAP}"]
    xla, took = loop.decode_program("xla", SLICE_STEPS).compile_timed()
    of_xla = loop.call(xla, state)
    add("slice on XLA", **took, equal_tokens=float((of_xla.token_NB == output.token_NB).mean()))
    programs = {"as graph": graph, "without graph": plain, "XLA": xla}
    for name, seconds in _take_turns(ctx, loop, programs, state).items():
        add(f"slice step {name}", batch=len(prompts), layers=ctx.slice_layers, **seconds)
    raise_if(problems)


def three_runs(loop: Any, program: Any, state: Any) -> tuple[list[np.ndarray], list[str]]:
    """Tokens of three runs of the same steps, and a message if they differ."""
    runs = [loop.call(program, state).token_NB for _ in range(3)]
    same = all((run == runs[0]).all() for run in runs)
    return runs, [] if same else ["three runs generated different tokens"]


def slice_prompts() -> list[list[int]]:
    """Random ids of several lengths."""
    rng = np.random.default_rng(0)
    return [rng.integers(20, 300, n).tolist() for n in PROMPT_LENGTHS]


def _slice_loop(ctx: CheckContext) -> RandomWeightsLoop:
    a, rows = ctx.slice_of(ctx.slice_layers), len(PROMPT_LENGTHS)
    return RandomWeightsLoop(a, ctx.device, ctx.dtype, rows=rows, context=256)


def _take_turns(ctx: CheckContext, loop: RandomWeightsLoop, programs: Any, state: Any) -> Any:
    """Seconds of a step in each program, median and least; programs take turns."""
    taken: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(ctx.samples + 1):
        for name, program in programs.items():
            start = time.perf_counter()
            count = loop.call(program, state).count
            taken[name].append((time.perf_counter() - start) / int(count))
    # the first warms up
    return {name: {"median_s": float(np.median(v[1:])), "least_s": min(v[1:])}
            for name, v in taken.items()}  # fmt: skip


# --- model and batches ----------------------------------------------------------------------


def model_programs(ctx: CheckContext) -> Iterator[Program]:
    """The complete model's weights and decode steps at the smallest batch."""
    yield from step_programs(ctx, ctx.batches[0], ctx.context, ctx.decode_steps)


def model(ctx: CheckContext) -> None:
    """A step of the complete model, forced and unforced, in calls of two numbers of steps.

    The slope over the number of steps is the time of a step without the cost of a call.
    """
    batch, (low, high) = ctx.batches[0], ctx.decode_steps
    medians = time_steps(ctx, batch, ctx.context, ctx.decode_steps)
    for name in medians[low]:
        slope = (medians[high][name] * high - medians[low][name] * low) / (high - low)
        once = low * (medians[low][name] - slope)
        ctx.facts.add(f"slope, batch {batch}, {name}", step_s=slope, per_call_s=once)


def batches_programs(ctx: CheckContext) -> Iterator[Program]:
    """The complete model's weights and decode steps at the larger batches that fit."""
    for batch in ctx.batches[1:]:
        context = fitting_context(ctx, batch)
        if context:
            yield from step_programs(ctx, batch, context, ctx.decode_steps[:1])


def batches(ctx: CheckContext) -> None:
    """Steps of the complete model at larger batches, at the longest context that fits."""
    problems = []
    for batch in ctx.batches[1:]:
        context = fitting_context(ctx, batch)
        if not context:
            needed = required_bytes(ctx.architecture, ctx.dtype, rows=batch, context=64)
            ctx.facts.add(f"batch {batch} does not fit", needed_bytes=needed,
                          free_bytes=ctx.free_bytes())  # fmt: skip
            problems.append(
                f"batch {batch} needs {needed / 1e9:.0f} GB of {ctx.free_bytes() / 1e9:.0f}; "
                "give --model qwen2.5-7b"
            )
        elif ctx.is_late():
            ctx.facts.add(f"batch {batch} skipped", deadline_s=ctx.deadline)
        else:
            time_steps(ctx, batch, context, ctx.decode_steps[:1])
    raise_if(problems)


def fitting_context(ctx: CheckContext, batch: int) -> int:
    """The timed context, halved until it fits; 0 if not even a page fits."""
    context, steps = ctx.context, max(ctx.decode_steps)
    while context >= 64:
        need = required_bytes(ctx.architecture, ctx.dtype, rows=batch, context=context + steps)
        if need <= ctx.free_bytes():
            return context
        context //= 2
    return 0


def time_steps(
    ctx: CheckContext, batch: int, context: int, decode_steps: Sequence[int], linear: str = "xla"
) -> dict[int, dict[str, float]]:
    """Median seconds of a step by steps per call, forced and unforced, taking turns."""
    loop = _model_loop(ctx, batch, context, decode_steps, linear)
    label = f"batch {batch}" if linear == "xla" else f"{linear}, batch {batch}"
    start = time.perf_counter()
    loop.fill()
    ctx.facts.add(f"model filled, {label}", seconds=time.perf_counter() - start,
                  context=context, required_bytes=required_bytes(
                      ctx.architecture, ctx.dtype, rows=batch, context=loop.context,
                      linear=linear),
                  **memory(ctx.device))  # fmt: skip
    prompts = [[1] * context] * batch
    thinking = {"unforced": [make_thinking()] * batch, "forced": [make_thinking(budget=8)] * batch}
    states = {name: loop.insert(prompts, each) for name, each in thinking.items()}
    if not ctx.loads_in_graphs:
        _load_kernels(ctx, loop)
    shape = dataclasses.replace(ctx.shape, weight_bytes=1) if linear == "int8" else ctx.shape
    medians = {}
    for steps in decode_steps:
        program, took = loop.decode_program(ctx.impl, steps).compile_timed()
        taken: dict[str, list[float]] = {name: [] for name in states}
        # the first two of each warm up; longer calls, of more steps or rows, need fewer repetitions
        is_short = steps == min(decode_steps) and batch == ctx.batches[0]
        for _ in range(2 + ((ctx.samples + 1) // 2 if is_short else 3)):
            for name, state in states.items():
                start = time.perf_counter()
                output = loop.call(program, state)
                taken[name].append((time.perf_counter() - start) / steps)
                if output.count != steps or output.forced_NB.any() != (name == "forced"):
                    raise RuntimeError(
                        f"{name}: {output.count} steps instead of {steps}, or wrong forcing"
                    )
        medians[steps] = {name: float(np.median(values[2:])) for name, values in taken.items()}
        # the average context of the steps
        work = step_work(shape, batch, context + steps // 2)
        ctx.facts.add(f"step, {label}, decode_steps {steps}", batch=batch, context=context,
                      weights=linear, steps=steps, bytes=work.bytes, **took,
                      first_s=taken["unforced"][0] * steps,
                      **{f"{name}_s": value for name, value in medians[steps].items()},
                      **memory(ctx.device))  # fmt: skip
    return medians


def step_programs(
    ctx: CheckContext, batch: int, context: int, decode_steps: Sequence[int], linear: str = "xla"
) -> Iterator[Program]:
    """The programs of `time_steps`."""
    loop = _model_loop(ctx, batch, context, decode_steps, linear)
    yield from loop.draw_programs()
    for steps in decode_steps:
        yield loop.decode_program(ctx.impl, steps)


def _model_loop(
    ctx: CheckContext, batch: int, context: int, decode_steps: Sequence[int], linear: str
) -> RandomWeightsLoop:
    return RandomWeightsLoop(ctx.architecture, ctx.device, ctx.dtype, rows=batch,
                             context=context + max(decode_steps), linear=linear)  # fmt: skip


def _load_kernels(ctx: CheckContext, loop: RandomWeightsLoop) -> None:
    """Load the model's kernels outside of a graph, with one layer; all layers use the same."""
    rows, linear = loop.rows, loop.model.build.linear
    one = RandomWeightsLoop(ctx.slice_of(1), ctx.device, ctx.dtype, rows=rows,
                            context=loop.context, linear=linear).fill()  # fmt: skip
    program = one.decode_program(ctx.impl, 2, ctx.without_graph).compile()
    one.call(program, one.insert([[1] * (loop.context - 2)] * rows, [make_thinking()] * rows))
    ctx.facts.add(f"kernels loaded outside of a graph, {linear}, batch {rows}")


# --- prefill --------------------------------------------------------------------------------


def prefill_programs(ctx: CheckContext) -> Iterator[Program]:
    """Weights of the slice, and a prompt of each length."""
    loop = _prefill_loop(ctx)
    yield from loop.draw_programs()
    for tokens in ctx.prompt_tokens:
        yield loop.prefill_program(1, tokens)


def prefill(ctx: CheckContext) -> None:
    """Tokens per second of prompts, on the slice."""
    loop = _prefill_loop(ctx).fill()
    for tokens in ctx.prompt_tokens:
        program, took = loop.prefill_program(1, tokens).compile_timed()
        ids_BT = np.random.default_rng(0).integers(20, 300, (1, tokens)).astype(np.int32)
        positions_BT = np.arange(tokens, dtype=np.int32)[None]

        def run(program: Any = program, ids: Any = ids_BT, positions: Any = positions_BT) -> None:
            for _ in range(PREFILLS):
                loop.cache = program(loop.params, loop.cache, ids, positions, loop.table_BM)
            jax.block_until_ready(loop.cache)

        run()
        taken = []
        for _ in range(ctx.samples):
            start = time.perf_counter()
            run()
            taken.append((time.perf_counter() - start) / PREFILLS)
        seconds = float(np.median(taken))
        # causal attention sees half of the prompt on average; the head is not run
        flops = tokens * ctx.slice_layers * layer_work(ctx.shape, 1, tokens // 2).flops
        ctx.facts.add(f"prefill of {tokens} tokens", tokens=tokens, layers=ctx.slice_layers, **took,
                      seconds=seconds, flops=flops,
                      tokens_per_s_of_all_layers=tokens / seconds * ctx.slice_layers
                      / ctx.architecture.num_layers)  # fmt: skip


def _prefill_loop(ctx: CheckContext) -> RandomWeightsLoop:
    a = ctx.slice_of(ctx.slice_layers)
    longest = max(ctx.prompt_tokens)
    return RandomWeightsLoop(a, ctx.device, ctx.dtype, rows=1, context=longest)
