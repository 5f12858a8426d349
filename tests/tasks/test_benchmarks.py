"""Questions: the shared benchmarks, choices in order, a JSONL of one's own, and what is refused."""

import json
import sys
import types

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxs1.config import UserError
from jaxs1.tasks.benchmarks import QuestionsConfig, load_questions, stream_questions
from jaxs1.tasks.puzzles import Problem
from tests.curation.pools import write_jsonl
from tests.data.test_sources import Dataset

GPQA = {
    "Question": "Which?",
    "Correct Answer": "right",
    **{f"Incorrect Answer {i}": f"wrong {i}" for i in (1, 2, 3)},
}


@pytest.mark.parametrize(
    ("task", "file", "count", "first"),
    [
        ("math500", "math500/test.jsonl", 500, "\\left( 3, \\frac{\\pi}{2} \\right)"),
        ("aime24", "aime/aime24.jsonl", 30, "204"),
        ("aime25", "aime/aime25.jsonl", 30, "70"),
        ("gsm8k", "gsm8k/test.jsonl", 1319, "18"),
    ],
)
def test_shared_benchmarks(shared_data, task, file, count, first):
    path = shared_data / file
    found = load_questions(task, QuestionsConfig(path=str(path)))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(found.items) == count and found.items[0].gold == first
    asked = [(row.get("problem") or row["question"]).strip() for row in rows]
    assert [q.text for q in found.items] == asked  # plain questions, as s1 asks them
    if found.kind == "integer":
        assert all(0 <= int(q.gold) <= 999 for q in found.items)


def test_choices_are_shuffled_by_the_seed_and_the_letter_follows(tmp_path):
    path = str(write_jsonl(tmp_path / "gpqa.jsonl", [GPQA] * 60))
    found = load_questions("gpqa", QuestionsConfig(path=path))
    letters = [q.gold for q in found.items]
    assert set(letters) == set("ABCD") and letters != sorted(letters)
    for question in found.items:
        head, _, choices = question.text.partition("\n\n")
        assert head == "Which?" and f"{question.gold}) right" in choices.splitlines()
        assert sorted(line[3:] for line in choices.splitlines()) == sorted(list(GPQA.values())[1:])
        assert [line[:3] for line in choices.splitlines()] == ["A) ", "B) ", "C) ", "D) "]
    again = load_questions("gpqa", QuestionsConfig(path=path))
    other = load_questions("gpqa", QuestionsConfig(path=path, seed=1))
    assert again == found and again.digest() == found.digest() != other.digest()


def test_own_file_and_puzzles(tmp_path):
    own = write_jsonl(tmp_path / "own.jsonl", [{"prompt": "1+1?", "answer": "2 is it #### 2"}])
    assert load_questions(str(own), QuestionsConfig()).items[0].gold == "2"
    named = write_jsonl(tmp_path / "named.jsonl", [{"q": "1+1?", "gold": 2}])
    fields = {"question": "q", "answer": "gold"}
    found = load_questions(str(named), QuestionsConfig(fields=fields))
    assert [(q.text, q.gold) for q in found.items] == [("1+1?", "2")] and found.kind == "math"
    problem = Problem((4, 2, 7, 1), 1)
    path = write_jsonl(tmp_path / "test.jsonl", [problem.record()])
    (question,) = load_questions("puzzles", QuestionsConfig(path=str(path))).items
    assert question.text == problem.question


@pytest.mark.parametrize(
    ("task", "rows", "settings", "message"),
    [
        ("matth500", None, {}, "task=matth500: unknown task; choose one of aime24"),
        ("no.jsonl", None, {}, "task=no.jsonl: no such file"),
        ("math500", None, {"path": "no.jsonl"}, "data.path=no.jsonl: no such file"),
        ("puzzles", None, {}, "task=puzzles: not on the hub; give --data.path"),
        ("puzzles", [{"question": "x"}], {}, ":1: not a puzzle"),
        ("math500", [{"question": "x"}], {}, ":1: field 'problem' must be a text"),
        ("gpqa", [{**GPQA, "Incorrect Answer 2": None}], {}, "'Incorrect Answer 2' must be"),
        ("math500", [], {}, "task=math500: has no questions"),
        ("own", [{"text": "x"}], {}, ":1: has no question (any of question, problem, prompt)"),
        ("own", [{"question": "x"}], {}, ":1: has no answer"),
        ("own", [{"question": "x", "answer": "a\nb"}], {}, "is not an answer of kind math"),
        (
            "own",
            [{"question": "x", "answer": "7"}],
            {"kind": "letter"},
            "not an answer of kind letter",
        ),
        ("own", [{"question": "x", "answer": "7"}], {"path": "y"}, "the task is a file already"),
    ],
)
def test_refused(tmp_path, task, rows, settings, message):
    if rows is not None:
        path = str(write_jsonl(tmp_path / "rows.jsonl", rows))
        task, settings = (path, settings) if task == "own" else (task, {"path": path, **settings})
    with pytest.raises(UserError) as refusal:
        load_questions(task, QuestionsConfig(**settings))
    assert message in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_named_benchmark_comes_from_its_place_on_the_hub(monkeypatch):
    """The hub is a stand-in: the calls, by `datasets.load_dataset`'s own parameter names."""
    table = pa.Table.from_pylist([{"question": "1+1?", "answer": "It is\n#### 2"}])

    def load_dataset(path, name=None, *, split):
        if (path, name, split) != ("openai/gsm8k", "main", "test"):
            raise ConnectionError("no network")
        return Dataset(table)

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    (question,) = load_questions("gsm8k", QuestionsConfig()).items
    assert (question.text, question.gold) == ("1+1?", "2")
    with pytest.raises(UserError, match=r"task=aime25: .*\(no network\); or give --data.path FILE"):
        load_questions("aime25", QuestionsConfig())


def test_questions_from_parquet(tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([{"problem": "1+1?", "answer": "2"}]), path)
    (question,) = load_questions("math500", QuestionsConfig(path=str(path))).items
    assert (question.text, question.gold) == ("1+1?", "2")


def test_own_questions_from_parquet_and_the_hub(tmp_path, monkeypatch):
    table = pa.Table.from_pylist([{"problem": "1+1?", "answer": "2"}])

    def load_dataset(path, name=None, *, split):
        assert (path, name, split) == ("owner/sums", None, "validation")
        return Dataset(table)

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    pq.write_table(table, tmp_path / "rows.parquet")
    for task, settings in (
        (str(tmp_path / "rows.parquet"), {}),
        ("owner/sums", {"split": "validation"}),
    ):
        (question,) = load_questions(task, QuestionsConfig(**settings)).items
        assert (question.text, question.gold) == ("1+1?", "2")


def test_answers_may_be_unknown(tmp_path):
    """Each row has its own column with an answer, if any."""
    rows = [
        {"question": "a"},
        {"question": "b", "solution": "\\boxed{7}"},
        {"question": "c", "answer": "8", "solution": ""},
        {"question": "d", "solution": "A proof.\nOf many lines."},
        {"question": "e", "answer": None},
    ]
    path = str(write_jsonl(tmp_path / "rows.jsonl", rows))
    _, kind, questions = stream_questions(path, QuestionsConfig(), needs_gold=False)
    found = [(q.text, q.gold, row) for q, row in questions]
    golds = ["", "7", "8", "", ""]
    assert (kind, found) == ("math", list(zip("abcde", golds, rows, strict=True)))
    named = QuestionsConfig(fields={"answer": "solution"})
    golds = [q.gold for q, _ in stream_questions(path, named, needs_gold=False)[2]]
    assert golds == ["", "7", "", "", ""]
    with pytest.raises(UserError, match=r"rows.jsonl:1: has no answer"):
        load_questions(path, QuestionsConfig())


def test_unknown_field_is_refused():
    with pytest.raises(UserError, match=r"data.fields.gold: no such column"):
        QuestionsConfig(fields={"gold": "answer"})
