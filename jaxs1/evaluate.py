"""How good is a model, and what does thinking longer buy it:

    python -m jaxs1.evaluate --model DIR --task math500 --sweep.max_thinking '[512,1024,2048]' \\
        --sweep.num_waits '[0,1,2,4,6]' --output runs/evaluation

Every point of the sweep answers every question; points share one run of the engine. The output
folder (see `jaxs1.evaluation.samples`) takes samples as they come: killed, the same command goes
on and leaves the same results.json. More points, or a larger --limit, add to what is there.

    settings.json  samples.jsonl  results.json  results.md  scaling.png  waits.png  majority.png
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxs1.config import UserError, parse, run_command
from jaxs1.decoding.base_engine import BaseEngine
from jaxs1.decoding.loading import EngineConfig, LoadedEngine, load_engine
from jaxs1.decoding.outputs import Completion
from jaxs1.decoding.params import Request, SamplingParams, ThinkingParams, delimiters_of
from jaxs1.decoding.prompt import prompt_ids
from jaxs1.decoding.tokenized_thinking import resolve_auto, tokenize_thinking
from jaxs1.evaluation import report
from jaxs1.evaluation.methods import Point, SweepConfig, points_of, steps_in, with_instruction
from jaxs1.evaluation.results import chosen, fits, read_results, results_of
from jaxs1.evaluation.samples import Key, Samples
from jaxs1.tasks import graders
from jaxs1.tasks.benchmarks import Question, Questions, QuestionsConfig, load_questions

SECONDS_BETWEEN_LINES = 20
#: Of a completion, what a line of samples.jsonl has; its settings are those of folder and point.
KEPT = (
    *("thinking", "answer", "thinking_ids", "answer_ids", "interventions", "thinking_ended_by"),
    *("finish_reason", "usage", "seed", "note", "error"),
)


@dataclass(frozen=True)
class EvaluateConfig(EngineConfig):
    """Grade a model on a task, at one or more settings of its thinking.

    Args:
        task: aime24, aime25, math500, gpqa, gsm8k, puzzles, or a FILE.jsonl of one's own
        output: folder of the results; the same command again goes on where it stopped
        name: of the model in tables and pictures; null takes the end of `model`
        n: samples of a question; above 1 also shows majority votes
        seed: of the samples
        limit: only the first so many questions; null for all
        compare: folder of another evaluation, drawn in the same pictures
        data: where the questions lie
        sweep: at which settings the model is measured
        thinking: what holds at all of them
        sampling: how tokens are drawn
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
        """Refuse what measures nothing."""
        if not self.model:
            raise UserError("model='': must name the weights; give --model DIR")
        if not self.task:
            raise UserError("task='': must name what is asked; give --task math500 or FILE.jsonl")
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
) -> dict[str, Any]:
    """Answer, grade, report.

    Args:
        config: what is asked
        opener: loads the model; not called before all that needs no model has been checked

    Returns:
        what results.json holds.

    Raises:
        UserError: a task that cannot be read, a used folder of other settings, ...
    """
    questions = load_questions(config.task, config.data)
    points = points_of(config.sweep, config.thinking)
    other = None if config.compare is None else read_results(config.compare)
    if other is not None and other["task"] != questions.name:
        raise UserError(
            f"compare={config.compare}: has another task, {other['task']}; "
            f"give an evaluation of {questions.name}"
        )
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
    results = results_of(points, questions, config.n, done, samples.settings, name)
    files = report.write_report(results, folder, other)
    _print(results, folder, files)
    return results


def user_prompt(question: str, thinking: ThinkingParams, tokenizer: Any) -> list[int]:
    """Ids of a question as the only message of a conversation."""
    return prompt_ids([{"role": "user", "content": question}], thinking, tokenizer)


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    config = parse(EvaluateConfig, argv, command="python -m jaxs1.evaluate")
    evaluate(config)
    return 0


def _settings(config: EvaluateConfig, questions: Questions, opened: LoadedEngine) -> dict[str, Any]:
    """What all samples of a folder share."""
    return {
        "model": opened.fingerprint,
        "limits.max_seq_len": opened.engine.context,
        "task": questions.name,
        "questions": questions.digest(),
        "kind": questions.kind,
        "grader": graders.VERSION,
        "n": config.n,
        "seed": config.seed,
        "sampling": dataclasses.asdict(config.sampling),
        "thinking": {
            **dataclasses.asdict(config.thinking),
            "delimiters": dataclasses.asdict(delimiters_of(config.thinking)),
        },
    }


def _resolved(point: Point, questions: Questions, tokenizer: Any) -> Point:
    """A budget of "auto" as the number that all questions share, whatever is left to be asked."""
    thinking = point.thinking
    if thinking.max != "auto":
        return point
    asked = tokenize_thinking(thinking, tokenizer)
    texts = [with_instruction(question.text, point) for question in questions.items]
    lengths = [len(user_prompt(text, thinking, tokenizer)) + len(asked.start) for text in texts]
    return dataclasses.replace(point, thinking=resolve_auto(asked, lengths).thinking)


def _collect(
    config: EvaluateConfig,
    engine: BaseEngine,
    points: Sequence[Point],
    questions: Questions,
    samples: Samples,
) -> dict[Key, list[dict[str, Any]]]:
    """All samples that the points need, drawn again where one rejects what is too long.

    What could not run is in the result, but not in the folder: the next run tries it again.
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
            records = [
                _record(c, question, questions.grader, engine.tokenizer) for c in completions
            ]
            if any(record["finish_reason"] == "error" for record in records):
                done[key] = records
            else:
                samples.add(key, records)
                done[key] = samples.done[key]
            if time.monotonic() - last > SECONDS_BETWEEN_LINES:
                last = time.monotonic()
                print(f"  {finished:,} of {len(jobs):,}", flush=True)
    return done


def _missing(
    points: Sequence[Point],
    questions: Questions,
    n: int,
    done: Mapping[Key, Sequence[Mapping[str, Any]]],
    attempt: int,
) -> dict[Key, tuple[Point, Question]]:
    """What must be asked in this round of draws; all but the first are for what was too long."""
    jobs = {}
    for point, question in itertools.product(points, questions.items):
        key = Key(point.key, question.number, attempt)
        if attempt >= point.draws or key in done:
            continue
        taken = [] if attempt == 0 else chosen(point, question.number, n, done)
        if attempt == 0 or not all(fits(point, sample) for sample, _ in taken):
            jobs[key] = point, question
    return jobs


def _request(
    config: EvaluateConfig, tokenizer: Any, key: Key, point: Point, question: Question
) -> Request:
    text = with_instruction(question.text, point)
    drawn = f"{config.seed} {key.question} {key.attempt}"
    return Request(
        prompt_ids=user_prompt(text, point.thinking, tokenizer),
        thinking=point.thinking,
        sampling=config.sampling,
        n=config.n,
        seed=int(hashlib.sha256(drawn.encode()).hexdigest()[:7], 16),
    )


def _record(
    completion: Completion, question: Question, grader: graders.Grader, tokenizer: Any
) -> dict[str, Any]:
    """One line of samples.jsonl."""
    given = grader.extract(_cue(completion, tokenizer) + completion.answer)
    whole = completion.as_json()
    return {
        "correct": grader.is_right(given, question.gold),
        "given": given,
        "gold": question.gold,
        "asked": question.text,
        "steps": steps_in(completion.thinking),
        **{name: whole[name] for name in KEPT},
    }


def _cue(completion: Completion, tokenizer: Any) -> str:
    """The answer_prefix that the controller wrote before the answer: it says that an answer follows."""
    starts = [entry.position for entry in completion.interventions if entry.kind == "answer_prefix"]
    if not starts:
        return ""
    behind = zip(completion.tokens[starts[-1] :], completion.forced[starts[-1] :], strict=True)
    return tokenizer.decode([token for token, _ in itertools.takewhile(lambda x: x[1], behind)])


def _print(results: Mapping[str, Any], folder: Path, files: Sequence[str]) -> None:
    print(f"\n{results['name']} on {results['task']}: {results['questions']:,} questions\n")
    print(report.aligned(*report.point_rows(results)))
    header, rows = report.vote_rows(results)
    if rows:
        print("\n" + report.aligned(header, rows))
    print("\n" + report.aligned(report.MEASURES, report.measure_rows(results)))
    for line in report.warnings_of(results):
        print(f"mind: {line}")
    print(f"\nin {folder}/: {', '.join(files)}")


if __name__ == "__main__":
    run_command(main)
