"""A recipe planned for a target: estimated in closed form or compiled."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import optax

from jaxs1.config import UserError
from jaxs1.model import ops, transformer
from jaxs1.model.architecture import Architecture
from jaxs1.model.sharding import ShardingRules, check_divisible, make_sharding_rules
from jaxs1.model.transformer import Transformer
from jaxs1.planning.compile import TrainProgram, compile_step
from jaxs1.planning.estimate import TimeEstimate, estimate_time
from jaxs1.planning.targets import Target
from jaxs1.planning.workload import Workload, draw_lengths, fixed_workload, make_workload
from jaxs1.training.config import TrainConfig
from jaxs1.training.memory import Memory, estimate_memory
from jaxs1.training.optimizer import make_optimizer
from jaxs1.training.step import abstract_state


@dataclass(frozen=True)
class Sequences:
    """Lengths of the training data.

    Args:
        mean: average length of a sequence [tokens]
        examples: number of sequences
        length: length of every row [tokens]; None packs sequences of random lengths
    """

    mean: float
    examples: int
    length: int | None


@dataclass(frozen=True)
class PlannedRun:
    """A recipe and the devices it is planned for.

    Args:
        config: the recipe
        target: accelerators to plan for
        model: abstract model, with sharding rules over the target's devices
        workload: rows of a step and their lengths
    """

    config: TrainConfig
    target: Target
    model: Transformer
    workload: Workload

    @cached_property
    def optimizer(self) -> optax.GradientTransformation:
        """The optimizer of training."""
        return make_optimizer(self.config.optimizer, self.workload.steps)

    @cached_property
    def state(self) -> Any:
        """Shapes and shardings of the training state."""
        return abstract_state(self.model, self.optimizer)

    @property
    def typical(self) -> int:
        """Row length that represents the average step [tokens]."""
        return self.workload.typical(self.config.data.row_multiple)

    def memory(self, length: int) -> Memory:
        """Closed-form estimate of the memory for rows of this length."""
        return estimate_memory(self.model, self.state, length=length, **self._sizes)

    def compile(self, length: int) -> TrainProgram:
        """Compile the train step for rows of this length; takes seconds to minutes."""
        return compile_step(self.model, self.optimizer, self.target, length=length, **self._sizes)

    def time(self, compiled: TrainProgram | None = None) -> TimeEstimate:
        """Time of an average step, in closed form or from the figures of a compiled step."""
        accelerator = self.target.accelerator
        if compiled is None or compiled.refusal:
            return estimate_time(self.model, accelerator, self.workload)
        shorter = self.workload.mean / self.typical
        received = {kind: c.received for kind, c in compiled.collectives.items()}
        if "all-to-all" in received:  # parts of sequences; everything else exchanges weights
            received["all-to-all"] *= shorter
        return estimate_time(
            self.model,
            accelerator,
            self.workload,
            products=compiled.products * shorter,
            received=sum(received.values()),
        )

    @property
    def _sizes(self) -> dict[str, Any]:
        return {
            "gradient_accumulation_steps": self.config.gradient_accumulation_steps,
            "rows": self.workload.rows,
            "loss_chunk": self.config.compute.loss_chunk,
        }


def make_planned_run(
    config: TrainConfig,
    architecture: Architecture,
    target: Target,
    devices: list[jax.Device],
    sequences: Sequences,
) -> PlannedRun:
    """Plan a recipe for a target.

    Args:
        config: the recipe
        architecture: shapes of the model
        target: accelerators to plan for
        devices: compile-only devices of the target
        sequences: lengths of the training data

    Raises:
        UserError: the mesh, the number of rows or a length does not fit the devices.
    """
    rules = make_sharding_rules(config.mesh, devices)
    check_divisible(architecture, rules)
    rows = config.data.rows or rules.size("rows")
    _check_divides(rules, rows, sequences.length, config.data.row_multiple)
    device = target.accelerator
    major, minor = device.capability
    attention: Any = ops.resolve_attention(
        config.compute.attention, device.platform, config.compute.dtype, 10 * major + minor
    )
    model = transformer.abstract(
        architecture,
        dataclasses.replace(config.compute, attention=attention),
        rules,
        max_segments=config.batch_size,
        lora=config.lora,
    )
    return PlannedRun(config, target, model, _workload(config, rows, sequences))


def _check_divides(rules: ShardingRules, rows: int, length: int | None, multiple: int) -> None:
    """Check that the mesh divides the rows and their lengths."""
    shards, context = rules.size("rows"), rules.size("sequence")
    if rows % shards:
        raise UserError(
            f"rows={rows}: must be a multiple of mesh.data x mesh.fsdp x mesh.expert={shards}, "
            f"which split the rows; give --rows {-(-rows // shards) * shards}"
        )
    for name, size in (("length", length), ("row_multiple", multiple)):
        if size is not None and size % context:
            raise UserError(
                f"{name}={size}: must be a multiple of mesh.context={context}, whose devices "
                f"share a row; give {-(-size // context) * context}"
            )


def _workload(config: TrainConfig, rows: int, sequences: Sequences) -> Workload:
    if sequences.length is not None:
        return fixed_workload(
            sequences.mean,
            batch_size=config.batch_size,
            steps=config.steps or config.epochs * -(-sequences.examples // config.batch_size),
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            rows=rows,
            length=sequences.length,
        )
    lengths = draw_lengths(sequences.mean, config.data.block_size, examples=sequences.examples)
    return make_workload(
        lengths.tolist(),
        batch_size=config.batch_size,
        epochs=config.epochs,
        steps=config.steps,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        rows=rows,
        multiple=config.data.row_multiple,
    )
