"""Time of a train step by a roofline: each kind of work at a stated share of the peak."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx

from jaxs1.devices import Accelerator
from jaxs1.model import transformer
from jaxs1.model.transformer import Transformer
from jaxs1.planning.flops import expert_flops
from jaxs1.planning.workload import Workload


class Assumptions(NamedTuple):
    """Shares of an accelerator's data sheet that a step reaches.

    Args:
        products: share of the peak FLOP/s in matrix products
        attention: share of the peak FLOP/s in fused attention
        bandwidth: share of the memory's bandwidth in elementwise operations
        overlap: share of the communication that is hidden behind computation
    """

    products: float
    attention: float
    bandwidth: float
    overlap: float


#: Share of the peak in matrix products, set by `benchmarks.calibration` from published runs.
PRODUCTS = {
    "NVIDIA H100 80GB HBM3": 0.64,
    "NVIDIA A100-SXM4-80GB": 0.65,
    "TPU v5": 0.76,
    "TPU v6 lite": 0.56,
}
#: Accelerators without a share of their own, and the ones whose share they take.
SIMILAR = {
    "NVIDIA H200": "NVIDIA H100 80GB HBM3",
    "NVIDIA GeForce RTX 4090": "NVIDIA A100-SXM4-80GB",
    "TPU v5 lite": "TPU v5",
}
#: Shares that published runs do not determine. The overlap is that of the compiled schedule of the
#: 32B on 16 H100.
ATTENTION, BANDWIDTH, OVERLAP = 0.45, 0.8, 0.65
#: Published times relative to their estimates: smallest and largest deviation, by platform.
SPREAD = {"gpu": (-0.25, 0.39), "tpu": (-0.16, 0.02)}


@dataclass(frozen=True)
class TimeEstimate:
    """Seconds of one step.

    Args:
        products: matrix products
        attention: fused attention
        elementwise: norms, rotations, residuals, the gate and the optimizer
        communication: all exchanges between devices
        exposed: the part of the communication that is not hidden behind computation
    """

    products: float
    attention: float
    elementwise: float
    communication: float
    exposed: float

    @property
    def total(self) -> float:
        """Seconds of a step."""
        return self.products + self.attention + self.elementwise + self.exposed


def assumptions_for(accelerator: Accelerator) -> Assumptions:
    """The calibrated assumptions; NaN for a CPU, whose speed is unknown."""
    kind = SIMILAR.get(accelerator.device_kind, accelerator.device_kind)
    return Assumptions(PRODUCTS.get(kind, math.nan), ATTENTION, BANDWIDTH, OVERLAP)


def estimate_flops(model: Transformer, padded_tokens: float) -> float:
    """FLOPs of the matrix products of a step on all devices, recomputed ones included.

    Args:
        model: abstract
        padded_tokens: tokens of a step, padding included
    """
    a, remat = model.architecture, model.compute.remat
    D, L = a.hidden_size, a.num_layers
    F, router = (a.intermediate_size, 0) if a.experts is None else (0, D * a.experts.count)
    q, kv = a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim
    mlp = 2 * D * F + router
    again = {"none": 0, "attention": mlp, "full": mlp + 2 * D * (q + kv)}[remat]
    layers = L * (3 * D * F + router + 2 * D * (q + kv))
    backward = 4 if transformer.trained(model) is nnx.Param else 2
    head = (2 + backward) * a.vocab_size * D
    dense = padded_tokens * ((2 + backward) * layers + 2 * L * again + head)
    return dense + expert_flops(model, padded_tokens)


def estimate_received(model: Transformer, workload: Workload, length: float) -> float:
    """Bytes that one device receives in a step: weights, their gradients, parts of sequences.

    Args:
        model: abstract
        workload: rows of a step
        length: length of a row [tokens]
    """
    a, rules = model.architecture, model.rules
    size = jnp.dtype(model.compute.dtype).itemsize
    shards, context, data = rules.size("embed"), rules.size("sequence"), rules.mesh.shape["data"]
    experts = a.expert_parameters / rules.mesh.shape["tensor"] * size
    weights = a.num_parameters / rules.mesh.shape["tensor"] * size - experts
    tokens = workload.rows / rules.size("rows") * length / context
    moved = 2 * (a.num_heads + a.num_kv_heads) * a.head_dim * size * (context - 1) / context
    passes = {"none": 2, "attention": 2.5, "full": 3}[model.compute.remat]
    sequences = tokens * a.num_layers * moved * passes
    tensor = rules.mesh.shape["tensor"]
    reduced = tokens * a.num_layers * 8 * a.hidden_size * size * (tensor - 1) / tensor
    gathers = 3 * weights * (shards - 1) / shards
    replicas = 2 * (weights + experts) / shards * (data - 1) / data  # all-reduce of the gradients
    # experts are gathered along the other axes; their tokens are gathered, summed, and back
    parallel = rules.size("expert")
    others = rules.size("experts") / parallel
    gathers += 3 * experts / parallel * (others - 1) / others
    tokens_moved = tokens * a.num_layers * a.hidden_size * size * 5 * (parallel - 1)
    moved = gathers + sequences + reduced + replicas + tokens_moved
    return workload.gradient_accumulation_steps * moved


def estimate_time(
    model: Transformer,
    accelerator: Accelerator,
    workload: Workload,
    *,
    products: float | None = None,
    received: float | None = None,
    assumptions: Assumptions | None = None,
) -> TimeEstimate:
    """Time of a step of average length.

    Args:
        model: abstract
        accelerator: kind of the devices
        workload: rows and their lengths
        products: FLOPs of matrix products on one device at the average length, from a compiled step
        received: bytes that a device receives at the average length, from a compiled step
        assumptions: shares of the data sheet; None takes the calibrated ones
    """
    share = assumptions or assumptions_for(accelerator)
    a, n = model.architecture, model.rules.mesh.size
    padded_tokens = workload.gradient_accumulation_steps * workload.rows * workload.mean
    if products is None:
        products = estimate_flops(model, padded_tokens) / n
    if received is None:
        received = estimate_received(model, workload, workload.mean)
    size = jnp.dtype(model.compute.dtype).itemsize
    # 4 FLOPs forward and 10 backward (which recomputes the scores), for each pair and unit of width
    per_pair = 4 * a.num_layers * a.num_heads * a.head_dim
    passes = 4.5 if model.compute.remat == "full" else 3.5
    # splash and XLA compute the whole triangle of a row for all segments; XLA's are products
    cudnn = model.compute.attention == "cudnn"
    pairs = workload.pairs if cudnn else padded_tokens * workload.mean / 2
    attention = 0.0 if model.compute.attention == "xla" else per_pair * passes * pairs / n
    # three passes over the operands of norms, rotation, residuals and the gate
    widths = 12 * a.hidden_size + 4 * a.active_width
    touched = 3 * widths * a.num_layers * size * padded_tokens / n
    touched += 28 * a.num_parameters / n  # the optimizer, in float32
    communication = received / accelerator.interconnect_bandwidth if n > 1 else 0.0
    return TimeEstimate(
        products=products / (share.products * accelerator.flops),
        attention=attention / (share.attention * accelerator.flops),
        elementwise=touched / (share.bandwidth * accelerator.bandwidth),
        communication=communication,
        exposed=(1 - share.overlap) * communication,
    )
