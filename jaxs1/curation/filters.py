"""The stages that drop rows before the selection. Each is a pure function of a table.

A filter returns the number of a reason for every row, -1 for a row that stays. `apply_filters` runs
the filters in order and records which rows each of them dropped and why.

Letters: N rows of the table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from jaxs1.curation.table import DEFECTS, NAMES, Table

#: For every row the number of a reason or -1, and the names of the reasons.
Verdict = tuple[np.ndarray, tuple[str, ...]]


@dataclass(frozen=True)
class Stage:
    """What one stage did.

    Args:
        name: Name of the stage
        kept: Number of rows that are left
        row_D: Numbers (in the pool) of the dropped rows
        key_D: Question keys of the dropped rows
        reason_D: Reasons of the dropped rows, as positions in `reasons`
        reasons: Names of the reasons
    """

    name: str
    kept: int
    row_D: np.ndarray
    key_D: np.ndarray
    reason_D: np.ndarray
    reasons: tuple[str, ...]

    def counts(self) -> dict[str, int]:
        """Reason -> number of dropped rows, without reasons that dropped none."""
        counts = np.bincount(self.reason_D, minlength=len(self.reasons)).tolist()
        return {name: n for name, n in zip(self.reasons, counts, strict=True) if n}


def duplicates(table: Table) -> Verdict:
    """Questions identical to that of an earlier row; a missing question equals no other."""
    reason_N = np.zeros(len(table), np.int64)
    _, first = np.unique(table.key_N, return_index=True)
    reason_N[first] = -1
    reason_N[table.missing_N == NAMES.index("question")] = -1
    return reason_N, ("same question as an earlier row",)


def decontamination(table: Table) -> Verdict:
    """Questions that share eight consecutive words with a benchmark."""
    return table.benchmark_N, tuple(f"8 words in a row as in {b}" for b in table.benchmarks)


def missing(table: Table) -> Verdict:
    """Rows with a missing feature (quality stage 1 of the paper)."""
    return table.missing_N, tuple(f"{name} is missing" for name in NAMES)


def format_rules(table: Table) -> Verdict:
    """Questions with traces of bad formatting (quality stage 2 of the paper)."""
    return table.defect_N, tuple(f"question contains {name}" for name in DEFECTS)


def difficulty(table: Table) -> Verdict:
    """Questions that a reference model solves."""
    small_N, large_N = table.small_N == 1, table.large_N == 1
    reason_N = np.where(small_N & large_N, 2, np.where(large_N, 1, np.where(small_N, 0, -1)))
    return reason_N, tuple(f"solved by the {who} model" for who in ("small", "large")) + (
        "solved by both models",
    )


FILTERS: dict[str, Callable[[Table], Verdict]] = {
    "duplicates": duplicates,
    "decontamination": decontamination,
    "missing": missing,
    "format": format_rules,
    "difficulty": difficulty,
}


def apply_filters(table: Table, names: Sequence[str]) -> tuple[Table, list[Stage]]:
    """Run the named `FILTERS` in order; returns the remaining table and what each stage did."""
    stages = []
    for name, function in FILTERS.items():
        if name in names:
            reason_N, reasons = function(table)
            stage = drop(table, name, reason_N, reasons)
            table = table.take(reason_N < 0)
            stages.append(stage)
    return table, stages


def drop(table: Table, name: str, reason_N: np.ndarray, reasons: tuple[str, ...]) -> Stage:
    """The record of a stage that drops the rows with a reason."""
    dropped_N = reason_N >= 0
    return Stage(
        name=name,
        kept=int((~dropped_N).sum()),
        row_D=table.row_N[dropped_N],
        key_D=table.key_N[dropped_N],
        reason_D=reason_N[dropped_N].astype(np.int64),
        reasons=reasons,
    )


def seeds(table: Table, min_math_length: int) -> np.ndarray:
    """True for rows that are always selected.

    These are correct attempts from GPQA or AIME, or from MATH with a trace of more than
    `min_math_length` tokens.
    """
    always_N = table.is_family("gpqa") | table.is_family("aime")
    math_N = table.is_family("math") & (table.length_N > min_math_length)
    return (table.correct_N == 1) & (always_N | math_N)
