"""Time of a train step in closed form: a roofline, each kind of work at a stated share of the peak."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx

from jaxs1.devices import Accelerator
from jaxs1.model import transformer
from jaxs1.model.transformer import Transformer
from jaxs1.planning.workload import Workload

#: Shares of the peak that are assumed: matrix products, fused attention, memory.
PRODUCTS, ATTENTION, BANDWIDTH = 0.63, 0.45, 0.8
#: Share of the communication that hides behind the products, as in the compiled schedule of the
#: 32B on 16 H100.
OVERLAP = 0.65


@dataclass(frozen=True)
class TimeEstimate:
    """Of one step. communication: all of it; of which `OVERLAP` hides behind the rest."""

    products: float
    attention: float
    elementwise: float
    communication: float

    @property
    def total(self) -> float:
        """What a step takes."""
        computing = self.products + self.attention + self.elementwise
        return computing + (1 - OVERLAP) * self.communication


def estimate_flops(model: Transformer, padded_tokens: float) -> float:
    """FLOPs of the matrix products of a step over all devices, recomputed ones included.

    Args:
        model: abstract
        padded_tokens: tokens of a step, padding included
    """
    a, remat = model.architecture, model.compute.remat
    D, F, L = a.hidden_size, a.intermediate_size, a.num_layers
    q, kv = a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim
    again = {"none": 0, "attention": 2 * D * F, "full": 2 * D * F + 2 * D * (q + kv)}[remat]
    layers = L * (3 * D * F + 2 * D * (q + kv))
    backward = 4 if transformer.trained(model) is nnx.Param else 2
    head = (2 + backward) * a.vocab_size * D
    return padded_tokens * ((2 + backward) * layers + 2 * L * again + head)


def estimate_received(model: Transformer, workload: Workload, length: float) -> float:
    """Bytes that one device receives in a step: weights, their gradients, parts of sequences."""
    a, rules = model.architecture, model.rules
    size = jnp.dtype(model.compute.dtype).itemsize
    shared, context = rules.size("embed"), rules.size("sequence")
    weights = a.num_parameters / rules.mesh.shape["tensor"] * size
    tokens = workload.rows / rules.size("rows") * length / context
    moved = 2 * (a.num_heads + a.num_kv_heads) * a.head_dim * size * (context - 1) / context
    passes = {"none": 2, "attention": 2.5, "full": 3}[model.compute.remat]
    sequences = tokens * a.num_layers * moved * passes
    tensor = rules.mesh.shape["tensor"]
    reduced = tokens * a.num_layers * 8 * a.hidden_size * size * (tensor - 1) / tensor
    gathers = 3 * weights * (shared - 1) / shared
    return workload.gradient_accumulation_steps * (gathers + sequences + reduced)


def estimate_time(
    model: Transformer,
    accelerator: Accelerator,
    workload: Workload,
    *,
    products: float | None = None,
    received: float | None = None,
) -> TimeEstimate:
    """Time of a step of average length.

    Args:
        model: abstract
        accelerator: what each device is
        workload: rows and their lengths
        products: FLOPs of matrix products on one device at the average length, from a compiled step
        received: bytes that a device receives in a step of average length, likewise
    """
    a, n = model.architecture, model.rules.mesh.size
    padded_tokens = workload.gradient_accumulation_steps * workload.rows * workload.mean
    if products is None:
        products = estimate_flops(model, padded_tokens) / n
    if received is None:
        received = estimate_received(model, workload, workload.mean)
    size = jnp.dtype(model.compute.dtype).itemsize
    # forward 4 FLOPs a pair and width, backward 10 (it computes the scores again)
    per_pair = 4 * a.num_layers * a.num_heads * a.head_dim
    passes = 4.5 if model.compute.remat == "full" else 3.5
    # splash and XLA compute the whole triangle of a row, whatever its segments; XLA's are products
    seen = (
        workload.pairs if model.compute.attention == "cudnn" else padded_tokens * workload.mean / 2
    )
    attention = 0.0 if model.compute.attention == "xla" else per_pair * passes * seen / n
    # norms, rotation, residuals and the gate read and write about so much, three times over
    touched = (
        3 * (12 * a.hidden_size + 4 * a.intermediate_size) * a.num_layers * size * padded_tokens / n
    )
    touched += 28 * a.num_parameters / n  # the optimizer, in float32
    peak = accelerator.flops
    return TimeEstimate(
        products=products / (PRODUCTS * peak),
        attention=attention / (ATTENTION * peak),
        elementwise=touched / (BANDWIDTH * accelerator.bandwidth),
        communication=received / accelerator.interconnect_bandwidth if n > 1 else 0.0,
    )
