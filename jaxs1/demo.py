"""The whole story on a laptop's CPU: `python -m jaxs1.demo`.

Writes a synthetic reasoning corpus, trains a tiny base model on its primitives, fine-tunes it on
exactly 1,000 traces the s1 way, exports it, and lets transformers load it and answer questions that
neither stage has seen. Every step is an ordinary command of this package; started again, finished
steps are not repeated.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxs1.config import UserError, parse, run_command
from jaxs1.data import puzzles
from jaxs1.data.chat import ANSWER, THINK
from jaxs1.evaluation.metrics import wilson

FOLDER = Path("demo")


@dataclass(frozen=True)
class DemoConfig:
    """Train, export and try a tiny reasoning model; everything lies in demo/.

    Args:
        problems: held-out questions that the exported model answers
    """

    problems: int = 100


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    config = parse(DemoConfig, argv, command="python -m jaxs1.demo")
    start = time.monotonic()
    _say("1  A corpus: worksheets for the base model, 1,000 reasoning traces for fine-tuning")
    if not (FOLDER / "data").exists():
        FOLDER.mkdir(exist_ok=True)
        puzzles.write_corpus(FOLDER / "data")
    example = json.loads((FOLDER / "data" / "sft.jsonl").open().readline())
    trace = f"{example['question']}\n{example['thinking_trajectories'][0]}\n{example['attempt']}"
    print("   the first trace:\n" + "".join(f"   | {line}\n" for line in trace.splitlines()))
    _say("2  A base model: language modelling on worksheets, from random weights")
    _train("configs/demo_base.yaml")
    _say("3  Supervised fine-tuning on 1,000 traces, the recipe of s1")
    _train("configs/demo_sft.yaml")
    _say("4  The exported model in transformers, on questions about digits it has never seen")
    _answer(FOLDER / "sft" / "hf", config.problems)
    print(f"done in {time.monotonic() - start:.0f} s. In {FOLDER}/:")
    for name, what in [
        ("data/", "the corpus and its tokenizer (rm -r demo starts over)"),
        ("base/, sft/", "config.yaml, metrics.jsonl, tensorboard/, checkpoints/ of the two runs"),
        ("sft/hf/", "the fine-tuned model, for transformers or any engine that takes its format"),
    ]:
        print(f"   {name:12} {what}")
    return 0


def _say(line: str) -> None:
    print(f"\n{line}", flush=True)


def _train(recipe: str) -> None:
    command = ["-m", "jaxs1.train", "--config", recipe, "--resume", "auto"]
    print(f"   $ {shlex.join(['python', *command])}", flush=True)
    if status := subprocess.run([sys.executable, *command]).returncode:
        raise UserError(f"{recipe}: training ended with status {status}; its message is above")


def _answer(model_folder: Path, count: int) -> None:
    """Greedy answers of transformers to held-out questions; prints one and the share correct."""
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging
    except ImportError:
        print("   skipped: needs torch (pip install 'jaxs1[torch]')")
        return
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(model_folder, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(model_folder, dtype="float32")
    lines = (FOLDER / "data" / "test.jsonl").read_text().splitlines()[:count]
    problems = [puzzles.Problem.from_record(json.loads(line)) for line in lines]
    chats = [[{"role": "user", "content": p.question}] for p in problems]
    prompts: Any = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        out = model.generate(**prompts, max_new_tokens=220, do_sample=False)
    texts = tokenizer.batch_decode(out[:, prompts["input_ids"].shape[1] :])
    replies = [text.split("<|im_end|>")[0] for text in texts]
    answers = [reply.rpartition(ANSWER)[2] for reply in replies]
    correct = sum(map(puzzles.is_correct, problems, answers))
    shown = f"{problems[0].question}\n{replies[0]}".replace(THINK, "think").replace(
        ANSWER, "answer"
    )
    print("".join(f"   | {line}\n" for line in shown.splitlines()))
    low, high = (f"{x:.0%}" for x in wilson(correct, len(problems)))
    print(
        f"   {correct} of {len(problems)} correct when it stops by itself (95 %: {low} to {high})\n"
    )


if __name__ == "__main__":
    run_command(main)
