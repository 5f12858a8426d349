"""The traces of a teacher as training data: the columns of s1K-1.1, in the order of the questions.

    traces.jsonl    kept traces, ready for jaxs1.train and jaxs1.curate
    dropped.jsonl   all others in the same columns, each with its reason

Nothing in them depends on time or on the order in which the answers came.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from jaxs1.distillation.answers import Answer, Answers, Key
from jaxs1.distillation.config import TracesConfig
from jaxs1.distillation.counts import SampleCounts
from jaxs1.distillation.questions import TeacherQuestion
from jaxs1.distillation.verify import Sample, Verdict, check, select
from jaxs1.storage import JsonlWriter, Row, explained, sync
from jaxs1.tasks.benchmarks import GRADERS, Kind

TRACES, DROPPED = "traces.jsonl", "dropped.jsonl"


def write_output(
    config: TracesConfig,
    kind: Kind,
    questions: Sequence[TeacherQuestion],
    answers: Answers,
    failures: Mapping[Key, str],
) -> SampleCounts:
    """Check all answers, and write those that are kept and those that are dropped.

    Args:
        config: Settings
        kind: Kind of the right answers
        questions: Questions
        answers: Stored answers
        failures: Why some are missing

    Returns:
        counts for the report

    Raises:
        UserError: the folder cannot be written.
    """
    folder, counts = Path(config.output), SampleCounts(tuple(config.group_by))
    with ExitStack() as stack:
        kept, dropped = (
            stack.enter_context(_replaced(folder / name)) for name in (TRACES, DROPPED)
        )
        for question in questions:
            samples = list(_samples(config, kind, question, answers, failures))
            counts.add(question, samples)
            for sample in samples:
                row = _record(config, question, sample)
                if reason := sample.verdict.reason:
                    dropped.write({"reason": reason, "detail": sample.verdict.detail, **row})
                else:
                    kept.write(row)
    return counts


def _samples(
    config: TracesConfig,
    kind: Kind,
    question: TeacherQuestion,
    answers: Answers,
    failures: Mapping[Key, str],
) -> Iterator[Sample]:
    """All samples of a question, in order."""
    if question.repeats is not None:
        detail = f"of question {question.repeats}"
        yield Sample(None, None, Verdict("repeated question", detail))
        return
    given: dict[int, Answer] = {}
    missing: dict[int, Verdict] = {}
    for number in range(config.n):
        key = Key(question.key, number)
        if key in answers.stored:
            given[number] = answers.get(key)
        elif key in failures:
            missing[number] = Verdict("failed", failures[key])
        else:
            missing[number] = Verdict("not requested")
    grader = GRADERS[kind]
    verdicts = {s: check(answer, question.gold, grader) for s, answer in given.items()}
    seed = f"{config.seed} {question.key}"
    verdicts = missing | select(given, verdicts, config.keep, seed)
    for number in range(config.n):
        yield Sample(number, given.get(number), verdicts[number])


def _record(config: TracesConfig, question: TeacherQuestion, sample: Sample) -> Row:
    """A sample in the columns of s1K-1.1, and where it comes from."""
    answer, correct = sample.answer, sample.verdict.correct
    columns = {"solution": question.gold or None, **question.columns}
    # curate counts a column without a value as missing
    graded = {} if correct is None else {"correct": correct}
    return {
        "question": question.text,
        **columns,
        "deepseek_thinking_trajectory": answer.thinking if answer else None,
        "deepseek_attempt": answer.answer if answer else None,
        "deepseek_grade": None if correct is None else ("No", "Yes")[correct],
        **graded,
        "teacher": config.model,
        "question_number": question.number,
        "sample": sample.number,
        "finish_reason": answer.finish_reason if answer else None,
        "thinking_ended_by": answer.thinking_ended_by if answer else None,
        "prompt_tokens": answer.prompt_tokens if answer else None,
        "completion_tokens": answer.completion_tokens if answer else None,
    }


@contextmanager
def _replaced(path: Path) -> Iterator[JsonlWriter]:
    """A writer of a file that takes the place of an older one once it is complete."""
    partial = path.with_name(path.name + ".partial")
    with explained(path):
        partial.unlink(missing_ok=True)
        with JsonlWriter(partial) as writer:
            yield writer
        sync(partial)
        partial.replace(path)
