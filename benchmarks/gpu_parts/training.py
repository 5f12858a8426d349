"""Part training: a step of a few layers at the model's width, on packed rows, with its MFU.

The step is training's own: AdamW in float32, products in bfloat16, fused attention on packed
sequences. FLOPs are those of `Architecture.train_flops`: six for each matrix parameter and token,
and 12 x heads x head width for each pair of tokens that causal attention sees; recomputation is not
counted.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from benchmarks.gpu_parts.context import CheckContext, raise_if
from benchmarks.gpu_parts.environment import memory
from benchmarks.random_weights_loop import draw_programs, fill_weights, weight_shapes
from jaxs1.config import one_line
from jaxs1.data import packing
from jaxs1.data.chat import Example
from jaxs1.data.packing import Batch
from jaxs1.model import transformer
from jaxs1.model.config import ComputeConfig, MeshConfig
from jaxs1.model.sharding import make_sharding_rules
from jaxs1.planning.targets import ACCELERATORS
from jaxs1.training.config import OptimizerConfig
from jaxs1.training.loss import supervised_loss
from jaxs1.training.optimizer import make_optimizer
from jaxs1.training.step import (
    abstract_state,
    batch_sharding,
    init_state,
    make_train_step,
    put_batch,
)
from kernels.benchmarking.program import Program

#: What the backward pass recomputes, the fastest policy last: it needs the most memory.
REMATS = ("full", "attention", "none")
#: Lengths of the sequences of a packed row, as fractions of it.
SHARES = (0.4, 0.3, 0.2, 0.1)
#: Largest relative difference of the two attentions' losses: bfloat16 rounding, averaged.
LARGEST_LOSS_DIFFERENCE = 5e-4
#: The same for gradients of the attention's matrices, whose rounding errors do not average out.
LARGEST_GRADIENT_DIFFERENCE = 0.1
LOSS_CHUNK = 2048


def training_programs(ctx: CheckContext) -> Iterator[Program]:
    """Weights, a step with each policy, loss and gradient with each attention."""
    model = _model(ctx, REMATS[0], ctx.attention)
    yield from draw_programs(_params(model))
    for remat in REMATS:
        yield _step_program(ctx, _model(ctx, remat, ctx.attention))
    for attention in (ctx.attention, "xla"):
        yield _gradient_program(ctx, _model(ctx, "attention", attention))


def training(ctx: CheckContext) -> None:
    """Loss and gradient against XLA's attention; then seconds and MFU of a step."""
    problems = []
    params = random_params(ctx)
    try:
        problems += compare_attention(ctx, params)
    except Exception as error:  # the steps are still timed
        problems.append(f"comparison with XLA's attention: {one_line(error)[:300]}")
    optimizer = make_optimizer(OptimizerConfig(), steps=100)
    state = init_state(_model(ctx, REMATS[0], ctx.attention), optimizer, params)
    del params
    for remat in REMATS:
        if ctx.is_late():
            ctx.facts.add(f"training step {remat} skipped", deadline_s=ctx.deadline)
            continue
        try:
            state = _time_step(ctx, remat, state)
        except Exception as error:  # if out of memory, nothing was donated yet
            problems.append(f"remat {remat}: {one_line(error)[:300]}")
            ctx.facts.add(f"training step, remat {remat}", error=one_line(error)[:300])
            if any(x.is_deleted() for x in jax.tree.leaves(state)):
                break
    raise_if(problems)


def packed_batch(vocabulary: int, tokens: int) -> tuple[Batch, list[int]]:
    """One row of `tokens` random ids in several sequences, and their lengths."""
    lengths = [int(share * tokens) for share in SHARES[1:]]
    lengths.append(tokens - sum(lengths))
    rng = np.random.default_rng(0)
    examples = [
        Example(rng.integers(0, vocabulary, n).astype(np.int32), np.arange(n) > 0) for n in lengths
    ]
    contents = packing.plan(lengths, 1)
    batch = packing.pack(
        examples, contents, tokens, gradient_accumulation_steps=1, loss="token", padding_id=0
    )
    return batch, lengths


def random_params(ctx: CheckContext) -> Any:
    """Weights that preserve the scale of their inputs, so attention has an effect."""
    return fill_weights(_params(_model(ctx, REMATS[0], ctx.attention)))


def _params(model: transformer.Transformer) -> Any:
    return weight_shapes(transformer.parameters(model), transformer.shardings(model))


def _model(ctx: CheckContext, remat: Any, attention: Any) -> transformer.Transformer:
    rules = make_sharding_rules(MeshConfig(fsdp=1), [ctx.device])
    dtype: Any = ctx.dtype
    compute = ComputeConfig(
        dtype=dtype, remat=remat, attention=attention, loss_chunk=LOSS_CHUNK, scan_layers=True
    )
    return transformer.abstract(ctx.slice_of(ctx.train_layers), compute, rules, max_segments=8)


def _step_program(ctx: CheckContext, model: transformer.Transformer) -> Program:
    optimizer = make_optimizer(OptimizerConfig(), steps=100)
    state = abstract_state(model, optimizer)
    batch, _ = packed_batch(model.architecture.vocab_size, ctx.train_tokens[0])
    with ctx.tracing():
        step: Any = make_train_step(model, optimizer, loss_chunk=LOSS_CHUNK)
    name = f"training step, remat {model.compute.remat}"
    return Program(name, _Traced(step, ctx), (state, _on_device(batch, model)))


def _gradient_program(ctx: CheckContext, model: transformer.Transformer) -> Program:
    """(params, batch) -> loss, gradients of the attention's matrices."""

    def loss(params: Any, batch: Batch) -> Any:
        micro = Batch(*(x[0] for x in batch))
        network = transformer.with_parameters(model, params)
        return supervised_loss(network, micro, chunk=LOSS_CHUNK)[0]

    def with_gradient(params: Any, batch: Batch) -> Any:
        value, grads = jax.value_and_grad(loss)(params, batch)
        return value, {name: grads["layers"]["attn"][name]["kernel"] for name in "qkvo"}

    batch, _ = packed_batch(model.architecture.vocab_size, ctx.train_tokens[1])
    name = f"loss and gradient, {model.compute.attention} attention"
    return Program(
        name, _Traced(jax.jit(with_gradient), ctx), (_params(model), _on_device(batch, model))
    )


class _Traced:
    """A jitted function that is traced as on its device, which may be absent."""

    def __init__(self, function: Any, ctx: CheckContext):
        self.function, self.ctx = function, ctx

    def lower(self, *arguments: Any) -> Any:
        """The function's lowering, in the tracing context."""
        with self.ctx.tracing():
            return self.function.lower(*arguments)


def _on_device(batch: Batch, model: transformer.Transformer) -> Batch:
    where = batch_sharding(model.rules)
    return Batch(*(jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where) for x in batch))


def compare_attention(ctx: CheckContext, params: Any) -> list[str]:
    """Compare loss and gradients of the attention's matrices with XLA's; returns problems."""
    found = {}
    for attention in (ctx.attention, "xla"):
        model = _model(ctx, "attention", attention)
        program, took = _gradient_program(ctx, model).compile_timed()
        batch, _ = packed_batch(model.architecture.vocab_size, ctx.train_tokens[1])
        value, grads = jax.device_get(program(params, put_batch(batch, model.rules)))
        ctx.facts.add(f"loss with {attention} attention", tokens=ctx.train_tokens[1],
                      loss=float(value), **took)  # fmt: skip
        found[attention] = float(value), grads
    (loss, grads), (xla_loss, xla_grads) = found[ctx.attention], found["xla"]
    difference = abs(loss - xla_loss) / abs(xla_loss)
    gradient = max(
        float(np.linalg.norm(grads[name] - g) / np.linalg.norm(g)) for name, g in xla_grads.items()
    )
    ctx.facts.add(f"{ctx.attention} against XLA's attention", loss_difference=difference,
                  gradient_difference=gradient)  # fmt: skip
    problems = []
    if not difference <= LARGEST_LOSS_DIFFERENCE:
        problems.append(
            f"losses differ by {difference:.1e}, more than {LARGEST_LOSS_DIFFERENCE:.0e}"
        )
    if not gradient <= LARGEST_GRADIENT_DIFFERENCE:
        problems.append(
            f"gradients differ by {gradient:.1e}, more than {LARGEST_GRADIENT_DIFFERENCE:.0e}"
        )
    return problems


def _time_step(ctx: CheckContext, remat: str, state: Any) -> Any:
    """The state after the timed steps."""
    model = _model(ctx, remat, ctx.attention)
    program, took = _step_program(ctx, model).compile_timed()
    a, tokens = model.architecture, ctx.train_tokens[0]
    host, lengths = packed_batch(a.vocab_size, tokens)
    batch = put_batch(host, model.rules)
    taken, losses = [], []
    for _ in range(2 + max(3, ctx.samples // 2)):
        start = time.perf_counter()
        state, metrics = program(state, batch)
        losses.append(float(metrics.loss))
        taken.append(time.perf_counter() - start)
    seconds = float(np.median(taken[2:]))
    flops = a.train_flops(tokens, sum(n * (n + 1) // 2 for n in lengths))
    peak = next((x.flops for x in ACCELERATORS.values()
                 if x.device_kind == ctx.device.device_kind), None)  # fmt: skip
    ctx.facts.add(f"training step, remat {remat}", remat=remat, tokens=tokens, lengths=lengths,
                  layers=ctx.train_layers, step_s=seconds, flops=flops, peak_flops=peak,
                  mfu=flops / seconds / peak if peak else None,
                  loss=losses[0], last_loss=losses[-1],
                  temporary_bytes=program.memory_analysis().temp_size_in_bytes,
                  **took, **memory(ctx.device))  # fmt: skip
    if not np.isfinite(losses).all():
        raise RuntimeError(f"losses {losses}")
    return state
