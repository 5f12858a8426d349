"""What the parts share: what is checked, on which device, and where facts go."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from benchmarks.gpu_parts.facts import Facts
from jaxs1.model.architecture import Architecture
from kernels.benchmarking.program import Program
from kernels.launch import Run
from kernels.shapes import Shape
from kernels.xla_call import NO_GRAPH_OPTIONS

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class CheckContext:
    """What is checked, and where.

    Args:
        device: that programs are compiled for; where it is absent, nothing can be run
        run: runs single kernels
        impl: decode step that is compared with XLA's
        attention: training attention that is compared with XLA's
        dtype: of weights and cache
        architecture: of the model that is timed
        shape: of its kernels
        odd_shape: of a model whose kernels are checked at odd batches and contexts
        slice_layers: layers of the slices of the model
        train_layers: layers of the training step
        train_tokens: tokens of the training step, and of its comparison with XLA's attention
        batches: numbers of sequences, the first of them for the model's step and the kernels
        odd_batches: likewise of the kernels at odd shapes
        context: tokens that a new token attends to, in timed steps
        chunk_steps: two lengths of the model's chunk [steps]
        prompt_tokens: of the timed prefills
        samples: of each timing
        generate_config: config.json of the model that generates
        ceiling_sizes: see `timing.ceiling_work`
        facts: takes what is found
        deadline: seconds since the run began, after which no part begins
        free_bytes: of the device's memory
        tracing: in which training steps are traced
    """

    device: jax.Device
    run: Run | None
    impl: str
    attention: str
    dtype: str
    architecture: Architecture
    shape: Shape
    odd_shape: Shape
    generate_config: Path
    facts: Facts
    free_bytes: Callable[[], float]
    tracing: Callable[[], AbstractContextManager[None]]
    slice_layers: int = 8
    train_layers: int = 2
    train_tokens: tuple[int, int] = (16384, 1024)
    batches: tuple[int, ...] = (1, 8, 32)
    odd_batches: tuple[int, ...] = (3, 17, 64)
    odd_contexts: tuple[int, ...] = (65, 4097)
    context: int = 4096
    chunk_steps: tuple[int, int] = (32, 128)
    prompt_tokens: tuple[int, ...] = (512, 2048)
    samples: int = 9
    ceiling_sizes: dict[str, int] = field(default_factory=dict)
    deadline: float = 540

    @property
    def on_gpu(self) -> bool:
        """Whether it is a GPU, here or not."""
        return self.device.platform == "gpu"

    @property
    def runner(self) -> Run:
        """Runs single kernels."""
        if self.run is None:
            raise RuntimeError("no kernel can be run here")
        return self.run

    @property
    def without_graph(self) -> dict[str, Any] | None:
        """XLA options of a program that is no CUDA graph."""
        return NO_GRAPH_OPTIONS if self.on_gpu else None

    @property
    def loads_in_graphs(self) -> bool:
        """Whether a kernel may be loaded while a graph is captured: as the probe found."""
        return not self.on_gpu or bool(self.facts.found("kernel loaded in a graph").get("passed"))

    def slice_of(self, layers: int) -> Architecture:
        """The model with fewer layers."""
        return dataclasses.replace(self.architecture, num_layers=layers)

    def is_late(self) -> bool:
        """Whether the deadline is over."""
        return self.facts.clock() > self.deadline


@dataclass(frozen=True)
class Part:
    """A subject of the check.

    Args:
        name: on the command line
        seconds: estimate on an H100
        needs: what it needs, in words
        run: does it; raises where something is wrong, after all facts are recorded
        programs: what it compiles; the small ones of single operations are left out
        essential: whether it belongs to the first five minutes
        host_only: what no dry run shows, in words
    """

    name: str
    seconds: int
    needs: str
    run: Callable[[CheckContext], None]
    programs: Callable[[CheckContext], Iterable[Program]]
    essential: bool = False
    host_only: str = ""


def raise_if(problems: list[str]) -> None:
    """End a part whose facts are recorded, with all that is wrong."""
    if problems:
        raise RuntimeError("; ".join(problems))
