"""A pool of questions: a data source read in batches of a few columns, under standard names.

A pool may be far larger than memory: at most one batch is held. This file does not know what the
columns mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from jaxs1.config import UserError, one_line
from jaxs1.data.sources import BATCH, Row, Source, read_jsonl
from jaxs1.storage import JsonlWriter


@dataclass(frozen=True)
class Pool(Source):
    """Rows of one file or hub dataset, under standard column names.

    Args:
        path, split, setting: See `Source`
        columns: Standard name of a column -> its name in the pool, where they differ
    """

    columns: dict[str, str] = field(default_factory=dict)

    @cached_property
    def names(self) -> frozenset[str]:
        """Standard names of the columns in the pool; for JSONL, those of the first rows."""
        if self.kind == "jsonl":
            first = list(islice(read_jsonl(Path(self.path)), BATCH))
            if not first:
                raise self.is_empty()
            found = {name for _, row in first for name in row}
        else:
            found = self.arrow_names()
        for standard, name in self.columns.items():
            if name not in found:
                has = ", ".join(sorted(found))
                raise UserError(
                    f"columns.{standard}={name}: {self.path} has only the columns {has}; "
                    "name one of them"
                )
        return frozenset(found | set(self.columns))

    def batches(self, names: Sequence[str]) -> Iterator[tuple[list[str], list[tuple[Any, ...]]]]:
        """Some columns of all rows, in the order of the pool.

        Args:
            names: Standard names of the columns; a missing value is None

        Yields:
            The location of each row of a batch (file:line), and its values in the order of `names`

        Raises:
            UserError: a line that is not UTF-8 or not a JSON object, an unreadable file.
        """
        stored = [self.columns.get(name, name) for name in names]
        if self.kind == "jsonl":
            rows = read_jsonl(Path(self.path))
            while batch := list(islice(rows, BATCH)):
                yield (
                    [where for where, _ in batch],
                    [tuple(row.get(name) for name in stored) for _, row in batch],
                )
            return
        number = 0
        for table in self.arrow(stored):
            has = set(table.schema.names)
            nothing = [None] * table.num_rows
            values = [table.column(n).to_pylist() if n in has else nothing for n in stored]
            wheres = [self.where(number + i) for i in range(table.num_rows)]
            number += table.num_rows
            yield wheres, list(zip(*values, strict=True)) if values else [()] * table.num_rows

    def take(self, chosen: np.ndarray) -> Iterator[tuple[int, Row]]:
        """Complete rows, unchanged, with renamed columns under their standard name in addition.

        Args:
            chosen: Numbers of the rows from 0, ascending

        Yields:
            The number of a row and the row
        """
        for number, row in self._stored(chosen):
            renamed = {standard: row.get(name) for standard, name in self.columns.items()}
            yield number, {**row, **renamed}

    def _stored(self, chosen: np.ndarray) -> Iterator[tuple[int, Row]]:
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
        for table in self.arrow(None):
            low, high = np.searchsorted(chosen, [first, first + table.num_rows])
            numbers = chosen[low:high]
            yield from zip(numbers.tolist(), table.take(numbers - first).to_pylist(), strict=True)
            first += table.num_rows

    def is_empty(self) -> UserError:
        """The error for a pool without rows."""
        return UserError(
            f"{self.setting}={self.path}: holds no rows; give a pool with at least one question"
        )


def write_rows(rows: Iterable[Row], path: Path, kind: Literal["jsonl", "parquet"]) -> None:
    """Write rows: JSONL line by line, Parquet at once from memory with the types pyarrow infers.

    Raises:
        UserError: values of one column that Parquet cannot store together.
    """
    if kind == "jsonl":
        with JsonlWriter(path, new=True) as writer:
            for row in rows:
                writer.write(row)
        return
    rows, tables = iter(rows), []
    try:
        while batch := list(islice(rows, BATCH)):
            names = dict.fromkeys(name for row in batch for name in row)
            columns = {name: [row.get(name) for row in batch] for name in names}
            tables.append(pa.table(columns))
        table = pa.concat_tables(tables, promote_options="permissive")
        parquet.write_table(table, path)
    except (pa.ArrowException, UnicodeEncodeError, OverflowError) as error:
        reason = one_line(error)[:200]
        raise UserError(
            f"format=parquet: the selected rows do not fit into a table ({reason}); "
            "give --format jsonl"
        ) from None
