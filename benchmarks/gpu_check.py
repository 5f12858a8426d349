"""Everything that needs an NVIDIA GPU, in one command: python -m benchmarks.gpu_check.

It runs from a checkout, without installing the project and without a network. Parts run in order of
importance; a failing part does not stop the others. Every fact is written to OUTPUT/facts.jsonl as
soon as it is found, and a summary after each part to OUTPUT/NAME/DATE.json and .md. To split a run,
give `--parts env,kernels`, then the other parts with the same output. Without a GPU:

    python -m benchmarks.gpu_check --dry      compiles every program for an H100

Exit status: 0 all parts passed, 1 some failed or were skipped, 2 no GPU.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax

from benchmarks.gpu_parts import environment
from benchmarks.gpu_parts.context import ROOT, CheckContext
from benchmarks.gpu_parts.facts import Facts, process_clock
from benchmarks.gpu_parts.registry import choose, dry_run, estimates, run_parts
from benchmarks.random_weights_loop import free_bytes
from jaxs1.config import UserError, parse, run_command
from jaxs1.model.architecture import Architecture, read_config
from kernels import bench, xla_call
from kernels.shapes import MODELS

CONFIGS = ROOT / "configs" / "models"
#: Target of a dry run.
DRY_TARGET = "h100:1x1"


@dataclass(frozen=True)
class GpuCheck:
    """Check and time decoding, training and generation on this NVIDIA GPU.

    Args:
        model: published model whose kernels, steps and slices are timed, e.g. qwen2.5-32b
        parts: comma-separated names of the parts to run; empty runs all
        deadline: seconds after the start by which every part should have ended; a part that is
            estimated to end later is skipped
        batch: batch sizes; the smallest is used for most parts
        context: tokens that a new token attends to, in timed steps
        samples: number of samples of each timing
        output: folder for the results: facts.jsonl, NAME/DATE.json and .md
        dry: compile every program for an H100 and run nothing; needs no GPU
    """

    model: str = "qwen2.5-32b"
    parts: str = ""
    deadline: float = 540
    batch: list[int] = field(default_factory=lambda: [1, 8, 32])
    context: int = 4096
    samples: int = 9
    output: str = "benchmarks/gpu"
    dry: bool = False

    def __post_init__(self) -> None:
        """Reject what cannot be checked."""
        if self.model not in MODELS:
            raise UserError(f"model={self.model}: must be one of {', '.join(MODELS)}")
        choose(self.parts)
        for name in ("context", "samples", "deadline"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: must be at least 1")
        if not self.batch or min(self.batch) < 1 or max(self.batch) > 64:
            raise UserError(f"batch={self.batch}: must be a list of batch sizes from 1 to 64")


def main(argv: Sequence[str]) -> int:
    """The command."""
    # a flag, although all other options of this project take a value
    argv = ["--dry=true" if a == "--dry" else a for a in argv]
    options = parse(GpuCheck, argv, command="python -m benchmarks.gpu_check")
    parts = choose(options.parts)
    if options.dry:
        return 0 if dry_run(_dry_context(options), parts) else 1
    # leaves the rest of the memory to CUDA, its graphs, and torch
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")
    environment.find_ptxas()
    device, run = bench.find_gpu(
        "this check needs an NVIDIA GPU; without one, --dry compiles its programs for an H100"
    )
    print(estimates(parts, options.deadline), flush=True)
    settings = {k: v for k, v in dataclasses.asdict(options).items() if k not in ("dry", "output")}
    header = environment.device_header(device, **settings)
    facts = Facts(options.output, header, process_clock())
    ctx = _context(options, device, run, facts, lambda: free_bytes(device), contextlib.nullcontext)
    passed = run_parts(ctx, parts)
    path, all_passed = facts.summarise()
    print(f"\n{path.read_text()}\nwritten: {path}; all passed: {all_passed}")
    return 0 if passed else 1


def _context(
    options: GpuCheck,
    device: jax.Device,
    run: Any,
    facts: Any,
    free: Callable[[], float],
    tracing: Any,
) -> CheckContext:
    config = CONFIGS / f"{options.model}.json"
    return CheckContext(
        device=device,
        run=run,
        impl="triton",
        attention="cudnn",
        dtype="bfloat16",
        architecture=Architecture.from_hf(read_config(config), str(config)),
        shape=MODELS[options.model],
        odd_shape=MODELS["qwen2.5-0.5b"],
        generate_config=CONFIGS / "qwen2.5-0.5b.json",
        facts=facts,
        free_bytes=free,
        tracing=tracing,
        batches=tuple(sorted(options.batch)),
        context=options.context,
        samples=options.samples,
        deadline=options.deadline,
    )


def _dry_context(options: GpuCheck) -> CheckContext:
    """The context for an absent H100."""
    from jaxs1.planning.targets import parse_target
    from jaxs1.planning.topology import make_devices, tracing_for, use_only_cpu

    use_only_cpu()
    target = parse_target(DRY_TARGET)
    (device,) = make_devices(target)
    run = xla_call.Compiled(90)
    pool = 0.95 * target.accelerator.memory
    return _context(options, device, run, None, lambda: pool, lambda: tracing_for(target))


if __name__ == "__main__":
    run_command(main)
