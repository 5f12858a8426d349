"""Part generate: `jaxs1.generate` end to end on a generated folder with random weights."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu_parts.context import ROOT, CheckContext, raise_if
from benchmarks.gpu_parts.environment import memory
from jaxs1.storage import JsonlWriter, read_jsonl
from kernels.benchmarking.program import Program

PROMPTS = 8
#: Limits of every completion [tokens].
THINKING, ANSWER = 256, 32


def generate(ctx: CheckContext) -> None:
    """The command on a file of prompts; then the engine again, compiled, for its speed."""
    folder = Path(tempfile.mkdtemp(prefix="gpu-check-"))
    try:
        start = time.perf_counter()
        make_folder(ctx.generate_config, folder / "model")
        ctx.facts.add("folder made", seconds=time.perf_counter() - start)
        raise_if(_run_command(ctx, folder))
        _time_engine(ctx, folder / "model")
    finally:
        shutil.rmtree(folder)


def generate_programs(_: CheckContext) -> Iterator[Program]:
    """None: the engine's programs depend on the generated tokenizer."""
    return iter(())


def make_folder(config: Path, folder: Path) -> None:
    """A Hugging Face folder: config.json, random weights in bfloat16, a small tokenizer."""
    import ml_dtypes

    from convert import safetensors_io
    from convert.mapping import tensors
    from jaxs1.data.tokenizer import train_tokenizer
    from jaxs1.model.architecture import Architecture, read_config

    folder.mkdir(parents=True)
    shutil.copy(config, folder / "config.json")
    texts = [path.read_text() for path in sorted(ROOT.glob("*.md"))]
    train_tokenizer(texts, folder, vocabulary=512)
    dtype = np.dtype(ml_dtypes.bfloat16)
    shapes = tensors(Architecture.from_hf(read_config(config), str(config)))
    files, entries = safetensors_io.plan({name: (dtype, s) for name, s in shapes.items()}, 1 << 40)
    safetensors_io.write_prefixes(folder, files, entries)
    rng = np.random.default_rng(0)
    for name, shape in shapes.items():
        block = np.ones(shape, np.float32)
        if "norm" not in name:
            rng.standard_normal(dtype=np.float32, out=block)
            block *= 1 if "bias" in name or "embed" in name else shape[-1] ** -0.5
        safetensors_io.write_rows(folder, entries[name], 0, block.astype(dtype))


def _questions() -> list[str]:
    return [f"Count to {n}, then say what comes next." for n in range(2, 2 + PROMPTS)]


def _run_command(ctx: CheckContext, folder: Path) -> list[str]:
    """Run `python -m jaxs1.generate` in this process, which owns the memory; returns problems."""
    from jaxs1 import generate as command

    prompts, output = folder / "prompts.jsonl", folder / "completions.jsonl"
    with JsonlWriter(prompts) as writer:
        writer.write(*({"prompt": text} for text in _questions()))
    start = time.perf_counter()
    status = command.main([
        "--model", str(folder / "model"), "--impl", ctx.impl, "--dtype", ctx.dtype,
        "--prompts", str(prompts), "--output", str(output), "--limits.max_seq_len", "1024",
        "--thinking.max", str(THINKING), "--thinking.num_waits", "1",
        "--thinking.max_answer_tokens", str(ANSWER), "--thinking.min_answer_tokens", "1",
    ])  # fmt: skip
    seconds = time.perf_counter() - start
    done = [row for _, row in read_jsonl(output)]
    usage = [completion["usage"] for completion in done]
    tokens = sum(u.get("completion_tokens", 0) for u in usage)
    longest = max((u.get("thinking_tokens", 0) for u in usage), default=0)
    ctx.facts.add("jaxs1.generate", status=status, seconds_with_compilation=seconds,
                  completions=len(done), tokens=tokens, longest_thinking=longest,
                  forced=sum(u.get("forced_tokens", 0) for u in usage),
                  **memory(ctx.device))  # fmt: skip
    problems = [str(c["error"]) for c in done if c["error"]]
    if status or len(done) != PROMPTS:
        problems.append(f"status {status}, {len(done)} completions of {PROMPTS}")
    if not 0 < longest <= THINKING:
        problems.append(f"thinking of {longest} tokens, must be 1 to {THINKING}")
    return problems


def _time_engine(ctx: CheckContext, model: Path) -> None:
    """Run the requests twice; the second run compiles nothing."""
    from jaxs1.decoding.loading import EngineConfig, load_engine
    from jaxs1.decoding.params import Request, ThinkingParams
    from jaxs1.decoding.prompt import prompt_ids
    from jaxs1.decoding.scheduler import Limits

    dtype: Any = ctx.dtype
    impl: Any = ctx.impl
    start = time.perf_counter()
    config = EngineConfig(str(model), dtype=dtype, impl=impl, limits=Limits(max_seq_len=1024))
    engine = load_engine(config).engine
    loaded = time.perf_counter() - start
    thinking = ThinkingParams(
        max=THINKING, num_waits=1, max_answer_tokens=ANSWER, min_answer_tokens=1
    )
    conversations = [[{"role": "user", "content": text}] for text in _questions()]
    requests = [Request(prompt_ids(c, thinking, engine.tokenizer), thinking) for c in conversations]
    taken, tokens = [], 0
    for _ in range(2):
        start = time.perf_counter()
        completions = dict(engine.run(requests))
        taken.append(time.perf_counter() - start)
        tokens = sum(len(c.tokens) for of_one in completions.values() for c in of_one)
    ctx.facts.add("engine", load_s=loaded, first_s=taken[0], second_s=taken[1], tokens=tokens,
                  sequences=PROMPTS, tokens_per_s=tokens / taken[1])  # fmt: skip
