"""One real train step, compiled for devices that are not here, and what the compiler says of it."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxs1.data.packing import Batch
from jaxs1.model.sharding import local_bytes
from jaxs1.model.transformer import Transformer
from jaxs1.planning.hlo import Collective, collectives
from jaxs1.planning.targets import Target
from jaxs1.planning.topology import tracing_for
from jaxs1.planning.work import product_flops
from jaxs1.training.step import abstract_state, batch_sharding, make_train_step

#: XLA keeps programs under about 77 % of a GPU's memory by computing things again and by giving up
#: the overlap with communication; this lets it use nearly all. Training takes the same flag from
#: XLA_FLAGS.
GPU_OPTIONS = {"xla_gpu_memory_limit_slop_factor": "112"}


@dataclass(frozen=True)
class Compiled:
    """What the compiler says of one step on one device; sizes in bytes.

    Args:
        parameters: trained or frozen
        optimizer: moments
        batch: token ids and so on
        temporaries: activations, gradients and what else lives within a step
        peak: all together
        products: FLOPs of matrix products, recomputed ones included; without fused attention
        collectives: by kind
        refusal: the compiler's reason, where the program does not fit and there is none
    """

    parameters: float
    optimizer: float
    batch: float
    temporaries: float
    peak: float
    products: float
    collectives: dict[str, Collective]
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
) -> Compiled:
    """Compile the step that training would run.

    Args:
        model: abstract, with the rules over the target's devices
        optimizer: from `make_optimizer`
        target: what the model's devices are
        gradient_accumulation_steps: micro-batches of a step
        rows: of a micro-batch, over all devices
        length: of a row [tokens]
        loss_chunk: see `loss.batch_loss`
    """
    state = abstract_state(model, optimizer)
    where = batch_sharding(model.rules)
    kinds = Batch(*(jnp.dtype(kind) for kind in ("int32", "int32", "float32", "int32", "int32")))
    shape = (gradient_accumulation_steps, rows, length)
    batch = jax.tree.map(lambda kind: jax.ShapeDtypeStruct(shape, kind, sharding=where), kinds)
    with tracing_for(target):
        step: Any = make_train_step(model, optimizer, loss_chunk=loss_chunk)
        traced = step.trace(state, batch)
        lowered = traced.lower()
    weights = (state.params, state.frozen)
    sizes: dict[str, Any] = {
        "parameters": local_bytes(weights),
        "optimizer": local_bytes(state.opt_state),
        "batch": local_bytes(batch),
        "products": product_flops(traced.jaxpr, model.rules.mesh.size),
    }
    with _options(target) as (options, read_text):
        try:
            program = lowered.compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            temporaries = _refused_bytes(str(error))
            if temporaries is None:
                raise
            arguments = sizes["parameters"] + sizes["optimizer"] + sizes["batch"]
            return Compiled(
                **sizes,
                temporaries=temporaries,
                peak=arguments + temporaries,
                collectives={},
                refusal=str(error).split("\n")[0],
            )
        text = read_text(program)
    memory = program.memory_analysis()
    peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    peak += memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Compiled(
        **sizes,
        temporaries=memory.temp_size_in_bytes,
        peak=peak,
        collectives=collectives(text),
    )


@contextmanager
def _options(target: Target) -> Iterator[Any]:
    """Compiler options, and how the program's text is got at."""
    if target.accelerator.platform != "tpu":
        options = GPU_OPTIONS if target.accelerator.platform == "gpu" else {}
        yield options, lambda program: program.as_text()
        return
    with tempfile.TemporaryDirectory() as folder:
        # as_text() fails on TPU programs that have asynchronous operations

        def read_text(_: Any) -> str:
            (file,) = Path(folder).glob("*.after_optimizations.txt")
            return file.read_text()

        yield {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}, read_text


def _refused_bytes(message: str) -> float | None:
    """What a TPU program would have needed beside its arguments; None if that is not the reason."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    found = re.search(r"HLO temporaries \(([\d.]+)([KMGT])\)", message)
    found = found or re.search(r"Used ([\d.]+)([KMGT]) of", message)
    return float(found[1]) * 1024 ** ("KMGT".index(found[2]) + 1) if found else float("inf")
