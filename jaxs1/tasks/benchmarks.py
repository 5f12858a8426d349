"""Questions and their right answers: named benchmarks, your own files, the demo's puzzles.

`TASKS` gives a benchmark's hub dataset, its columns and the kind of its answers; a new benchmark is
one row. `GRADERS` reads and compares the answers of each kind.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jaxs1.config import UserError, one_line
from jaxs1.data.records import QUESTION_COLUMNS
from jaxs1.data.sources import Row, Source
from jaxs1.tasks import graders, puzzles

Kind = Literal["math", "integer", "letter", "puzzle"]


@dataclass(frozen=True)
class Task:
    """A benchmark.

    Args:
        kind: kind of its answers
        hub: its dataset on the hub; None if it is on disk only
        question: column with the question
        answer: column with the right answer
        wrong: columns with the wrong choices of a multiple-choice question
    """

    kind: Kind
    hub: Source | None = None
    question: str = "question"
    answer: str = "answer"
    wrong: tuple[str, ...] = ()


def _hub(path: str, split: str = "test", subset: str | None = None) -> Source:
    return Source(path, split, subset=subset, setting="hub")


TASKS = {
    "aime24": Task("integer", _hub("simplescaling/aime24_nofigures", "train"), "problem"),
    "aime25": Task("integer", _hub("math-ai/aime25"), "problem"),
    "math500": Task("math", _hub("simplescaling/openaimath"), "problem"),
    "gpqa": Task(
        "letter",
        _hub("Idavidrein/gpqa", "train", "gpqa_diamond"),
        question="Question",
        answer="Correct Answer",
        wrong=("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"),
    ),
    "gsm8k": Task("math", _hub("openai/gsm8k", subset="main")),
    "puzzles": Task("puzzle"),
}
#: Columns of a custom file that may hold the answer, the likeliest first.
ANSWER_COLUMNS = ("answer", "solution", "target")
_NOTHING = (None, "")


@dataclass(frozen=True)
class QuestionsConfig:
    """Source of the questions.

    Args:
        path: file with the questions of a named task, .jsonl or .parquet; null takes them from
            the hub
        fields: column names that differ, e.g. '{"question": "prompt", "answer": "gold"}'
        kind: kind of the answers of your own questions; auto is math
        seed: random seed of the order of the choices of a multiple-choice question
        split: split of a hub dataset that is no named task
    """

    path: str | None = None
    fields: dict[str, str] = field(default_factory=dict)
    kind: Literal["auto", "math", "integer", "letter", "puzzle"] = "auto"
    seed: int = 0
    split: str = "train"

    def __post_init__(self) -> None:
        """Reject unknown columns."""
        if unknown := set(self.fields) - {"question", "answer"}:
            raise UserError(f"data.fields.{min(unknown)}: no such column; give question or answer")


@dataclass(frozen=True)
class Question:
    """One question.

    Args:
        number: index in the task, from 0
        text: text that the model reads
        gold: right answer, in the form that the grader of its kind takes; empty if unknown
    """

    number: int
    text: str
    gold: str


@dataclass(frozen=True)
class Questions:
    """A task's questions and the kind of their answers."""

    name: str
    kind: Kind
    items: tuple[Question, ...]

    @property
    def grader(self) -> graders.Grader:
        """Grader of this kind of answers."""
        return GRADERS[self.kind]

    def digest(self) -> str:
        """Digest of the questions, including the order of choices; eight hexadecimal digits."""
        text = json.dumps([(q.text, q.gold) for q in self.items])
        return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]


def load_questions(task: str, config: QuestionsConfig) -> Questions:
    """All questions of a named task, a file or a hub dataset.

    Args:
        task: name in TASKS, FILE.jsonl, FILE.parquet, or id of a hub dataset (owner/name)
        config: their source

    Raises:
        UserError: an unknown task, a missing file, a row without question or answer.
    """
    name, kind, rows = stream_questions(task, config)
    items = tuple(question for question, _ in rows)
    if not items:
        raise UserError(f"task={task}: has no questions; give a file with at least one")
    return Questions(name, kind, items)


def stream_questions(
    task: str, config: QuestionsConfig, *, needs_gold: bool = True
) -> tuple[str, Kind, Iterator[tuple[Question, Row]]]:
    """The name of a task, the kind of its answers, and its questions with their rows.

    Args:
        task: as in `load_questions`
        config: their source
        needs_gold: whether a question without a right answer is an error

    Raises:
        UserError: an unknown task; the iterator: a missing file, a row without question or answer.
    """
    if task in TASKS:
        name, known, rows = task, TASKS[task], _rows_of(task, TASKS[task], config.path)
    elif task.endswith((".jsonl", ".parquet")) or "/" in task:
        if config.path is not None:
            raise UserError(f"data.path={config.path}: the task is a file already; leave it out")
        source = Source(task, config.split, setting="task")
        name, known, rows = Path(task).name, _custom(source, config, needs_gold), source.rows()
    else:
        raise UserError(
            f"task={task}: unknown task; choose one of {', '.join(TASKS)}, or FILE.jsonl"
        )
    questions = (
        (_question(number, where, row, known, config, needs_gold), row)
        for number, (where, row) in enumerate(rows)
    )
    return name, known.kind, questions


def _rows_of(name: str, task: Task, path: str | None) -> Iterator[tuple[str, Row]]:
    if path is not None:
        yield from Source(path, setting="data.path").rows()
        return
    if task.hub is None:
        raise UserError(
            f"task={name}: not on the hub; give --data.path FILE.jsonl, e.g. demo/data/test.jsonl"
        )
    try:
        yield from task.hub.rows()
    except UserError as error:
        raise UserError(f"task={name}: {error}; or give --data.path FILE.jsonl") from None


def _custom(source: Source, config: QuestionsConfig, needs_gold: bool) -> Task:
    """The columns of a custom file, found in its first row."""
    where, row = next(source.rows(), (source.path, {}))
    names = {}
    for column, known in (("question", (*QUESTION_COLUMNS, "prompt")), ("answer", ANSWER_COLUMNS)):
        found = [n for n in known if n in row]
        is_needed = column == "question" or needs_gold
        if not found and is_needed and column not in config.fields and row:
            raise UserError(
                f"{where}: has no {column} (any of {', '.join(known)}) among its columns "
                f"""{", ".join(row)}; name it with --data.fields '{{"{column}": "COLUMN"}}'"""
            )
        names[column] = found[0] if found else column
    kind: Kind = "math" if config.kind == "auto" else config.kind
    return Task(kind, question=names["question"], answer=names["answer"])


def _question(
    number: int, where: str, row: Row, task: Task, config: QuestionsConfig, needs_gold: bool
) -> Question:
    if task.kind == "puzzle":
        return _puzzle(number, where, row)
    columns = {"question": task.question, "answer": task.answer, **config.fields}
    if not needs_gold and row.get(columns["answer"]) in _NOTHING:
        known = () if "answer" in config.fields else ANSWER_COLUMNS
        columns["answer"] = next((n for n in known if row.get(n) not in _NOTHING), "")
        if not columns["answer"]:
            return Question(number, _text(where, row, columns["question"], "question"), "")
    text, answer = (_text(where, row, columns[name], name) for name in ("question", "answer"))
    if task.wrong:
        wrong = [_text(where, row, name, name) for name in task.wrong]
        text, gold = _with_choices(text, answer, wrong, random.Random(f"{config.seed} {number}"))
    else:
        found = GRADERS[task.kind].extract(answer)
        if found is None and needs_gold:
            raise UserError(
                f"{where}: {columns['answer']}={answer[:60]!r} is not an answer of kind "
                f"{task.kind}; give another --data.kind, or another column in --data.fields"
            )
        gold = found or ""
    return Question(number, text, gold)


def _text(where: str, row: Row, column: str, name: str) -> str:
    value = row.get(column)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise UserError(
            f"{where}: field {column!r} must be a text that is not empty; name another with "
            f"""--data.fields '{{"{name}": "COLUMN"}}'"""
        )
    return value.strip()


def _with_choices(
    question: str, right: str, wrong: list[str], rng: random.Random
) -> tuple[str, str]:
    """The question with its choices in s1's form, shuffled, and the right one's letter."""
    choices = [right, *wrong]
    order = rng.sample(range(len(choices)), len(choices))
    letters = [chr(ord("A") + i) for i in range(len(choices))]
    lines = [f"{letter}) {choices[i]}" for letter, i in zip(letters, order, strict=True)]
    return f"{question}\n\n" + "\n".join(lines), letters[order.index(0)]


def _puzzle(number: int, where: str, row: Row) -> Question:
    try:
        problem = puzzles.Problem.from_record(dict(row))
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"{where}: not a puzzle ({one_line(error)}); give a file that the demo wrote"
        ) from None
    return Question(number, problem.question, json.dumps(problem.record()))


def _expression(text: str) -> str | None:
    """A puzzle's answer without the preceding words that `puzzles.is_correct` ignores."""
    return re.sub(r"^(Answer:\s*)?(Final Answer:)?\s*", "", text.strip()) or None


def _solves(given: str, gold: str) -> bool:
    return puzzles.is_correct(puzzles.Problem.from_record(json.loads(gold)), given)


#: Kind of answer -> its grader.
GRADERS = {**graders.GRADERS, "puzzle": graders.Grader(_expression, str.__eq__, _solves)}
