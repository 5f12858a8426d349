"""Pools: the same from JSONL and Parquet, under standard names."""

import numpy as np
import pytest

from jaxs1.config import UserError
from jaxs1.curation.pool import Pool, write_rows

ROWS = [{"q": f"question {i}", "length": i, "nested": {"a": [i]}} for i in range(2500)]


@pytest.fixture(params=["jsonl", "parquet"])
def path(request, tmp_path):
    path = tmp_path / f"pool.{request.param}"
    write_rows(ROWS, path, request.param)
    return path


def test_names_batches_and_rows(path):
    pool = Pool(str(path), columns={"question": "q"})
    assert pool.names == {"q", "question", "length", "nested"}
    batches = list(pool.batches(["length", "question", "absent"]))
    assert len(batches) > 1
    assert [value for _, values in batches for value in values] == [
        (row["length"], row["q"], None) for row in ROWS
    ]
    wheres = [where for batch, _ in batches for where in batch]
    assert wheres[0] == f"{path}:1" and wheres[-1] == f"{path}:2500"
    chosen = np.array([0, 7, 1023, 1024, 2499])
    assert dict(pool.take(chosen)) == {
        i: ROWS[i] | {"question": ROWS[i]["q"]} for i in chosen.tolist()
    }
    assert list(pool.take(np.array([], int))) == []


def test_a_column_that_is_not_there(path):
    with pytest.raises(UserError, match=r"columns.subject=topic: .* has only the columns length, "):
        _ = Pool(str(path), columns={"subject": "topic"}).names


def test_an_empty_pool(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match=r"input=\S+empty.jsonl: holds no rows"):
        _ = Pool(str(tmp_path / "empty.jsonl")).names


def test_rows_that_parquet_cannot_store(tmp_path):
    rows = [{"a": 1}, {"a": "text"}]
    with pytest.raises(UserError, match=r"do not fit into a table .*give --format jsonl"):
        write_rows(rows, tmp_path / "x.parquet", "parquet")
    write_rows(rows, tmp_path / "x.jsonl", "jsonl")
    assert [row for _, row in Pool(str(tmp_path / "x.jsonl")).rows()] == rows
