"""Part env: the machine, its software, its clocks; also the header of all results."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu_parts.context import ROOT, CheckContext
from benchmarks.gpu_summary import Figures
from jaxs1.config import one_line
from kernels.benchmarking.program import Program, shapes_on

PACKAGES = ("jax", "jaxlib", "triton", "torch", "flax", "optax", "numpy", "transformers")
CLOCKS = "clocks.sm,clocks.mem,power.draw,temperature.gpu"
#: Environment variable with the commit, for a folder without .git.
COMMIT_VARIABLE = "JAXS1_COMMIT"


def find_ptxas() -> None:
    """Put a ptxas on PATH: jaxlib runs the first one there to load a Triton kernel."""
    folders = ["/usr/local/cuda/bin"]
    try:
        import triton

        # its own, an older one, last
        folders.append(str(Path(triton.__file__).parent / "backends/nvidia/bin"))
    except ImportError:
        pass
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), *folders])


def device_header(device: jax.Device, **settings: Any) -> Figures:
    """Hardware, software and settings of a run."""
    stats = device.memory_stats() or {}
    return {
        "gpu": device.device_kind,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "commit": commit(),
        **settings,
        "driver": _nvidia_smi("driver_version"),
        "cuda": one_line(device.client.platform_version),
        "ptxas": _last_line("ptxas", "--version"),
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
        "memory_limit": stats.get("bytes_limit"),
        "clocks": clocks(),
    }


def commit() -> str:
    """Commit of the checkout, with + if files differ from it; else from the environment."""
    head = _last_line("git", "-C", str(ROOT), "rev-parse", "HEAD")
    if head == "unknown":
        return os.environ.get(COMMIT_VARIABLE, "unknown")
    changed = _last_line("git", "-C", str(ROOT), "status", "--porcelain", "-uno", otherwise="")
    return head[:12] + ("+" if changed else "")


def clocks() -> str:
    """Current clocks of cores and memory, power and temperature."""
    return _nvidia_smi(CLOCKS)


def memory(device: jax.Device) -> Figures:
    """Bytes in use and their peak; None if the device does not report them."""
    stats = device.memory_stats() or {}
    names = {"in_use_bytes": "bytes_in_use", "peak_bytes": "peak_bytes_in_use"}
    return {name: stats.get(key) for name, key in names.items()}


def env_programs(ctx: CheckContext) -> Iterator[Program]:
    """The smallest program: whether this device computes at all."""
    x = shapes_on(ctx.device, jax.ShapeDtypeStruct((64, 64), jnp.float32))
    yield Program("smallest", jax.jit(lambda x: (x @ x).sum()), (x,))


def env(ctx: CheckContext) -> None:
    """Record the machine; run the smallest program."""
    ctx.facts.add("machine", cpus=os.cpu_count(), platform=platform.platform(), clocks=clocks(),
                  ptxas_path=shutil.which("ptxas"), memory_fraction=os.environ.get(
                      "XLA_PYTHON_CLIENT_MEM_FRACTION"))  # fmt: skip
    (program,) = env_programs(ctx)
    executable, seconds = program.compile_timed()
    value = float(executable(np.ones((64, 64), np.float32)))
    ctx.facts.add("smallest program", value=value, **seconds, **memory(ctx.device))
    if value != 64**3:
        raise RuntimeError(f"a sum of products is {value}, must be {64**3}")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _nvidia_smi(query: str) -> str:
    return _last_line("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader")


def _last_line(*command: str, otherwise: str = "unknown") -> str:
    """Last line that a command prints; `otherwise` if it cannot be run or prints nothing."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return otherwise
    lines = done.stdout.strip().splitlines()
    return lines[-1].strip() if lines else otherwise
