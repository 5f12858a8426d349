"""The folder that a curation leaves: whole, or not there at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from jaxs1.config import UserError
from jaxs1.curation.filters import Stage
from jaxs1.curation.pool import Pool, write_rows
from jaxs1.curation.report import Story, write_report
from jaxs1.curation.table import COLUMNS
from jaxs1.data.sources import Row

Lookups = Mapping[str, Callable[[Mapping[str, Any]], Any]]
WRITTEN_AT_ONCE = 1 << 20


def write_output(
    story: Story,
    pool: Pool,
    lookups: Lookups,
    output: Path,
    *,
    kind: Literal["jsonl", "parquet"],
    settings: str,
) -> None:
    """Write everything under OUTPUT.partial, which is renamed at the end.

    Args:
        story: what was selected and why
        pool: where the rows come from
        lookups: column -> function of a row that gives the value computed for it
        output: the folder to be made
        kind: of the selected rows
        settings: text of config.yaml

    Raises:
        UserError: the folder cannot be written; rows that Parquet cannot hold.
    """
    partial = output.with_name(output.name + ".partial")
    try:
        _claim(partial)
        (partial / "config.yaml").write_text(settings)
        questions: dict[int, str] = {}
        rows = _selected_rows(story, pool, lookups, questions)
        write_rows(rows, partial / f"selected.{kind}", kind)
        _write_dropped(story.chosen.stages, partial / "dropped.parquet")
        write_report(story, questions, partial)
        partial.rename(output)
    except OSError as error:
        raise UserError(
            f"output={output}: cannot be written ({error.strerror or error}); features that were "
            "computed are kept"
        ) from None


def _claim(partial: Path) -> None:
    """Make the folder, in place of what an interrupted curation left; nothing else."""
    if partial.exists() and any(partial.iterdir()) and not (partial / "config.yaml").exists():
        raise UserError(f"{partial}: holds something else than a curation; move it away")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)


def _selected_rows(
    story: Story, pool: Pool, lookups: Lookups, questions: dict[int, str]
) -> Iterator[Row]:
    """Selected rows as they are, with qhash and computed features.

    The questions of the report's extremes are put into `questions` on the way.
    """
    extremes = {i for rows in story.extremes().values() for i in rows}
    for number, row in pool.take(np.flatnonzero(story.chosen.selected_N)):
        if number in extremes:
            questions[number] = row.get("question") or ""
        for name, find in lookups.items():
            if COLUMNS[name](row.get(name)) is None:
                row[name] = find(row)
        yield {**row, "qhash": f"{story.table.key_N[number]:016x}"}


def _write_dropped(stages: Sequence[Stage], path: Path) -> None:
    """Every dropped row: number in the pool (from 1), question key, stage, reason."""
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
