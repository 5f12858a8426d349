"""The whole story on a laptop's CPU: `python -m jaxs1.demo`.

Writes a synthetic reasoning corpus, trains a tiny base model on its primitives, fine-tunes it on
exactly 1,000 traces the s1 way, exports it, lets transformers load it, and draws what longer
thinking buys on questions that neither stage has seen. Every step is an ordinary command of this
package; started again, finished steps are not repeated.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxs1.config import UserError, parse, run_command
from jaxs1.data.chat import ANSWER, THINK
from jaxs1.evaluation.metrics import wilson
from jaxs1.tasks import puzzle_corpus, puzzles

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
        puzzle_corpus.write_corpus(FOLDER / "data")
    example = json.loads((FOLDER / "data" / "sft.jsonl").open().readline())
    trace = f"{example['question']}\n{example['thinking_trajectories'][0]}\n{example['attempt']}"
    print("   the first trace:\n" + "".join(f"   | {line}\n" for line in trace.splitlines()))
    _say("2  A base model: language modelling on worksheets, from random weights")
    _run("jaxs1.train", "configs/demo_base.yaml", "--resume", "auto")
    _say("3  Supervised fine-tuning on 1,000 traces, the recipe of s1")
    _run("jaxs1.train", "configs/demo_sft.yaml", "--resume", "auto")
    _say("4  The exported model in transformers, on questions about digits it has never seen")
    _answer(FOLDER / "sft" / "hf", config.problems)
    _say("5  Test-time scaling: the same questions with thinking cut short, and with Waits")
    _run("jaxs1.evaluate", "configs/demo_evaluate.yaml")
    shutil.copy(FOLDER / "evaluation" / "scaling.png", FOLDER / "scaling.png")
    _show_rescue(FOLDER / "evaluation" / "samples.jsonl", FOLDER / "data" / "test.jsonl")
    print(f"done in {time.monotonic() - start:.0f} s. In {FOLDER}/:")
    for name, what in [
        ("scaling.png", "accuracy against thinking, by budgets and by Waits"),
        ("evaluation/", "the figures behind it, every sample, more pictures"),
        ("sft/hf/", "the fine-tuned model, for transformers or any engine that takes its format"),
        ("base/, sft/", "config.yaml, metrics.jsonl, tensorboard/, checkpoints/ of the two runs"),
        ("data/", "the corpus and its tokenizer (rm -r demo starts over)"),
    ]:
        print(f"   {name:12} {what}")
    return 0


def _say(line: str) -> None:
    print(f"\n{line}", flush=True)


def _run(module: str, recipe: str, *arguments: str) -> None:
    command = ["-m", module, "--config", recipe, *arguments]
    print(f"   $ {shlex.join(['python', *command])}", flush=True)
    if status := subprocess.run([sys.executable, *command]).returncode:
        raise UserError(f"{recipe}: {module} ended with status {status}; its message is above")


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


def _show_rescue(samples: Path, questions: Path) -> None:
    """Print a question that is answered wrongly without Waits, and rightly with the fewest."""
    graded: dict[int, dict[str, dict[str, Any]]] = {}
    for line in samples.open():
        sample = json.loads(line)
        graded.setdefault(sample["question_id"], {})[sample["point"]] = sample
    for waits in range(1, 7):
        for number, by_point in graded.items():
            without, with_waits = (by_point.get(f"max=400 num_waits={n}") for n in (0, waits))
            if without and with_waits and not without["correct"] and with_waits["correct"]:
                question = json.loads(questions.read_text().splitlines()[number])["question"]
                print(f"   {question}, without a Wait: {without['answer']}, which is wrong")
                lines = f"{with_waits['thinking']}\n{with_waits['answer']}".splitlines()
                print(f"   with {waits}:\n" + "".join(f"   | {line}\n" for line in lines))
                return
    print("   no answer that was wrong became right by a Wait")


if __name__ == "__main__":
    run_command(main)
