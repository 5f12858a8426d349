"""The output folder of a curation, written atomically."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from jaxs1.curation.filters import Stage
from jaxs1.curation.pool import Pool, write_rows
from jaxs1.curation.report import CurationResult, write_report
from jaxs1.curation.table import COLUMNS
from jaxs1.data.sources import Row
from jaxs1.storage import atomic_folder

Lookups = Mapping[str, Callable[[Mapping[str, Any]], Any]]
WRITTEN_AT_ONCE = 1 << 20


def write_output(
    result: CurationResult,
    pool: Pool,
    lookups: Lookups,
    output: Path,
    *,
    kind: Literal["jsonl", "parquet"],
    settings: str,
) -> None:
    """Write all files; the folder appears once they are complete.

    Args:
        result: What was selected and why
        pool: Pool of the rows
        lookups: Column -> function of a row that returns its computed value
        output: Folder to create
        kind: File format of the selected rows
        settings: Text of config.yaml

    Raises:
        UserError: the folder exists or cannot be written; rows that Parquet cannot store.
    """
    with atomic_folder(output, setting="output") as partial:
        (partial / "config.yaml").write_text(settings)
        questions: dict[int, str] = {}
        rows = _selected_rows(result, pool, lookups, questions)
        write_rows(rows, partial / f"selected.{kind}", kind)
        _write_dropped(result.chosen.stages, partial / "dropped.parquet")
        write_report(result, questions, partial)


def _selected_rows(
    result: CurationResult, pool: Pool, lookups: Lookups, questions: dict[int, str]
) -> Iterator[Row]:
    """Selected rows, otherwise unchanged, with qhash and computed features.

    The questions of the report's extremes are added to `questions` in passing.
    """
    extremes = {i for rows in result.extremes().values() for i in rows}
    for number, row in pool.take(np.flatnonzero(result.chosen.selected_N)):
        if number in extremes:
            questions[number] = row.get("question") or ""
        for name, find in lookups.items():
            if COLUMNS[name](row.get(name)) is None:
                row[name] = find(row)
        yield {**row, "qhash": f"{result.table.key_N[number]:016x}"}


def _write_dropped(stages: Sequence[Stage], path: Path) -> None:
    """Write every dropped row: number in the pool (from 1), question key, stage, reason."""
    schema = pa.schema(
        {"row": pa.int64(), "qhash": pa.string(), "stage": pa.string(), "reason": pa.string()}
    )
    with parquet.ParquetWriter(path, schema) as writer:
        for stage in stages:
            reasons = np.array(stage.reasons, dtype=object)
            for start in range(0, len(stage.row_D), WRITTEN_AT_ONCE):
                part = slice(start, start + WRITTEN_AT_ONCE)
                columns = [
                    stage.row_D[part] + 1,
                    [f"{key:016x}" for key in stage.key_D[part].tolist()],
                    [stage.name] * len(stage.row_D[part]),
                    reasons[stage.reason_D[part]],
                ]
                writer.write_table(pa.table(columns, schema=schema))
