"""Search for other layouts of a recipe on the same devices, fastest first."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Literal

from jaxs1.config import UserError
from jaxs1.planning.planned_run import PlannedRun
from jaxs1.planning.targets import Target
from jaxs1.training.config import TrainConfig
from jaxs1.training.memory import MARGIN

REMATS: tuple[Literal["none", "attention", "full"], ...] = ("none", "attention", "full")
Make = Callable[[TrainConfig], PlannedRun]


def describe(config: TrainConfig) -> str:
    """The settings that the search varies, as command-line arguments."""
    mesh = config.mesh
    return (
        f"--mesh.fsdp {mesh.fsdp} --mesh.context {mesh.context} --data.rows {config.data.rows} "
        f"--gradient_accumulation_steps {config.gradient_accumulation_steps} "
        f"--compute.remat {config.compute.remat}"
    )


def alternatives(run: PlannedRun, make: Make, *, aspects: int) -> list[PlannedRun]:
    """Alternatives to a run that fit according to the closed form, fastest first.

    Args:
        run: the planned run
        make: function that plans a recipe
        aspects: how many of remat, layout and gradient accumulation may differ
    """
    found = []
    for config in _configs(run.config, run.target, run.model.rules.mesh.shape["fsdp"]):
        if not 0 < len(_changes(run, config)) <= aspects:
            continue
        try:
            other = make(config)
        except UserError:  # the mesh does not divide the widths
            continue
        if other.memory(other.workload.longest).total <= MARGIN * other.target.available:
            found.append(other)
    return sorted(found, key=lambda other: other.time().total)


def _changes(run: PlannedRun, config: TrainConfig) -> set[str]:
    """Aspects in which a recipe differs from the one of a run."""
    mesh, rows = run.model.rules.mesh.shape, run.workload.rows
    pairs = {
        "remat": (config.compute.remat, run.config.compute.remat),
        "layout": (
            (config.mesh.fsdp, config.mesh.context, config.data.rows),
            (mesh["fsdp"], mesh["context"], rows),
        ),
        "gradient_accumulation_steps": (
            config.gradient_accumulation_steps,
            run.config.gradient_accumulation_steps,
        ),
    }
    return {name for name, (new, old) in pairs.items() if new != old}


def _configs(config: TrainConfig, target: Target, fsdp: int) -> Iterator[TrainConfig]:
    """Variants of a recipe: mesh, rows, gradient accumulation and recomputation."""
    shared = fsdp * config.mesh.context
    # rows are split only across fast links: within a node of GPUs, anywhere in a TPU slice
    fast = target.shape[-1] if target.accelerator.platform == "gpu" else target.devices
    for context in (n for n in range(1, min(shared, fast) + 1) if shared % n == 0):
        mesh = dataclasses.replace(config.mesh, fsdp=shared // context, context=context)
        parts = mesh.data * mesh.fsdp * mesh.expert
        for rows in (parts * k for k in (1, 2, 4, 8, 16)):
            for gradient_accumulation_steps in (1, 2, 4, 8, 16):
                if rows * gradient_accumulation_steps > config.batch_size:
                    break
                for remat in REMATS:
                    yield dataclasses.replace(
                        config,
                        mesh=mesh,
                        gradient_accumulation_steps=gradient_accumulation_steps,
                        data=dataclasses.replace(config.data, rows=rows),
                        compute=dataclasses.replace(config.compute, remat=remat),
                    )
