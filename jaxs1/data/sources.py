"""Rows of JSONL files, Parquet files and hub datasets.

A source may be far larger than memory: at most one batch of rows is held at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from pyarrow import parquet

from jaxs1.config import UserError, one_line
from jaxs1.data.text import check_text
from jaxs1.storage import Row, read_jsonl

BATCH = 1024


@dataclass(frozen=True)
class Source:
    """Rows of a file or hub dataset.

    Args:
        path: JSONL or Parquet file, or id of a hub dataset (owner/name)
        split: split of a hub dataset
        subset: configuration of a hub dataset that has several
        setting: field in which the user gave `path`, for messages
    """

    path: str
    split: str = "train"
    subset: str | None = field(default=None, kw_only=True)
    setting: str = field(default="input", kw_only=True)

    @cached_property
    def kind(self) -> Literal["jsonl", "parquet", "hub"]:
        """How the rows are stored; raises `UserError` if there is no such source."""
        path = Path(self.path)
        if path.is_file():
            try:
                with path.open("rb") as file:
                    return "parquet" if file.read(4) == b"PAR1" else "jsonl"
            except OSError as error:
                raise self._error(f"cannot be read ({error.strerror})") from None
        if path.exists():
            raise self._error("is a folder; give a .jsonl or .parquet file or a hub id")
        if re.fullmatch(r"[\w.-]+/[\w.-]+", self.path) and not path.parent.exists():
            return "hub"
        raise self._error("no such file; give a .jsonl or .parquet file or a hub id")

    def where(self, number: int) -> str:
        """Location of a row, for messages; `number` counts from 0."""
        split = f"[{self.split}]" if self.kind == "hub" else ""
        return f"{self.path}{split}:{number + 1}"

    def rows(self) -> Iterator[tuple[str, Row]]:
        """All rows, each with its location.

        Raises:
            UserError: no such source, a malformed line, one with text that has no encoding, an
                unreadable file or hub dataset.
        """
        if self.kind == "jsonl":
            for where, row in read_jsonl(Path(self.path)):
                try:
                    check_text(row)
                except UserError as error:
                    raise UserError(f"{where}: {error}") from None
                yield where, row
            return
        number = 0
        for batch in self.arrow(None):
            for row in batch.to_pylist():
                yield self.where(number), row
                number += 1

    def arrow_names(self) -> set[str]:
        """Column names of a Parquet file or hub dataset."""
        if self.kind == "hub":
            return set(self._hub.column_names)
        return set(self._parquet().schema_arrow.names)

    def arrow(self, names: list[str] | None) -> Iterator[pa.RecordBatch]:
        """Batches of a Parquet file or hub dataset, with the columns `names` or all of them."""
        if self.kind == "hub":
            dataset = self._hub
            if names is not None:
                there = [n for n in names if n in dataset.column_names]
                # without any column, datasets would lose the number of rows
                dataset = dataset.select_columns(there or dataset.column_names[:1])
            for table in dataset.with_format("arrow").iter(BATCH):
                yield from table.combine_chunks().to_batches()
            return
        try:
            yield from self._parquet().iter_batches(BATCH, columns=names)
        except (pa.ArrowInvalid, OSError) as error:
            raise self._unreadable(error) from None

    def _parquet(self) -> parquet.ParquetFile:
        try:
            return parquet.ParquetFile(self.path, pre_buffer=False)
        except (pa.ArrowInvalid, OSError) as error:
            raise self._unreadable(error) from None

    @cached_property
    def _hub(self) -> Any:
        try:
            import datasets
        except ImportError:
            raise self._error(
                "no such file; as a hub dataset it needs the package datasets; "
                "pip install 'jaxs1[hub]'"
            ) from None
        try:
            return datasets.load_dataset(self.path, self.subset, split=self.split)
        except Exception as error:  # the hub, the network and the loader raise many kinds
            reason = one_line(error)[:200] or type(error).__name__
            raise self._error(
                f"neither a local file nor loadable from the hub ({reason})"
            ) from None

    def _unreadable(self, error: Exception) -> UserError:
        return self._error(f"is not a readable Parquet file ({one_line(error)[:200]})")

    def _error(self, what: str) -> UserError:
        return UserError(f"{self.setting}={self.path}: {what}")
