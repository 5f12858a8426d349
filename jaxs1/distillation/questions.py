"""The questions of a teacher: each text once, with its right answer and its other columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxs1.config import UserError
from jaxs1.data.records import QUESTION_COLUMNS, question_key
from jaxs1.data.sources import Row
from jaxs1.tasks.benchmarks import Kind, QuestionsConfig, stream_questions

#: Beginnings of the names of columns about traces that a question had before.
_OF_TRACES = ("deepseek_", "gemini_", "thinking", "attempt", "length", "correct", "messages")


@dataclass(frozen=True)
class TeacherQuestion:
    """One question.

    Args:
        number: Index in the source, from 0
        key: First 16 hexadecimal digits of the SHA-256 of its text
        text: Text of the question
        gold: Right answer, in the form that the grader of its kind takes; empty if unknown
        columns: The other columns of its row, apart from those about traces
        repeats: Number of the question that has the same text; None: this is the first one
    """

    number: int
    key: str
    text: str
    gold: str
    columns: Row
    repeats: int | None = None


def read_questions(
    source: str, config: QuestionsConfig, limit: int | None
) -> tuple[Kind, list[TeacherQuestion]]:
    """The kind of the answers, and the questions.

    Args:
        source: As in `TracesConfig`
        config: Columns and answers
        limit: Number of questions, the first ones; None: all

    Raises:
        UserError: there is no such source; a row without a question; no questions.
    """
    questions: list[TeacherQuestion] = []
    first: dict[str, int] = {}
    try:
        _, kind, rows = stream_questions(_file_of(source), config, needs_gold=False)
        for question, row in rows:
            if len(questions) == limit:
                break
            key = question_key(question.text)
            repeats = first.setdefault(key, question.number)
            questions.append(
                TeacherQuestion(
                    question.number,
                    key,
                    question.text,
                    question.gold,
                    _columns(row, question.text),
                    repeats if repeats != question.number else None,
                )
            )
    except UserError as error:
        raise UserError(str(error).replace("task=", "questions=", 1)) from None
    if not questions:
        raise UserError(f"questions={source}: holds no rows; give at least one question")
    return kind, questions


def _file_of(source: str) -> str:
    """The file of selected rows where the source is the output folder of a curation."""
    for name in ("selected.jsonl", "selected.parquet"):
        if (path := Path(source) / name).is_file():
            return str(path)
    return source


def _columns(row: Row, question: str) -> Row:
    texts: Sequence[str] = (*QUESTION_COLUMNS, "prompt")
    return {
        name: value
        for name, value in row.items()
        if not name.startswith(_OF_TRACES)
        and not (name in texts and isinstance(value, str) and value.strip() == question)
    }
