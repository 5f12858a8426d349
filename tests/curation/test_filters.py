"""Filters on small tables: which rows, which reasons, in which order."""

import random

import numpy as np
import pytest

from jaxs1.curation import filters
from jaxs1.curation.decontaminate import Benchmarks
from jaxs1.curation.pool import Pool
from jaxs1.curation.table import COLUMNS, ScanConfig, read_table
from tests.curation.pools import AIME, GPQA, MATH, OTHERS, clean_row, write_jsonl
from tests.curation.test_table import FAMILIES

GOOD = {"solved_small": False, "solved_large": False, "source_type": OTHERS[0]}


@pytest.fixture
def table_with(tmp_path):
    def make(*changes):
        rows = [clean_row(i, random.Random(0)) | GOOD | c for i, c in enumerate(changes)]
        scan = ScanConfig(tuple(COLUMNS), Benchmarks({"b": ["w " * 8]}), FAMILIES)
        path = write_jsonl(tmp_path / "pool.jsonl", rows)
        return read_table(Pool(str(path)), scan, {})

    return make


def dropped(verdict):
    reason_N, reasons = verdict
    return {i: reasons[reason] for i, reason in enumerate(reason_N.tolist()) if reason >= 0}


def test_each_filter(table_with):
    table = table_with(
        {"question": "same"}, {"question": "same"}, {"question": None}, {"question": " "},
        {"question": "w " * 8}, {"attempt": None}, {"question": "see ![Image]"},
        {"solved_small": True}, {"solved_large": True}, {"solved_small": True, "solved_large": 1},
    )  # fmt: skip
    assert dropped(filters.duplicates(table)) == {1: "same question as an earlier row"}
    assert dropped(filters.decontamination(table)) == {4: "8 words in a row as in b"}
    assert dropped(filters.missing(table)) == {
        2: "question is missing", 3: "question is missing", 5: "attempt is missing"
    }  # fmt: skip
    assert dropped(filters.format_rules(table)) == {6: "question contains ![Image]"}
    assert dropped(filters.difficulty(table)) == {
        7: "solved by the small model",
        8: "solved by the large model",
        9: "solved by both models",
    }


def test_filters_run_in_order_and_a_row_is_dropped_once(table_with):
    table = table_with(
        {"question": "w " * 8}, {"question": "w " * 8, "attempt": None}, {"attempt": None}, {}
    )
    left, stages = filters.apply_filters(table, ["missing", "decontamination", "duplicates"])
    assert [stage.name for stage in stages] == ["duplicates", "decontamination", "missing"]
    assert [stage.row_D.tolist() for stage in stages] == [[1], [0], [2]]
    assert [stage.kept for stage in stages] == [3, 2, 1]
    assert left.row_N.tolist() == [3] and stages[2].counts() == {"attempt is missing": 1}
    everything, none = filters.apply_filters(table, [])
    assert len(everything) == 4 and none == []


def test_seeds(table_with):
    right = {"correct": True, "length": 5601}
    table = table_with(
        right | {"source_type": AIME}, right | {"source_type": GPQA},
        right | {"source_type": MATH}, right | {"source_type": MATH, "length": 5600},
        right, right | {"source_type": AIME, "correct": False, "length": 9000},
    )  # fmt: skip
    assert np.flatnonzero(filters.seeds(table, 5600)).tolist() == [0, 1, 2]
