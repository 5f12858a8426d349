"""Columns of a pool: values by their type, format rules, families, and the question key of s1."""

import json
import random

import numpy as np
import pytest

from jaxs1.config import UserError
from jaxs1.curation.decontaminate import Benchmarks
from jaxs1.curation.pool import Pool
from jaxs1.curation.table import (
    COLUMNS,
    ScanConfig,
    find_defect,
    question_key,
    read_count,
    read_table,
    read_text,
    read_trace,
    read_truth,
)
from tests.curation.pools import AIME, MATH, clean_row, write_jsonl

FAMILIES = {"aime": ["AIME"], "gpqa": ["Idavidrein/gpqa"], "math": ["qfq/openaimath"]}
NAN = float("nan")


def scan(columns=tuple(COLUMNS), subjects=None):
    return ScanConfig(columns, Benchmarks({"b": ["w " * 8]}), FAMILIES, subjects)


def rows_with(*changes):
    return [clean_row(i, random.Random(0)) | change for i, change in enumerate(changes)]


def table_of(tmp_path, rows, config=None, lookups=None):
    path = write_jsonl(tmp_path / "pool.jsonl", rows)
    return read_table(Pool(str(path)), config or scan(), lookups or {})


@pytest.mark.parametrize(
    ("read", "good", "missing", "bad"),
    [
        (read_text, {"a ": "a "}, [None, "", " \n"], [1, ["a"]]),
        (read_trace, {"a": "a"}, [None, [], [""], " "], [{"a": 1}, [3]]),
        (read_count, {0: 0, 3.0: 3}, [None, NAN], [-1, 1.5, True, "3", 2**31]),
        (read_truth, {True: True, 0: False}, [None, NAN], ["true", 2, 0.5]),
    ],
)
def test_values_missing_values_and_wrong_types(read, good, missing, bad):
    assert all(read(value) == expected for value, expected in good.items())
    assert all(read(value) is None for value in missing)
    for value in bad:
        with pytest.raises(UserError, match="must be"):
            read(value)
    assert read_trace(["first", "second"]) == "first"


def test_columns_of_a_table(tmp_path):
    rows = rows_with(
        {"source_type": AIME, "subject": "11", "length": 7, "correct": True},
        {"source_type": MATH, "subject": "03", "length": None, "solved_small": True},
        {"source_type": AIME, "subject": None, "question": "x " + "w " * 9},
    )
    table = table_of(tmp_path, rows)
    assert table.sources == (AIME, MATH) and table.source_N.tolist() == [0, 1, 0]
    assert table.subjects == ("03", "11") and table.subject_N.tolist() == [1, 0, -1]
    assert table.is_family("aime").tolist() == [True, False, True]
    assert table.is_family("math").tolist() == [False, True, False]
    assert table.length_N[:2].tolist() == [7, -1] and table.correct_N[0] == 1
    assert table.small_N[1] == 1
    names = list(COLUMNS)
    assert table.missing_N.tolist() == [-1, names.index("length"), names.index("subject")]
    assert table.benchmark_N.tolist() == [-1, -1, 0]
    assert [f"{key:016x}" for key in table.key_N] == [question_key(r["question"]) for r in rows]
    taken = table.take(np.array([False, True, True]))
    assert taken.row_N.tolist() == [1, 2] and taken.subjects == table.subjects


def test_lookups_fill_only_what_the_pool_lacks(tmp_path):
    rows = rows_with({"length": 5}, {"length": None}, {"length": None})
    lookup = {"length": lambda row: 9 if row["question"] == rows[1]["question"] else None}
    assert table_of(tmp_path, rows, lookups=lookup).length_N.tolist() == [5, 9, -1]


def test_unknown_subjects_and_wrong_values_are_named(tmp_path):
    known = scan(subjects=frozenset({"03"}))
    with pytest.raises(UserError, match=r"pool.jsonl:2: subject='11': is none of the 1 codes"):
        table_of(tmp_path, rows_with({"subject": "03"}, {"subject": "11"}), known)
    with pytest.raises(UserError, match=r"pool.jsonl:1: column 'length' must be a whole number"):
        table_of(tmp_path, rows_with({"length": "long"}))


@pytest.mark.parametrize(
    ("question", "aime", "damaged"),
    [
        ("see [asy]", False, True),
        ("see [asy]", True, False),
        ("see [asy] and ![Image]", True, True),
        ("p1.", False, True),
        ("Step999.", False, True),
        ("p0. p1000. p07. p12 .", False, False),
        ("**1**", False, True),
        ("**a** and 1 **b**", False, True),  # **a** has no digit, but one follows in its line
        ("**a** and\n1", False, False),
        ("** 1 **", False, False),
    ],
)
def test_format_rules(question, aime, damaged):
    assert (find_defect(question, aime) >= 0) == damaged


def test_question_key_is_that_of_s1():
    """A question of s1K (Apache-2.0) and its published qhash."""
    assert question_key("Find the least odd prime factor of $2019^8+1$.") == "fce28356a73f3e1c"


def test_question_keys_of_s1k(shared_data):
    lines = (shared_data / "s1k_questions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    same = sum(question_key(row["question"]) == row["qhash"] for row in rows)
    assert (same, len(rows)) == (859, 893)  # 34 texts of that file were cleaned after hashing
