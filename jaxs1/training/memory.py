"""Memory of a train step in closed form, accurate to about a tenth and instant.

It decides which layouts are worth compiling, and rejects a run that cannot fit before it starts.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxs1.config import UserError
from jaxs1.data import packing
from jaxs1.data.batches import Batches
from jaxs1.model.architecture import Architecture
from jaxs1.model.sharding import local_bytes
from jaxs1.model.transformer import Transformer
from jaxs1.training.config import TrainConfig
from jaxs1.training.optimizer import make_optimizer
from jaxs1.training.step import TrainState, abstract_state

#: A run is rejected if its estimate exceeds the available memory by more than this factor.
MARGIN = 1.15


@dataclass(frozen=True)
class Memory:
    """Estimated memory of a train step on one device [bytes].

    Args:
        parameters: trained and frozen parameters
        optimizer: optimizer state
        gradients: gradients, twice if they are accumulated
        activations: activations kept for the backward pass
        working: largest temporary buffers
    """

    parameters: float
    optimizer: float
    gradients: float
    activations: float
    working: float

    @property
    def total(self) -> float:
        """Sum of all kinds [bytes]."""
        parts = (self.parameters, self.optimizer, self.gradients, self.activations, self.working)
        return sum(parts)


def estimate_memory(
    model: Transformer,
    state: TrainState,
    *,
    gradient_accumulation_steps: int,
    rows: int,
    length: int,
    loss_chunk: int,
) -> Memory:
    """Estimate the memory of the fullest device.

    Args:
        model: abstract model
        state: shapes or arrays with shardings
        gradient_accumulation_steps: micro-batches per step
        rows: rows per micro-batch
        length: length of the rows [tokens]
        loss_chunk: see `loss.supervised_loss`
    """
    a, compute, mesh = model.architecture, model.compute, model.rules.mesh.shape
    size = jnp.dtype(compute.dtype).itemsize
    D, L, t = a.hidden_size, a.num_layers, mesh["tensor"]
    F = a.intermediate_size if a.experts is None else 0
    q, kv = a.num_heads * a.head_dim / t, a.num_kv_heads * a.head_dim / t
    tokens = rows / model.rules.size("rows") * length / model.rules.size("sequence")
    trained = local_bytes(state.params)
    statistics = 4 * a.num_heads / t * model.max_segments if compute.attention == "cudnn" else 0
    scores = 4 * a.num_heads / t * length / 2 if compute.attention == "xla" else 0  # causal
    kept = {
        "full": D * size,
        "attention": (2 * D + 2 * q + 2 * kv) * size + statistics,
        "none": (5 * D + 4 * q + 4 * kv + 4 * F / t) * size + statistics + scores,
    }[compute.remat]
    layer = 2 * (3 * D * F / t + 2 * D * (q + kv)) * size
    passing = tokens * (5 * F / t + 8 * D) * size + layer
    if a.experts is not None:
        passing += _experts(a, tokens, mesh["expert"], t, size)
    logits = min(tokens, loss_chunk) * a.vocab_size / t * (4 + 4 + size)
    head = a.vocab_size * D / t * (size + 4) + logits
    return Memory(
        parameters=trained + local_bytes(state.frozen),
        optimizer=local_bytes(state.opt_state),
        gradients=trained * (2 if gradient_accumulation_steps > 1 else 1),
        activations=tokens * L * kept,
        working=max(passing, head),
    )


def _experts(a: Architecture, tokens: float, parallel: int, tensor: int, size: int) -> float:
    """Largest temporary buffers of a layer's experts in the backward pass [bytes].

    Their weights and gradients in the compute dtype and sums in float32; the tokens of all devices
    that divide the experts, with gradients and sums; choices and probabilities of the router.
    """
    assert a.experts is not None
    weights = a.expert_parameters / a.num_layers / parallel / tensor * (2 * size + 4)
    gathered = tokens * parallel * a.hidden_size * (3 * size + 2 * 4)
    return weights + gathered + tokens * 4 * (3 * a.experts.count + 6 * a.experts.per_token)


def check_fits(
    model: Transformer, config: TrainConfig, batches: Batches, steps: int, device: jax.Device
) -> None:
    """Reject a run that cannot fit, if the device reports its memory (a CPU does not).

    Args:
        model: abstract model
        config: settings of the run
        batches: training data, whose row lengths are known
        steps: number of steps of the run
        device: one of the run's devices

    Raises:
        UserError: see `refuse_if_too_large`.
    """
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit is None:
        return
    longest = 0
    for step in range(min(steps, batches.steps_per_epoch)):
        lengths = batches.lengths[batches.indices(step)].tolist()
        contents = packing.plan(lengths, batches.rows * config.gradient_accumulation_steps)
        longest = max(longest, packing.row_length(lengths, contents, config.data.row_multiple))
    memory = estimate_memory(
        model,
        abstract_state(model, make_optimizer(config.optimizer, steps)),
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        rows=batches.rows,
        length=longest,
        loss_chunk=config.compute.loss_chunk,
    )
    refuse_if_too_large(memory, limit, device.device_kind)


def refuse_if_too_large(memory: Memory, available: float, device: str) -> None:
    """Reject a run that cannot fit.

    Args:
        memory: estimated memory
        available: memory of one device that the allocator may use [bytes]
        device: name of the device

    Raises:
        UserError: the estimate exceeds the available memory by more than its error, `MARGIN`.
    """
    if memory.total <= MARGIN * available:
        return
    gigabytes = {name: f"{value / 1e9:.1f}" for name, value in vars(memory).items()}
    parts = ", ".join(f"{name} {value}" for name, value in gigabytes.items())
    raise UserError(
        f"memory={memory.total / 1e9:.1f} GB: estimated for a step on each device ({parts}), but "
        f"{device} has {available / 1e9:.1f}; use more devices along mesh.fsdp or mesh.context, "
        "--compute.remat full or more --gradient_accumulation_steps; python -m jaxs1.plan finds "
        "the fastest layout that fits"
    )
