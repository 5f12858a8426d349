"""A pool of questions as it lies on disk or on the hub, read in batches of a few columns.

A pool may be far larger than memory: nothing here holds more than one batch. What the columns mean
is not known here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from jaxs1.config import UserError
from jaxs1.data.records import Row, read_jsonl

BATCH = 1024


@dataclass(frozen=True)
class Pool:
    """Rows in one file or hub dataset.

    Args:
        path: a JSONL or Parquet file, or the id of a hub dataset (owner/name)
        split: which split of a hub dataset
        columns: our name of a column -> its name in the pool, where they differ
        setting: what the user calls `path`, for messages
    """

    path: str
    split: str = "train"
    columns: dict[str, str] = field(default_factory=dict)
    setting: str = "input"

    @cached_property
    def kind(self) -> Literal["jsonl", "parquet", "hub"]:
        """How the pool is stored; raises `UserError` where there is none."""
        path = Path(self.path)
        if path.is_file():
            with path.open("rb") as file:
                return "parquet" if file.read(4) == b"PAR1" else "jsonl"
        if path.exists():
            raise UserError(
                f"{self.setting}={path}: is a folder; give a .jsonl or .parquet file or a hub id"
            )
        if re.fullmatch(r"[\w.-]+/[\w.-]+", self.path) and not path.parent.exists():
            return "hub"
        raise UserError(
            f"{self.setting}={path}: no such file; give a .jsonl or .parquet file or a hub id"
        )

    @cached_property
    def names(self) -> frozenset[str]:
        """Columns that the pool has, by our names; of JSONL, those of the first rows."""
        if self.kind == "jsonl":
            first = list(islice(read_jsonl(Path(self.path)), BATCH))
            if not first:
                raise self.is_empty()
            theirs = {name for _, row in first for name in row}
        elif self.kind == "parquet":
            theirs = set(self._parquet_file().schema_arrow.names)
        else:
            theirs = set(self._hub().column_names)
        for ours, name in self.columns.items():
            if name not in theirs:
                has = ", ".join(sorted(theirs))
                raise UserError(f"columns.{ours}={name}: {self.path} has only the columns {has}")
        return frozenset(theirs | set(self.columns))

    def batches(self, names: Sequence[str]) -> Iterator[tuple[list[str], list[tuple[Any, ...]]]]:
        """Some columns of all rows, in the pool's order.

        Args:
            names: our names; a column that a row lacks is None

        Yields:
            where each row of a batch is (file:line), and its values in the order of `names`

        Raises:
            UserError: a line that is not UTF-8 or not a JSON object; an unreadable file.
        """
        theirs = [self.columns.get(name, name) for name in names]
        if self.kind == "jsonl":
            rows = read_jsonl(Path(self.path))
            while batch := list(islice(rows, BATCH)):
                yield (
                    [where for where, _ in batch],
                    [tuple(row.get(name) for name in theirs) for _, row in batch],
                )
            return
        number = 0
        for table in self._arrow(theirs):
            has = set(table.schema.names)
            nothing = [None] * table.num_rows
            values = [table.column(n).to_pylist() if n in has else nothing for n in theirs]
            wheres = [f"{self.path}:{number + i + 1}" for i in range(table.num_rows)]
            number += table.num_rows
            yield wheres, list(zip(*values, strict=True)) if values else [()] * table.num_rows

    def rows(self, chosen: np.ndarray) -> Iterator[tuple[int, Row]]:
        """Whole rows, as they are, with columns that were renamed under our name too.

        Args:
            chosen: their numbers, counted from 0, ascending

        Yields:
            a row's number and the row
        """
        for number, row in self._whole(chosen):
            yield number, {**row, **{ours: row.get(name) for ours, name in self.columns.items()}}

    def _whole(self, chosen: np.ndarray) -> Iterator[tuple[int, Row]]:
        if self.kind == "jsonl":
            wanted = iter(chosen.tolist())
            target = next(wanted, None)
            for number, (_, row) in enumerate(read_jsonl(Path(self.path))):
                if target is None:
                    return
                if number == target:
                    yield number, row
                    target = next(wanted, None)
            return
        first = 0
        for table in self._arrow(None):
            low, high = np.searchsorted(chosen, [first, first + table.num_rows])
            numbers = chosen[low:high]
            yield from zip(numbers.tolist(), table.take(numbers - first).to_pylist(), strict=True)
            first += table.num_rows

    def _arrow(self, names: list[str] | None) -> Iterator[pa.RecordBatch]:
        """Batches of a Parquet file or hub dataset; no other columns are read than `names`."""
        if self.kind == "hub":
            dataset = self._hub()
            if names is not None:
                dataset = dataset.select_columns([n for n in names if n in dataset.column_names])
            for table in dataset.with_format("arrow").iter(BATCH):
                yield from table.combine_chunks().to_batches()
            return
        try:
            yield from self._parquet_file().iter_batches(BATCH, columns=names)
        except (pa.ArrowInvalid, OSError) as error:
            raise self._unreadable(error) from None

    def _parquet_file(self) -> parquet.ParquetFile:
        try:
            return parquet.ParquetFile(self.path, pre_buffer=False)
        except (pa.ArrowInvalid, OSError) as error:
            raise self._unreadable(error) from None

    def is_empty(self) -> UserError:
        """What to tell the user about a pool without rows."""
        return UserError(
            f"{self.setting}={self.path}: holds no rows; give a pool with at least one question"
        )

    def _unreadable(self, error: Exception) -> UserError:
        reason = str(error).splitlines()[0]
        return UserError(f"{self.setting}={self.path}: is not a readable Parquet file ({reason})")

    def _hub(self) -> Any:
        try:
            import datasets
        except ImportError:
            raise UserError(
                f"{self.setting}={self.path}: no such file; as a hub dataset it needs the package "
                "datasets; pip install 'jaxs1[hub]'"
            ) from None
        try:
            return datasets.load_dataset(self.path, split=self.split)
        except Exception as error:  # whatever the hub, the network or the loader say
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"{self.setting}={self.path}: neither a local file nor loadable from the hub "
                f"({reason})"
            ) from None


def write_rows(rows: Iterable[Row], path: Path, kind: Literal["jsonl", "parquet"]) -> None:
    """Write rows: JSONL line by line, Parquet at once from memory, with the types pyarrow infers.

    Raises:
        UserError: values that Parquet cannot hold in one column.
    """
    if kind == "jsonl":
        with path.open("w") as file:
            for row in rows:
                file.write(json.dumps(row, default=str) + "\n")
        return
    rows, tables = iter(rows), []
    try:
        while batch := list(islice(rows, BATCH)):
            names = dict.fromkeys(name for row in batch for name in row)
            columns = {name: [row.get(name) for row in batch] for name in names}
            tables.append(pa.table(columns))
        table = pa.concat_tables(tables, promote_options="permissive")
        parquet.write_table(table, path)
    except (pa.ArrowException, UnicodeEncodeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"format=parquet: the selected rows do not fit into a table ({reason}); "
            "give --format jsonl"
        ) from None
