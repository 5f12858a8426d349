"""Compile the real train step ahead of time and collect what the compiler reports."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from jaxs1.data.packing import Batch
from jaxs1.model.sharding import local_bytes
from jaxs1.model.transformer import Transformer
from jaxs1.planning.flops import expert_flops, product_flops
from jaxs1.planning.hlo import Collective, collectives, count_launches
from jaxs1.planning.targets import Target
from jaxs1.planning.topology import tracing_for
from jaxs1.training.step import (
    Loss,
    abstract_state,
    batch_sharding,
    make_train_step,
    supervised_loss,
)

#: XLA limits programs to about 77 % of a GPU's memory, by recomputation and by giving up overlap
#: with communication; this allows nearly all of it. Training sets the same flag in XLA_FLAGS.
GPU_OPTIONS = {"xla_gpu_memory_limit_slop_factor": "112"}


#: Dtypes in the place of the arrays of a batch of supervised training.
SUPERVISED = Batch("int32", "int32", "float32", "int32", "int32")

T = TypeVar("T")


class CompiledProgram(NamedTuple):
    """A program compiled for one device.

    Args:
        executable: result of JAX's `compile`
        text: optimized HLO
        launches: number of launches by the host for one run, by kind; empty except on GPUs
    """

    executable: Any
    text: str
    launches: dict[str, int]


@dataclass(frozen=True)
class TrainProgram:
    """What the compiler reports of one train step on one device; sizes in bytes.

    Args:
        parameters: trained and frozen weights
        optimizer: moments
        batch: token ids, segments, targets
        temporaries: activations, gradients and everything else that lives within a step
        peak: all of these together
        products: FLOPs of matrix products, recomputed ones included, fused attention excluded
        collectives: exchanges by kind
        refusal: the compiler's reason if it refused a program that does not fit
    """

    parameters: float
    optimizer: float
    batch: float
    temporaries: float
    peak: float
    products: float
    collectives: dict[str, Collective] = field(default_factory=dict)
    refusal: str | None = None


def compile_step(
    model: Transformer,
    optimizer: optax.GradientTransformation,
    target: Target,
    *,
    gradient_accumulation_steps: int,
    rows: int,
    length: int,
    loss_chunk: int,
    kinds: Any = SUPERVISED,
    loss: Loss = supervised_loss,
) -> TrainProgram:
    """Compile the train step of `jaxs1.train`, or with another loss that of `jaxs1.grpo`.

    Args:
        model: abstract, with sharding rules over the target's devices
        optimizer: from `make_optimizer`
        target: accelerators that the model's devices belong to
        gradient_accumulation_steps: micro-batches of a step
        rows: rows of a micro-batch, over all devices
        length: length of a row [tokens]
        loss_chunk: see `loss.supervised_loss`
        kinds: dtypes in the place of a batch's arrays
        loss: loss of a micro-batch
    """
    state = abstract_state(model, optimizer)
    shape = (gradient_accumulation_steps, rows, length)
    batch = abstract_batch(kinds, shape, model)
    with tracing_for(target):
        step: Any = make_train_step(model, optimizer, loss_chunk=loss_chunk, loss=loss)
        traced = step.trace(state, batch)
        lowered = traced.lower()
    sizes: dict[str, Any] = {
        "parameters": local_bytes((state.params, state.frozen)),
        "optimizer": local_bytes(state.opt_state),
        "batch": local_bytes(batch),
    }
    devices, tokens = model.rules.mesh.size, gradient_accumulation_steps * rows * length
    products = product_flops(traced.jaxpr, devices) + expert_flops(model, tokens) / devices
    platform = target.accelerator.platform
    try:
        program = compile_program(lowered, platform, GPU_OPTIONS if platform == "gpu" else {})
    except jax.errors.JaxRuntimeError as error:
        temporaries = _refused_bytes(str(error))
        if temporaries is None:
            raise
        peak = sum(sizes.values()) + temporaries
        reason = str(error).split("\n")[0]
        return TrainProgram(
            **sizes, temporaries=temporaries, peak=peak, products=products, refusal=reason
        )
    memory = program.executable.memory_analysis()
    peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    peak += memory.output_size_in_bytes - memory.alias_size_in_bytes
    return TrainProgram(
        **sizes,
        temporaries=memory.temp_size_in_bytes,
        peak=peak,
        products=products,
        collectives=collectives(program.text),
    )


def abstract_batch(kinds: T, shape: tuple[int, int, int], model: Transformer) -> T:
    """Shapes and shardings of a batch, from the dtypes of its arrays.

    Args:
        kinds: a batch with dtypes in the place of arrays
        shape: micro-batches, rows, tokens
        model: with sharding rules over the devices
    """
    where = batch_sharding(model.rules)
    return jax.tree.map(
        lambda kind: jax.ShapeDtypeStruct(shape, jnp.dtype(kind), sharding=where), kinds
    )


def compile_program(
    lowered: Any, platform: str, options: dict[str, str] | None = None
) -> CompiledProgram:
    """Compile a lowered program and read its text and, on GPUs, the launches of the host.

    XLA reports some of this only in files that it writes for debugging: the launches on a GPU, and
    the text on a TPU, where `as_text()` fails on asynchronous operations. Where it writes none (a
    program from the persistent cache), the launches are empty and the text is `as_text()`.

    Args:
        lowered: result of JAX's `lower`
        platform: cpu, gpu or tpu
        options: compiler options
    """
    if platform == "cpu":
        executable = lowered.compile(compiler_options=options)
        return CompiledProgram(executable, executable.as_text(), {})
    dump: dict[str, Any] = {"xla_dump_hlo_as_text": True} if platform == "tpu" else {}
    with tempfile.TemporaryDirectory() as folder:
        settings = {**(options or {}), **dump, "xla_dump_to": folder}
        executable = lowered.compile(compiler_options=settings)
        if platform == "tpu":
            text = _dumped(folder, "*.after_optimizations.txt")
            return CompiledProgram(executable, text or executable.as_text(), {})
        launches = count_launches(_dumped(folder, "*thunk_sequence_after_thunk_passes.txt"))
        return CompiledProgram(executable, executable.as_text(), launches)


def _dumped(folder: str, pattern: str) -> str:
    """Text of the file that XLA wrote, empty if there is none."""
    return next((path.read_text() for path in Path(folder).glob(pattern)), "")


def _refused_bytes(message: str) -> float | None:
    """Temporary memory that a refused TPU program needs; None if memory is not the reason."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    found = re.search(r"HLO temporaries \(([\d.]+)([KMGT])\)", message)
    found = found or re.search(r"Used ([\d.]+)([KMGT]) of", message)
    return float(found[1]) * 1024 ** ("KMGT".index(found[2]) + 1) if found else float("inf")
