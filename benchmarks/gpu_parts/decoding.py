"""Parts slice, model, batches and prefill: the real decode loop on random weights."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from benchmarks.gpu_parts.context import CheckContext, raise_if
from benchmarks.gpu_parts.environment import memory
from benchmarks.random_weights_loop import (
    RandomWeightsLoop,
    ask,
    logit_gap,
    logit_gap_program,
    required_bytes,
)
from kernels.benchmarking.program import Program
from kernels.shapes import layer_work, step_work

#: A token that Triton chose may be so much less likely than XLA's likeliest, in standard deviations
#: of the logits. Rounding in bfloat16 gave 0.01 on a CPU; a token at random is about 4 away.
LARGEST_GAP = 0.25
#: Prompts of the slice [tokens]: a page is 64.
PROMPT_LENGTHS = (1, 63, 64, 130)
#: Steps of its chunk.
SLICE_STEPS = 64
#: Runs of a prefill that follow one another, so that the host is ahead of the device.
PREFILLS = 4


# --- slice ----------------------------------------------------------------------------------


def slice_programs(ctx: CheckContext) -> Iterator[Program]:
    """Weights, prefill, the chunk in three forms, and XLA's logits of what it wrote."""
    loop, rows = _slice_loop(ctx), len(PROMPT_LENGTHS)
    yield from loop.draw_programs()
    yield loop.prefill_program(rows, max(PROMPT_LENGTHS))
    yield loop.chunk_program(ctx.impl, SLICE_STEPS, ctx.without_graph)
    yield loop.chunk_program(ctx.impl, SLICE_STEPS)
    yield loop.chunk_program("xla", SLICE_STEPS)
    yield logit_gap_program(loop, rows, max(PROMPT_LENGTHS) + SLICE_STEPS, SLICE_STEPS)


def slice_(ctx: CheckContext) -> None:
    """A few layers, with forcing and Waits: without graph = as graph = XLA, and the times of all.

    Without a graph first, so that no kernel is loaded while a graph is captured.
    """
    add, problems = ctx.facts.add, []
    loop = _slice_loop(ctx).fill()
    prompts = slice_prompts()
    loop.prefill(prompts)
    plain, took = loop.chunk_program(ctx.impl, SLICE_STEPS, ctx.without_graph).compile_timed()
    free = loop.call(plain, loop.place(prompts, [ask()] * len(prompts)))
    # what ends a thinking is what the model says there
    ends = [int(ids[20]) for ids in free.token_NB.T]
    waits = [ask(thinking=48, waits=2, end=ends[2]), ask(thinking=40, waits=1, end=ends[3])]
    slots = loop.place(prompts, [ask(), ask(thinking=24), *waits])
    written = loop.call(plain, slots)
    forced = int(written.forced_NB.sum())
    add("slice without graph", **took, tokens=int(written.token_NB.size), forced=forced)
    problems += [] if forced else ["nothing was forced"]

    start = time.perf_counter()
    graph, launches = loop.compile_chunk(ctx.impl, SLICE_STEPS)
    compiled = time.perf_counter() - start
    runs, different = three_runs(loop, graph, slots)
    same = bool((runs[0] == written.token_NB).all())
    add("slice as graph", compile_s=compiled, launches=launches, same_as_without_graph=same,
        three_runs_equal=not different)  # fmt: skip
    problems += different + ([] if same else ["tokens with and without a graph differ"])
    if ctx.on_gpu and launches and ("kWhile" in launches or "kCommandBuffer" not in launches):
        problems.append(f"the loop is no CUDA graph: {launches}")

    gap = logit_gap(loop, prompts, written)
    add("slice against XLA's logits", largest_gap=gap, passed=gap <= LARGEST_GAP)
    problems += [] if gap <= LARGEST_GAP else [f"logit gap {gap:.3f} above {LARGEST_GAP}"]
    xla, took = loop.chunk_program("xla", SLICE_STEPS).compile_timed()
    theirs = loop.call(xla, slots)
    add("slice on XLA", **took, equal_tokens=float((theirs.token_NB == written.token_NB).mean()))
    programs = {"as graph": graph, "without graph": plain, "XLA": xla}
    for name, seconds in _take_turns(ctx, loop, programs, slots).items():
        add(f"slice step {name}", batch=len(prompts), layers=ctx.slice_layers, **seconds)
    raise_if(problems)


def three_runs(loop: Any, program: Any, slots: Any) -> tuple[list[np.ndarray], list[str]]:
    """Tokens of three runs of a chunk, and what is wrong with them."""
    runs = [loop.call(program, slots).token_NB for _ in range(3)]
    same = all((run == runs[0]).all() for run in runs)
    return runs, [] if same else ["three runs wrote different tokens"]


def slice_prompts() -> list[list[int]]:
    """Random ids of several lengths."""
    rng = np.random.default_rng(0)
    return [rng.integers(20, 300, n).tolist() for n in PROMPT_LENGTHS]


def _slice_loop(ctx: CheckContext) -> RandomWeightsLoop:
    a, rows = ctx.slice_of(ctx.slice_layers), len(PROMPT_LENGTHS)
    return RandomWeightsLoop(a, ctx.device, ctx.dtype, rows=rows, context=256)


def _take_turns(ctx: CheckContext, loop: RandomWeightsLoop, programs: Any, slots: Any) -> Any:
    """Seconds of a step in each program: median and least of chunks that take turns."""
    taken: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(ctx.samples + 1):
        for name, program in programs.items():
            start = time.perf_counter()
            count = loop.call(program, slots).count
            taken[name].append((time.perf_counter() - start) / int(count))
    # the first warms up
    return {name: {"median_s": float(np.median(v[1:])), "least_s": min(v[1:])}
            for name, v in taken.items()}  # fmt: skip


# --- model and batches ----------------------------------------------------------------------


def model_programs(ctx: CheckContext) -> Iterator[Program]:
    """The whole model's weights and chunks at the smallest batch."""
    yield from _step_programs(ctx, ctx.batches[0], ctx.context, ctx.chunk_steps)


def model(ctx: CheckContext) -> None:
    """A step of the whole model, forced and unforced, in chunks of two lengths.

    The slope over their steps is a step without what a chunk costs once.
    """
    batch, (low, high) = ctx.batches[0], ctx.chunk_steps
    medians = time_steps(ctx, batch, ctx.context, ctx.chunk_steps)
    for name in medians[low]:
        slope = (medians[high][name] * high - medians[low][name] * low) / (high - low)
        once = low * (medians[low][name] - slope)
        ctx.facts.add(f"slope, batch {batch}, {name}", step_s=slope, chunk_start_s=once)


def batches_programs(ctx: CheckContext) -> Iterator[Program]:
    """The whole model's weights and chunk at the larger batches that fit."""
    for batch in ctx.batches[1:]:
        context = fitting_context(ctx, batch)
        if context:
            yield from _step_programs(ctx, batch, context, ctx.chunk_steps[:1])


def batches(ctx: CheckContext) -> None:
    """Steps of the whole model at larger batches, at the longest context that fits."""
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
            time_steps(ctx, batch, context, ctx.chunk_steps[:1])
    raise_if(problems)


def fitting_context(ctx: CheckContext, batch: int) -> int:
    """The timed context, halved until it fits; 0 where not even a page does."""
    context, steps = ctx.context, max(ctx.chunk_steps)
    while context >= 64:
        need = required_bytes(ctx.architecture, ctx.dtype, rows=batch, context=context + steps)
        if need <= ctx.free_bytes():
            return context
        context //= 2
    return 0


def time_steps(
    ctx: CheckContext, batch: int, context: int, chunk_steps: Sequence[int]
) -> dict[int, dict[str, float]]:
    """Median seconds of a step by chunk length, forced and unforced; chunks take turns."""
    loop = _model_loop(ctx, batch, context, chunk_steps)
    start = time.perf_counter()
    loop.fill()
    ctx.facts.add(f"model filled, batch {batch}", seconds=time.perf_counter() - start,
                  context=context, required_bytes=required_bytes(
                      ctx.architecture, ctx.dtype, rows=batch, context=loop.context),
                  **memory(ctx.device))  # fmt: skip
    prompts = [[1] * context] * batch
    scripts = {"unforced": [ask()] * batch, "forced": [ask(thinking=8)] * batch}
    slots = {name: loop.place(prompts, asked) for name, asked in scripts.items()}
    if not ctx.loads_in_graphs:
        _load_kernels(ctx, batch, context, chunk_steps)
    medians = {}
    for steps in chunk_steps:
        program, took = loop.chunk_program(ctx.impl, steps).compile_timed()
        taken: dict[str, list[float]] = {name: [] for name in slots}
        # the first two of each warm up
        for _ in range(2 + (ctx.samples + 1) // 2):
            for name, begun in slots.items():
                start = time.perf_counter()
                written = loop.call(program, begun)
                taken[name].append((time.perf_counter() - start) / steps)
                if written.count != steps or written.forced_NB.any() != (name == "forced"):
                    raise RuntimeError(f"a chunk of {written.count} steps, {name}: not as asked")
        medians[steps] = {name: float(np.median(values[2:])) for name, values in taken.items()}
        # the context in the middle of the chunk
        work = step_work(ctx.shape, batch, context + steps // 2)
        ctx.facts.add(f"step, batch {batch}, chunk of {steps}", batch=batch, context=context,
                      steps=steps, bytes=work.bytes, **took, first_s=taken["unforced"][0] * steps,
                      **{f"{name}_s": value for name, value in medians[steps].items()},
                      **memory(ctx.device))  # fmt: skip
    return medians


def _step_programs(
    ctx: CheckContext, batch: int, context: int, chunk_steps: Sequence[int]
) -> Iterator[Program]:
    loop = _model_loop(ctx, batch, context, chunk_steps)
    yield from loop.draw_programs()
    for steps in chunk_steps:
        yield loop.chunk_program(ctx.impl, steps)


def _model_loop(
    ctx: CheckContext, batch: int, context: int, chunk_steps: Sequence[int]
) -> RandomWeightsLoop:
    held = context + max(chunk_steps)
    return RandomWeightsLoop(ctx.architecture, ctx.device, ctx.dtype, rows=batch, context=held)


def _load_kernels(ctx: CheckContext, batch: int, context: int, chunk_steps: Sequence[int]) -> None:
    """Load the model's kernels outside of a graph, by one layer of it; all layers have the same."""
    held = context + max(chunk_steps)
    one = RandomWeightsLoop(ctx.slice_of(1), ctx.device, ctx.dtype, rows=batch, context=held).fill()
    program = one.chunk_program(ctx.impl, 2, ctx.without_graph).compile()
    one.call(program, one.place([[1] * context] * batch, [ask()] * batch))
    ctx.facts.add(f"kernels loaded outside of a graph, batch {batch}")


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
