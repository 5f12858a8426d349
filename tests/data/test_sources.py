"""Rows from wherever they lie; the hub is a stand-in that answers as `datasets` does."""

import json
import sys
import types

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxs1.config import UserError
from jaxs1.curation.pool import Pool
from jaxs1.data.config import DataConfig
from jaxs1.data.records import load_records
from jaxs1.data.sources import BATCH, Source

ROWS = [
    {"question": f"q{i}", "thinking_trajectories": [f"t{i}"], "attempt": "a", "n": {"i": i}}
    for i in range(BATCH + 3)
]


class Dataset:
    """What `Source` uses of datasets.Dataset, and nothing else."""

    def __init__(self, table):
        self._table, self._is_arrow = table, False

    @property
    def column_names(self):
        return self._table.column_names

    def select_columns(self, names):
        assert names and set(names) <= set(self.column_names)
        return Dataset(self._table.select(names))

    def with_format(self, kind):
        assert kind == "arrow"
        formatted = Dataset(self._table)
        formatted._is_arrow = True
        return formatted

    def iter(self, size):
        assert self._is_arrow
        for start in range(0, len(self._table), size):
            yield self._table.slice(start, size)


@pytest.fixture
def hub(monkeypatch):
    """Hub id -> table; and what was asked for."""
    tables, asked = {}, []

    def load_dataset(name, subset=None, split=None):
        asked.append((name, split) if subset is None else (name, subset, split))
        if name not in tables:
            raise FileNotFoundError(f"Dataset '{name}' doesn't exist\non the Hub")
        return Dataset(tables[name])

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    return tables, asked


def write(kind, tmp_path, hub):
    path = tmp_path / f"rows.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    else:
        hub[0]["owner/pool"] = pa.concat_tables(  # several chunks, as on the hub
            [pa.Table.from_pylist(ROWS[:7]), pa.Table.from_pylist(ROWS[7:])]
        )
        return "owner/pool", "owner/pool[test]"
    return str(path), str(path)


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "hub"])
def test_same_rows_from_everywhere(kind, tmp_path, hub):
    path, name = write(kind, tmp_path, hub)
    source = Source(path, "test")
    assert source.kind == kind
    rows = list(source.rows())
    assert [row for _, row in rows] == ROWS
    assert [where for where, _ in rows] == [f"{name}:{i + 1}" for i in range(len(ROWS))]
    assert hub[1] == ([("owner/pool", "test")] if kind == "hub" else [])


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "hub"])
def test_pool_from_everywhere(kind, tmp_path, hub):
    path, name = write(kind, tmp_path, hub)
    pool = Pool(path, "test", columns={"subject": "attempt"})
    assert pool.names == {*ROWS[0], "subject"}
    batches = list(pool.batches(["question", "subject", "nothing"]))
    assert [v for _, values in batches for v in values] == [
        (r["question"], "a", None) for r in ROWS
    ]
    assert batches[-1][0][-1] == f"{name}:{len(ROWS)}"
    nothing = [v for _, values in pool.batches(["nothing"]) for v in values]
    assert nothing == [(None,)] * len(ROWS)
    chosen = [0, 6, 7, BATCH - 1, BATCH]
    taken = list(pool.take(pa.array(chosen).to_numpy()))
    assert taken == [(i, {**ROWS[i], "subject": "a"}) for i in chosen]


def test_records_from_the_hub(tmp_path, hub):
    path, _ = write("hub", tmp_path, hub)
    name, records = load_records(DataConfig(path=path, split="train", limit=2))
    assert (name, len(records)) == ("s1k", 2)
    assert records[1].where == "owner/pool[train]:2"
    assert records[1].messages[0]["content"] == "q1"


def test_subset_of_a_hub_dataset(tmp_path, hub):
    path, _ = write("hub", tmp_path, hub)
    assert next(Source(path, "test", subset="main").rows()) == ("owner/pool[test]:1", ROWS[0])
    assert hub[1] == [("owner/pool", "main", "test")]


def test_hub_that_does_not_answer_is_one_line(hub):
    with pytest.raises(UserError) as error:
        list(Source("owner/none", setting="data.path").rows())
    assert str(error.value) == (
        "data.path=owner/none: neither a local file nor loadable from the hub "
        "(Dataset 'owner/none' doesn't exist on the Hub)"
    )


def test_hub_without_the_package_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    for names in (lambda: Pool("owner/pool").names, lambda: list(Source("owner/pool").rows())):
        with pytest.raises(UserError, match=r"input=owner/pool: no such file.*'jaxs1\[hub\]'"):
            names()


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("nowhere.jsonl", "no such file"),
        ("no/such/folder/pool.jsonl", "no such file"),
        (".", "is a folder"),
    ],
)
def test_nothing_there(path, words):
    with pytest.raises(UserError, match=f"input={path}: {words}"):
        _ = Source(path).kind
