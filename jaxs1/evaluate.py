"""Evaluate a model on a task, and how its accuracy scales with the length of its thinking:

    python -m jaxs1.evaluate --model DIR --task math500 --sweep.budget '[512,1024,2048]' \\
        --sweep.num_waits '[0,1,2,4,6]' --output runs/evaluation

Every point of the sweep answers every question, all points in one run of the engine. The output
folder (see `jaxs1.evaluation.samples`) stores samples as they are completed: if the run is
interrupted, repeat the command to resume it; the results are the same. More points, or a larger
--limit, add to what is stored.

    settings.json  samples.jsonl  results.json  results.md
    scaling.png  waits.png  majority.png  differences.png
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxs1.config import UserError, parse, run_command
from jaxs1.decoding.base_engine import BaseEngine
from jaxs1.decoding.loading import EngineConfig, LoadedEngine, load_engine
from jaxs1.decoding.outputs import Completion, answer_prefix_ids
from jaxs1.decoding.params import (
    Request,
    SamplingParams,
    ThinkingParams,
    delimiters_of,
    resolve_preset,
)
from jaxs1.decoding.prompt import prompt_ids
from jaxs1.decoding.sampling import seed_from_text
from jaxs1.decoding.tokenized_thinking import resolve_auto, tokenize_thinking
from jaxs1.evaluation import report
from jaxs1.evaluation.aggregate import aggregate, chosen, fits
from jaxs1.evaluation.methods import Point, SweepConfig, points_of, steps_in, with_instruction
from jaxs1.evaluation.results import Results, read_results
from jaxs1.evaluation.samples import Key, Sample, Samples
from jaxs1.storage import check_output, explained
from jaxs1.tasks import graders
from jaxs1.tasks.benchmarks import Question, Questions, QuestionsConfig, load_questions

SECONDS_BETWEEN_LINES = 20
#: Settings that older folders lack; stored only if they have an effect.
ADDED = ("presence_penalty", "frequency_penalty", "logit_bias", "min_tokens")
#: Fields of a completion that are stored in samples.jsonl; its settings are those of the folder
#: and of the point.
COMPLETION_FIELDS = (
    *("thinking", "answer", "thinking_ids", "answer_ids", "interventions", "thinking_ended_by"),
    *("finish_reason", "usage", "seed", "note", "error"),
)


@dataclass(frozen=True)
class EvaluateConfig(EngineConfig):
    """Evaluate a model on a task, at one or more settings of its thinking.

    Args:
        task: Task: aime24, aime25, math500, gpqa, gsm8k, puzzles, or a FILE.jsonl of your own
        output: Output folder; the same command resumes an interrupted evaluation
        name: Name of the model in tables and pictures; null uses the end of `model`
        n: Number of samples per question; more than 1 also reports majority votes
        seed: Random seed for sampling
        limit: Number of questions to use, the first ones; null uses all
        compare: Folder of another evaluation to draw into the same pictures
        data: Questions of the task
        sweep: Test-time scaling methods and values to measure
        thinking: Thinking parameters of all points
        sampling: Sampling parameters
    """

    task: str = ""
    output: str = "runs/evaluation"
    name: str | None = None
    n: int = 1
    seed: int = 0
    limit: int | None = None
    compare: str | None = None
    data: QuestionsConfig = field(default_factory=QuestionsConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    thinking: ThinkingParams = field(default_factory=ThinkingParams)
    sampling: SamplingParams = field(default_factory=SamplingParams)

    def __post_init__(self) -> None:
        """Reject settings that cannot be evaluated."""
        if not self.model:
            raise UserError("model='': must name the weights; give --model DIR")
        if not self.task:
            raise UserError("task='': must name the questions; give --task math500 or FILE.jsonl")
        for name in ("n", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}={value}: must be 1 or more")
        if self.n > 1 and self.sampling.is_greedy:
            raise UserError(
                f"n={self.n}: all samples of greedy decoding are equal; "
                "give --sampling.temperature 0.7, or --n 1"
            )
        if self.sweep.rejection and self.sampling.is_greedy:
            raise UserError(
                f"sweep.rejection={self.sweep.rejection}: greedy decoding draws the same again; "
                "give --sampling.temperature 1"
            )


def evaluate(
    config: EvaluateConfig, opener: Callable[[EngineConfig], LoadedEngine] = load_engine
) -> Results:
    """Answer all questions at all points, grade the answers, write the report.

    Args:
        config: Settings of the evaluation
        opener: Loads the model; called after everything that needs no model has been checked

    Returns:
        The content of results.json.

    Raises:
        UserError: a task that cannot be read, an output folder with other settings, ...
    """
    questions = load_questions(config.task, config.data)
    points = points_of(config.sweep, config.thinking)
    other = None if config.compare is None else read_results(config.compare)
    if other is not None and other.task != questions.name:
        raise UserError(
            f"compare={config.compare}: has another task, {other.task}; "
            f"give an evaluation of {questions.name}"
        )
    check_output(config.output, folder=True)
    opened = opener(config)
    print(opened.description, flush=True)
    engine, folder = opened.engine, Path(config.output)
    settings = _settings(config, questions, opened)
    questions = dataclasses.replace(questions, items=questions.items[: config.limit])
    points = [_resolved(point, questions, engine.tokenizer) for point in points]
    samples = Samples(folder, settings)
    try:
        done = _collect(config, engine, points, questions, samples)
    finally:
        samples.close()
    name = config.name or "/".join(Path(config.model).parts[-2:])
    results = aggregate(points, questions, config.n, done, samples.settings, name)
    with explained(folder, setting="output"):
        files = report.write_report(results, folder, other)
    print(f"\n{report.terminal(results)}\n\nin {folder}/: {', '.join(files)}")
    return results


def user_prompt(question: str, thinking: ThinkingParams, tokenizer: Any) -> list[int]:
    """Token ids of a question as the only message of a conversation."""
    return prompt_ids([{"role": "user", "content": question}], thinking, tokenizer)


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    config = parse(EvaluateConfig, argv, command="python -m jaxs1.evaluate")
    evaluate(config)
    return 0


def _settings(config: EvaluateConfig, questions: Questions, opened: LoadedEngine) -> dict[str, Any]:
    """Settings that all samples of a folder share."""
    thinking = resolve_preset(config.thinking, opened.engine.tokenizer)
    return {
        "model": opened.fingerprint,
        "limits.max_seq_len": opened.engine.context,
        "task": questions.name,
        "questions": questions.digest(),
        "kind": questions.kind,
        "grader": graders.VERSION,
        "n": config.n,
        "seed": config.seed,
        "sampling": {
            name: value
            for name, value in dataclasses.asdict(config.sampling).items()
            if value or name not in ADDED
        },
        "thinking": {
            **dataclasses.asdict(thinking),
            "delimiters": dataclasses.asdict(delimiters_of(thinking)),
        },
    }


def _resolved(point: Point, questions: Questions, tokenizer: Any) -> Point:
    """A point with the preset of the tokenizer, and the budget "auto" as a number.

    The number is that for all questions, also when only some are left to run.

    Raises:
        UserError: the delimiters do not suit the tokenizer; one line instead of one a question.
    """
    thinking = resolve_preset(point.thinking, tokenizer)
    point = dataclasses.replace(point, thinking=thinking)
    tokenized = tokenize_thinking(thinking, tokenizer)
    if thinking.max != "auto":
        return point
    texts = [with_instruction(question.text, point) for question in questions.items]
    start = len(tokenized.start)
    lengths = [len(user_prompt(text, thinking, tokenizer)) + start for text in texts]
    return dataclasses.replace(point, thinking=resolve_auto(tokenized, lengths).thinking)


def _collect(
    config: EvaluateConfig,
    engine: BaseEngine,
    points: Sequence[Point],
    questions: Questions,
    samples: Samples,
) -> dict[Key, list[Sample]]:
    """All samples that the points need; what a point rejects as too long is drawn again.

    Samples that could not run are in the result but not stored: the next run tries them again.
    """
    done = dict(samples.done)
    last = time.monotonic()
    for attempt in range(max(point.draws for point in points)):
        jobs = _missing(points, questions, config.n, done, attempt)
        if not jobs:
            continue
        again = "" if attempt == 0 else f", draw {attempt + 1} of what was too long"
        print(f"{len(jobs):,} requests to {config.name or config.model}{again}", flush=True)
        keys = list(jobs)
        requests = (_request(config, engine.tokenizer, key, *jobs[key]) for key in keys)
        for finished, (index, completions) in enumerate(engine.run(requests), start=1):
            key, question = keys[index], jobs[keys[index]][1]
            graded = [_graded(c, question, questions.grader, engine.tokenizer) for c in completions]
            if any(sample["finish_reason"] == "error" for sample in graded):
                done[key] = graded
            else:
                samples.add(key, graded)
                done[key] = samples.done[key]
            if time.monotonic() - last > SECONDS_BETWEEN_LINES:
                last = time.monotonic()
                print(f"  {finished:,} of {len(jobs):,}", flush=True)
    return done


def _missing(
    points: Sequence[Point],
    questions: Questions,
    n: int,
    done: Mapping[Key, Sequence[Sample]],
    attempt: int,
) -> dict[Key, tuple[Point, Question]]:
    """Requests of this round of draws; rounds after the first replace samples that are too long."""
    jobs = {}
    for point, question in itertools.product(points, questions.items):
        key = Key(point.key, question.number, attempt)
        if attempt >= point.draws or key in done:
            continue
        samples = [] if attempt == 0 else chosen(point, question.number, n, done)
        if attempt == 0 or not all(fits(point, sample) for sample, _ in samples):
            jobs[key] = point, question
    return jobs


def _request(
    config: EvaluateConfig, tokenizer: Any, key: Key, point: Point, question: Question
) -> Request:
    text = with_instruction(question.text, point)
    return Request(
        prompt_ids=user_prompt(text, point.thinking, tokenizer),
        thinking=point.thinking,
        sampling=config.sampling,
        n=config.n,
        seed=seed_from_text(f"{config.seed} {key.question_id} {key.attempt}"),
    )


def _graded(
    completion: Completion, question: Question, grader: graders.Grader, tokenizer: Any
) -> Sample:
    """A line of samples.jsonl."""
    prediction = grader.extract(_answer_prefix(completion, tokenizer) + completion.answer)
    fields = completion.as_json()
    return {
        "correct": grader.is_right(prediction, question.gold),
        "prediction": prediction,
        "reference": question.gold,
        "question": question.text,
        "steps": steps_in(completion.thinking),
        **{name: fields[name] for name in COMPLETION_FIELDS},
    }


def _answer_prefix(completion: Completion, tokenizer: Any) -> str:
    """The answer prefix that the controller wrote; the grader may need it to find the answer."""
    return tokenizer.decode(answer_prefix_ids(completion))


if __name__ == "__main__":
    run_command(main)
