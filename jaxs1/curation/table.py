"""What the stages need to know about every question, as numpy columns: 36 bytes a row.

`read_table` reads a pool once and keeps only what it found in each text: 10 million questions with
their traces would not fit into memory, these columns do.

Letters: N rows of the pool.
"""

from __future__ import annotations

import dataclasses
import re
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxs1.config import UserError
from jaxs1.curation.decontaminate import Benchmarks
from jaxs1.curation.pool import Pool
from jaxs1.data.records import question_key

#: Format rules of s1's data/filter.ipynb; a question that matches one is dropped.
DEFECTS: dict[str, re.Pattern[str]] = {
    "[asy]": re.compile(r"\[asy\]"),  # kept when the source is AIME
    "![Image]": re.compile(r"!\[Image\]"),
    "p1. to p999.": re.compile(r"p[1-9][0-9]{0,2}\."),
    "**digit**": re.compile(r"\*\*(?=.*\d)[^\s\]]*\*\*"),
}
#: Families of sources that have rules of their own, in the order of `Table.family_N`.
FAMILIES = ("aime", "gpqa", "math")


def read_text(value: Any) -> str | None:
    """A string; None for a missing or blank one."""
    if value is None or isinstance(value, str):
        return value if value and not value.isspace() else None
    raise UserError(f"must be a string, is {value!r:.40}")


def read_trace(value: Any) -> str | None:
    """A trace, or the first of a list (s1K stores a list of one)."""
    if isinstance(value, list):
        value = value[0] if value else None
    return read_text(value)


def read_count(value: Any) -> int | None:
    """An integer >= 0; None for a missing value or the NaN of pandas."""
    if value is None or value != value:
        return None
    whole = value.is_integer() if isinstance(value, float) else isinstance(value, int)
    if isinstance(value, bool) or not whole:
        raise UserError(f"must be a whole number of tokens, is {value!r:.40}")
    if not 0 <= value < 2**31:
        raise UserError(f"must be from 0 to 2^31-1, is {value}")
    return int(value)


def read_truth(value: Any) -> bool | None:
    """True or False, or 1 or 0; None for a missing value or the NaN of pandas."""
    if value is None or value != value:
        return None
    if value not in (0, 1) or isinstance(value, str):
        raise UserError(f"must be true or false, is {value!r:.40}")
    return bool(value)


#: Column -> the function that reads its value; None is a missing feature.
COLUMNS: dict[str, Callable[[Any], Any]] = {
    "question": read_text,
    "source_type": read_text,
    "thinking_trajectories": read_trace,
    "attempt": read_text,
    "length": read_count,
    "correct": read_truth,
    "solved_small": read_truth,
    "solved_large": read_truth,
    "subject": read_text,
}
NAMES = tuple(COLUMNS)


@dataclass(frozen=True)
class Table:
    """One row per question. -1 stands for none, and for unknown if the column was not read.

    Args:
        row_N: int64, number in the pool, from 0
        key_N: uint64, question key
        missing_N: int8, position in `NAMES` of the first missing column
        benchmark_N: int16, position in `benchmarks` of one that overlaps with the question
        defect_N: int8, position in `DEFECTS` of the first one that matches
        source_N: int32, position in `sources`
        family_N: int8, position in `FAMILIES`
        subject_N: int32, position in `subjects`
        length_N: int32, length of the trace [tokens]
        correct_N: int8, whether the attempt is correct
        small_N: int8, whether the small reference model solves the question
        large_N: int8, whether the large reference model solves the question
        benchmarks: Names of the benchmarks
        sources: Names of the sources
        subjects: Names of the subjects, in alphabetical order
    """

    row_N: np.ndarray
    key_N: np.ndarray
    missing_N: np.ndarray
    benchmark_N: np.ndarray
    defect_N: np.ndarray
    source_N: np.ndarray
    family_N: np.ndarray
    subject_N: np.ndarray
    length_N: np.ndarray
    correct_N: np.ndarray
    small_N: np.ndarray
    large_N: np.ndarray
    benchmarks: tuple[str, ...]
    sources: tuple[str, ...]
    subjects: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.row_N)

    def take(self, index: np.ndarray) -> Table:
        """The rows given by a boolean mask or by positions."""
        arrays = {k: v[index] for k, v in vars(self).items() if k.endswith("_N")}
        return dataclasses.replace(self, **arrays)

    def is_family(self, name: str) -> np.ndarray:
        """True for rows whose source belongs to a family."""
        return self.family_N == FAMILIES.index(name)


@dataclass(frozen=True)
class ScanConfig:
    """How `read_table` reads a pool.

    Args:
        columns: Columns of `NAMES` to read; the stage `missing` requires all of them
        benchmarks: Benchmarks whose n-grams are searched for in questions
        families: Family -> substrings of source names that make a source belong to it
        subjects: Known codes of subjects; None accepts any
    """

    columns: tuple[str, ...]
    benchmarks: Benchmarks
    families: Mapping[str, Sequence[str]]
    subjects: frozenset[str] | None = None

    def family(self, source: str) -> int:
        """The position in FAMILIES of a source's family, or -1."""
        for number, name in enumerate(FAMILIES):
            if any(part in source for part in self.families[name]):
                return number
        return -1


def find_defect(question: str, is_aime: bool) -> int:
    """The position in `DEFECTS` of the first one that the question matches, or -1."""
    for number, (name, pattern) in enumerate(DEFECTS.items()):
        if pattern.search(question) and not (name == "[asy]" and is_aime):
            return number
    return -1


class _Labels:
    """Numbers names in the order of their first appearance; None is -1."""

    def __init__(self) -> None:
        self.names: dict[str, int] = {}

    def number(self, name: str | None) -> int:
        return -1 if name is None else self.names.setdefault(name, len(self.names))


#: Column of `Table` -> its type code in `array`.
_CODES = {
    "key_N": "Q", "missing_N": "b", "benchmark_N": "h", "defect_N": "b", "source_N": "i",
    "family_N": "b", "subject_N": "i", "length_N": "i", "correct_N": "b", "small_N": "b",
    "large_N": "b",
}  # fmt: skip


def read_table(
    pool: Pool, scan: ScanConfig, lookups: Mapping[str, Callable[[dict[str, Any]], Any]]
) -> Table:
    """Read every row once.

    Args:
        pool: Pool of questions
        scan: How the pool is read
        lookups: Column -> a function of a row that returns its computed value; called where the
            pool has none

    Raises:
        UserError: an empty pool; a value of the wrong type or an unknown subject, with file, line
            and column.
    """
    names = [*scan.columns, *(["solution"] if lookups else [])]
    columns = {name: array(code) for name, code in _CODES.items()}
    sources, subjects = _Labels(), _Labels()
    for wheres, rows in pool.batches(names):
        for where, values in zip(wheres, rows, strict=True):
            row = dict(zip(names, values, strict=True))
            for name, value in _facts(where, row, scan, lookups, sources, subjects):
                columns[name].append(value)
    arrays = {name: np.frombuffer(a, a.typecode) for name, a in columns.items() if a}
    if not arrays:
        raise pool.is_empty()
    order = sorted(subjects.names)
    place = {name: i for i, name in enumerate(order)}
    by_name = np.array([place[name] for name in subjects.names] + [-1], np.int32)
    arrays["subject_N"] = by_name[arrays["subject_N"]]  # -1 stays -1: it is the last one
    return Table(
        row_N=np.arange(len(arrays["key_N"])),
        **arrays,
        benchmarks=scan.benchmarks.names,
        sources=tuple(sources.names),
        subjects=tuple(order),
    )


def _facts(
    where: str,
    row: dict[str, Any],
    scan: ScanConfig,
    lookups: Mapping[str, Callable[[dict[str, Any]], Any]],
    sources: _Labels,
    subjects: _Labels,
) -> list[tuple[str, int]]:
    """The values of a row in the columns of `Table`."""
    v: dict[str, Any] = dict.fromkeys(NAMES)
    missing = -1
    for name in scan.columns:
        v[name] = read_value(where, name, row[name])
        if v[name] is None and name in lookups:
            v[name] = lookups[name](row)
        if v[name] is None and missing < 0:
            missing = NAMES.index(name)
    if v["subject"] is not None and scan.subjects and v["subject"] not in scan.subjects:
        raise UserError(
            f"{where}: subject={v['subject']!r}: is none of the {len(scan.subjects)} codes in the "
            "file of --subjects; fix the row, or give the file that has it"
        )
    question, source = v["question"] or "", v["source_type"]
    family = scan.family(source or "")
    return [
        ("key_N", int(question_key(question), 16)),
        ("missing_N", missing),
        ("benchmark_N", scan.benchmarks.find(question)),
        ("defect_N", find_defect(question, family == FAMILIES.index("aime"))),
        ("source_N", sources.number(source)),
        ("family_N", family),
        ("subject_N", subjects.number(v["subject"])),
        ("length_N", -1 if v["length"] is None else v["length"]),
        ("correct_N", -1 if v["correct"] is None else v["correct"]),
        ("small_N", -1 if v["solved_small"] is None else v["solved_small"]),
        ("large_N", -1 if v["solved_large"] is None else v["solved_large"]),
    ]


def read_value(where: str, name: str, value: Any) -> Any:
    """A value read as its column requires; a `UserError` names the row and the column."""
    try:
        return COLUMNS[name](value)
    except UserError as error:
        raise UserError(f"{where}: column {name!r} {error}; fix the row") from None
