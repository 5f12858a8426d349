"""The parts of `gpu_check` on a tiny model and a CPU; as a module, a run that a test can kill."""

import contextlib
import json
import os
import sys
from pathlib import Path

import jax

from benchmarks.gpu_parts.context import CheckContext
from benchmarks.gpu_parts.facts import Facts, process_clock
from benchmarks.gpu_parts.registry import choose, run_parts
from jaxs1.model.architecture import Architecture
from jaxs1.model.rope import Rope
from kernels.shapes import Shape
from tests.conftest import ROOT

TINY = Architecture(512, 64, 192, 2, 8, 4, 8, 4096, Rope(1e4), 1e-6, False, True, False, 0.02)
SHAPE = Shape(2, 64, 192, 8, 4, 8, 512, tied=False, bias=True)
HEADER = {"gpu": "cpu", "date": "2026-01-01", "commit": "abc", "model": "tiny"}


def tiny_context(output, **changes):
    """XLA in the place of Triton and of cuDNN; single kernels cannot be run."""
    facts = Facts(output, HEADER, process_clock())
    config = json.loads((ROOT / "configs/models/tiny.json").read_text())
    generate_config = Path(output) / "config.json"
    generate_config.write_text(json.dumps({**config, "vocab_size": 512}))
    settings = {
        "device": jax.devices()[0],
        "run": None,
        "impl": "xla",
        "attention": "xla",
        "dtype": "float32",
        "architecture": TINY,
        "shape": SHAPE,
        "odd_shape": SHAPE,
        "generate_config": generate_config,
        "facts": facts,
        "free_bytes": lambda: float("inf"),
        "tracing": contextlib.nullcontext,
        "slice_layers": 1,
        "train_layers": 1,
        "train_tokens": (256, 128),
        "batches": (1, 2),
        "odd_batches": (3,),
        "odd_contexts": (65,),
        "context": 100,
        "decode_steps": (10, 20),
        "prompt_tokens": (20,),
        "samples": 1,
        "ceiling_sizes": {"size": 1 << 16, "width": 64, "nodes": 1},
        "deadline": 1e6,
    }
    return CheckContext(**{**settings, **changes})


def facts_on_disk(output):
    """part -> names of its facts, from the lines of facts.jsonl."""
    found = {}
    for line in (output / "facts.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["kind"] == "fact":
            found.setdefault(record["part"], []).append(record["fact"])
    return found


if __name__ == "__main__":
    os.chdir(ROOT)
    run_parts(tiny_context(sys.argv[1]), choose(sys.argv[2]))
