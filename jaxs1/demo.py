"""The complete pipeline on a laptop's CPU: `python -m jaxs1.demo`.

Writes a synthetic reasoning corpus, trains a tiny base model on its primitives, fine-tunes it on
1,000 traces as in s1, exports it, loads it in transformers, and plots the accuracy against the
length of thinking on questions that neither stage has seen. Every step is an ordinary command of
this package; if the demo is interrupted, repeat the command: finished steps are skipped. With
`--rl true` it continues with reinforcement learning under thinking budgets, and draws the
accuracy of all stages, from the base model on, in one picture.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxs1.config import UserError, parse, run_command
from jaxs1.data.delimiters import ANSWER, THINK
from jaxs1.evaluate import EvaluateConfig
from jaxs1.evaluation import plots
from jaxs1.evaluation.methods import points_of
from jaxs1.evaluation.metrics import wilson
from jaxs1.evaluation.results import Results, read_results
from jaxs1.evaluation.samples import current_sample
from jaxs1.storage import Row, check_output, read_jsonl
from jaxs1.tasks import puzzle_corpus, puzzles

FOLDER = "demo"
#: Number of Waits to compare with natural stopping: the best on development questions (LOG.md), so
#: that the test questions choose nothing and the p-value needs no correction.
WAITS = 2
BASE, SFT, GRPO, EVALUATE = (
    f"configs/demo_{name}.yaml" for name in ("base", "sft", "grpo", "evaluate")
)
#: Stage of training -> its name in the picture, and what its evaluation changes.
STAGES = {
    "base": ("base model", {"sweep.num_waits": "[0]"}),
    "sft": ("fine-tuned", {}),
    "grpo": ("after GRPO", {"sweep.budget": "[8,16,32,48,64,96,128,192]"}),
}


@dataclass(frozen=True)
class DemoConfig:
    """Train, export, and evaluate a tiny reasoning model.

    Args:
        output: Output folder
        seed: Random seed of the corpus, the random weights and the order of the data
        documents: Number of documents for the base model
        traces: Number of reasoning traces for fine-tuning
        steps: Optimizer steps of each training run; null trains as the recipes say
        questions: Number of held-out questions to evaluate, at most 400
        problems: Number of held-out questions to answer in transformers
        rl: Continue with reinforcement learning, which takes about ten minutes more
    """

    output: str = FOLDER
    seed: int = 0
    documents: int = 11_770
    traces: int = 1000
    steps: int | None = None
    questions: int = puzzle_corpus.EVALUATION_QUESTIONS
    problems: int = 100
    rl: bool = False

    def __post_init__(self) -> None:
        """Reject sizes that leave nothing to do."""
        for name in ("documents", "traces", "steps", "questions", "problems"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}={value}: must be 1 or more")


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    config = parse(DemoConfig, argv, command="python -m jaxs1.demo")
    check_output(config.output, folder=True)
    folder, start = Path(config.output), time.monotonic()
    _say("1  Corpus: worksheets for the base model, reasoning traces for fine-tuning")
    if not (folder / "data").exists():
        folder.mkdir(parents=True, exist_ok=True)
        puzzle_corpus.write_corpus(
            folder / "data",
            seed=config.seed,
            base_documents=config.documents,
            sft_examples=config.traces,
        )
    example = _rows(folder / "data" / "sft.jsonl", 1)[0]
    trace = f"{example['question']}\n{example['thinking_trajectories'][0]}\n{example['attempt']}"
    print(f"   the first trace:\n{_quoted(trace)}")
    _say("2  Base model: language modelling on worksheets, from random weights")
    _run("jaxs1.train", BASE, *_train_overrides(config, "base"), "--resume", "auto")
    _say(f"3  Supervised fine-tuning on {config.traces:,} traces, with the recipe of s1")
    _run("jaxs1.train", SFT, *_train_overrides(config, "sft"), "--resume", "auto")
    _say("4  The exported model in transformers, on held-out questions")
    _answer(folder, config.problems)
    _say("5  Test-time scaling: the same questions with thinking cut short, and with Waits")
    overrides = _evaluate_overrides(config)
    _run("jaxs1.evaluate", EVALUATE, *overrides)
    shutil.copy(folder / "evaluation" / "scaling.png", folder / "scaling.png")
    command = ["--config", EVALUATE, *overrides]
    _show_rescue(folder, parse(EvaluateConfig, command, command="python -m jaxs1.evaluate"))
    print(f"   {comparison(read_results(str(folder / 'evaluation')), WAITS)}\n")
    if config.rl:
        _reinforce(config)
    print(f"done in {time.monotonic() - start:.0f} s. In {folder}/:")
    for name, what in [
        ("scaling.png", "accuracy against thinking, with budgets and with Waits"),
        *[("stages.png", "from the base model to reinforcement learning")] * config.rl,
        ("evaluation/", "all figures, samples and pictures"),
        ("sft/hf/", "the fine-tuned model, for transformers and other engines"),
        ("base/, sft/", "config.yaml, metrics.jsonl, tensorboard/, checkpoints/ of the two runs"),
        ("data/", f"the corpus and its tokenizer (rm -r {folder} starts over)"),
    ]:
        print(f"   {name:12} {what}")
    return 0


def _reinforce(config: DemoConfig) -> None:
    """Train by reinforcement learning, evaluate all models, draw and print all stages."""
    folder = Path(config.output)
    _say("6  Reinforcement learning: budgets inside the roll-outs, rewards from the grader")
    _run("jaxs1.grpo", GRPO, *_train_overrides(config, "grpo"), "--resume", "auto")
    _say("7  All stages: the base model and the last one answer the same questions")
    stages = {}
    for stage, (name, changes) in STAGES.items():
        output = folder / "evaluation"
        if stage != "sft":
            output = folder / f"evaluation_{stage}"
            given = {"model": folder / stage / "hf", "name": name, "output": output, **changes}
            _run("jaxs1.evaluate", EVALUATE, *_evaluate_overrides(config), *_flags(given))
        stages[name] = read_results(str(output))
    plots.draw_stages({n: [plots.curve_of(r)] for n, r in stages.items()}, folder / "stages.png")
    print("\n".join(f"   {line}" for line in summary_lines(stages)) + "\n")


def summary_lines(stages: Mapping[str, Results]) -> list[str]:
    """A line for every stage: its accuracy and mean thinking, and those with `WAITS` Waits."""
    lines = []
    for name, results in stages.items():
        points = {point.value: point for point in results.of("num_waits")}
        shown = {"natural stopping": points.get(0), f"{WAITS} Waits": points.get(WAITS)}
        parts = [
            f"{point.accuracy:6.1%} with {what} ({point.thinking_tokens or 0:.0f} tokens)"
            for what, point in shown.items()
            if point is not None
        ]
        lines.append(f"{name:30}{'   '.join(parts)}")
    return lines


def _train_overrides(config: DemoConfig, stage: str) -> list[str]:
    """Arguments of a training run where the settings differ from its recipe."""
    arguments: dict[str, object] = {}
    if config.output != FOLDER:
        data = f"{config.output}/data"
        own: dict[str, dict[str, object]] = {
            "base": {"data.path": f"{data}/base.jsonl", "tokenizer": f"{data}/tokenizer"},
            "sft": {"data.path": f"{data}/sft.jsonl", "model": f"{config.output}/base/hf"},
            "grpo": {
                "data.path": f"{data}/train.jsonl",
                "held_out.path": f"{data}/dev.jsonl",
                "model": f"{config.output}/sft/hf",
            },
        }
        arguments = {"output": f"{config.output}/{stage}", **own[stage]}
    if config.seed != DemoConfig.seed:
        arguments["seed"] = config.seed
    if config.steps is not None:
        arguments["steps"] = config.steps
    return _flags(arguments)


def _evaluate_overrides(config: DemoConfig) -> list[str]:
    """Arguments of the evaluation where the settings differ from its recipe."""
    arguments: dict[str, object] = {}
    if config.output != FOLDER:
        arguments = {
            "model": f"{config.output}/sft/hf",
            "data.path": f"{config.output}/data/test.jsonl",
            "output": f"{config.output}/evaluation",
        }
    if config.questions != DemoConfig.questions:
        arguments["limit"] = config.questions
    return _flags(arguments)


def _flags(arguments: dict[str, object]) -> list[str]:
    return [str(word) for name, value in arguments.items() for word in (f"--{name}", value)]


def _say(line: str) -> None:
    print(f"\n{line}", flush=True)


def _quoted(text: str) -> str:
    return "".join(f"   | {line}\n" for line in text.splitlines())


def _rows(path: Path, count: int) -> list[Row]:
    """The first rows of a JSONL file."""
    return [row for _, (_, row) in zip(range(count), read_jsonl(path), strict=False)]


def _run(module: str, recipe: str, *arguments: str) -> None:
    command = ["-m", module, "--config", recipe, *arguments]
    print(f"   $ {shlex.join(['python', *command])}", flush=True)
    if status := subprocess.run([sys.executable, *command]).returncode:
        raise UserError(f"{recipe}: {module} failed with status {status}; see its message above")


def _answer(folder: Path, count: int) -> None:
    """Answer held-out questions greedily in transformers; print one and the share correct."""
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging
    except ImportError:
        print("   skipped: needs torch (pip install 'jaxs1[torch]')")
        return
    logging.disable_progress_bar()
    export = folder / "sft" / "hf"
    tokenizer = AutoTokenizer.from_pretrained(export, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(export, dtype="float32")
    rows = _rows(folder / "data" / "test.jsonl", count)
    problems = [puzzles.Problem.from_record(row) for row in rows]
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
    shown = f"{problems[0].question}\n{replies[0]}".replace(THINK, "think")
    print(_quoted(shown.replace(ANSWER, "answer")))
    low, high = (f"{x:.0%}" for x in wilson(correct, len(problems)))
    print(
        f"   {correct} of {len(problems)} correct with natural stopping (95 %: {low} to {high})\n"
    )


def comparison(results: Results, waits: int) -> str:
    """A sentence that compares the accuracy with Waits to that of natural stopping."""
    points = {point.value: point for point in results.of("num_waits")}
    found = points[waits].versus_natural
    before, after = (f"{points[n].accuracy:.1%}" for n in (0, waits))
    text = f"With {waits} Waits {after} of {results.questions} answers are correct"
    if found is None:
        return f"{text}, as with natural stopping: no answer changed."
    difference, low, high = (f"{100 * x:+.1f}" for x in (found.difference, found.low, found.high))
    p_value = "p < 0.001" if found.p_value < 0.001 else f"p = {found.p_value:.3f}"
    return (
        f"{text}, with natural stopping {before}: {difference} points on the same questions "
        f"(95 % interval {low} to {high}, {p_value}, McNemar's exact test)."
    )


def _show_rescue(folder: Path, config: EvaluateConfig) -> None:
    """Print a question answered wrongly without Waits, and correctly with the fewest possible."""
    points = points_of(config.sweep, config.thinking)
    keys = {point.value: point.key for point in points if point.method == "num_waits"}
    graded: dict[tuple[str, int], Row] = {}
    for _, row in read_jsonl(folder / "evaluation" / "samples.jsonl", appended=True):
        sample = current_sample(row)
        graded[sample["point"], sample["question_id"]] = sample
    for waits in sorted(int(n) for n in keys if n):
        for number in range(config.limit or DemoConfig.questions):
            before, after = (graded.get((keys[n], number)) for n in (0, waits))
            if before and after and after["correct"] and not before["correct"]:
                wrong = before["answer"].strip()
                print(f"   {before['question']}, without a Wait: {wrong}, which is wrong")
                text = f"{after['thinking']}\n{after['answer']}"
                print(f"   with {waits}:\n{_quoted(text)}")
                return
    print("   no answer that was wrong became correct with a Wait")


if __name__ == "__main__":
    run_command(main)
