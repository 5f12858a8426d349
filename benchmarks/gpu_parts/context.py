"""What the parts share: the subject of the check, the device, and the destination of facts."""

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
    """Subject and device of the check.

    Args:
        device: device that programs are compiled for; if it is absent, nothing can be run
        run: runs single kernels
        impl: implementation of the decode step to compare with XLA's
        attention: training attention to compare with XLA's
        dtype: dtype of weights and cache
        architecture: architecture of the timed model
        shape: shape of the timed kernels
        odd_shape: shape of a model whose kernels are checked at odd batches and contexts
        slice_layers: layers of the slices of the model
        train_layers: layers of the training step
        train_tokens: tokens of the training step, and of its comparison with XLA's attention
        batches: batch sizes; the first is used for the model's step and the kernels
        odd_batches: batch sizes of the kernels at odd shapes
        odd_contexts: contexts of the kernels at odd shapes
        context: tokens that a new token attends to, in timed steps
        decode_steps: two numbers of decode steps per call
        prompt_tokens: lengths of the timed prefills
        samples: number of samples of each timing
        generate_config: config.json of the model that generates
        ceiling_sizes: sizes of `timing.ceiling_work`
        facts: destination of the results
        deadline: seconds since the run began, after which no part begins
        free_bytes: free bytes of the device's memory
        tracing: context in which training steps are traced
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
    odd_batches: tuple[int, ...] = (3, 33)
    odd_contexts: tuple[int, ...] = (65, 4097)
    context: int = 4096
    decode_steps: tuple[int, int] = (32, 128)
    prompt_tokens: tuple[int, ...] = (512, 2048)
    samples: int = 9
    ceiling_sizes: dict[str, int] = field(default_factory=dict)
    deadline: float = 540

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU, present or not."""
        return self.device.platform == "gpu"

    @property
    def runner(self) -> Run:
        """Runs single kernels."""
        if self.run is None:
            raise RuntimeError("no kernel can be run here")
        return self.run

    @property
    def without_graph(self) -> dict[str, Any] | None:
        """XLA options of a program without CUDA graphs."""
        return NO_GRAPH_OPTIONS if self.on_gpu else None

    @property
    def loads_in_graphs(self) -> bool:
        """Whether a kernel may be loaded while a graph is captured, according to the probe."""
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
        name: name on the command line
        seconds: estimated time on an H100
        needs: human-readable requirements
        run: runs the part; raises if something is wrong, after all facts are recorded
        programs: programs that it compiles, except small ones of single operations
        essential: whether it belongs to the first five minutes
        host_only: human-readable: what a dry run does not cover
    """

    name: str
    seconds: int
    needs: str
    run: Callable[[CheckContext], None]
    programs: Callable[[CheckContext], Iterable[Program]]
    essential: bool = False
    host_only: str = ""


def raise_if(problems: list[str]) -> None:
    """Fail a part whose facts are recorded, listing all problems."""
    if problems:
        raise RuntimeError("; ".join(problems))
