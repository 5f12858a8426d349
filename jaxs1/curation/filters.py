"""The stages that drop rows before the selection. Each is a pure function of a table.

A filter gives every row a reason's number, -1 where the row stays. `apply_filters` runs them one
after another and remembers who was dropped, where and why.

Letters: N rows of the table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from jaxs1.curation.table import DEFECTS, NAMES, Table

#: Numbers of reasons, and what they are called.
Verdict = tuple[np.ndarray, tuple[str, ...]]


@dataclass(frozen=True)
class Stage:
    """What one stage did.

    Args:
        name: of the stage
        kept: rows that are left
        row_D: numbers (in the pool) of the dropped rows
        key_D: their question keys
        reason_D: their reasons' numbers
        reasons: what those are called
    """

    name: str
    kept: int
    row_D: np.ndarray
    key_D: np.ndarray
    reason_D: np.ndarray
    reasons: tuple[str, ...]

    def counts(self) -> dict[str, int]:
        """Reason -> dropped rows, where there are any."""
        counts = np.bincount(self.reason_D, minlength=len(self.reasons)).tolist()
        return {name: n for name, n in zip(self.reasons, counts, strict=True) if n}


def duplicates(table: Table) -> Verdict:
    """A question that an earlier row has, letter by letter; a missing one equals no other."""
    reason_N = np.zeros(len(table), np.int64)
    _, first = np.unique(table.key_N, return_index=True)
    reason_N[first] = -1
    reason_N[table.missing_N == NAMES.index("question")] = -1
    return reason_N, ("same question as an earlier row",)


def decontamination(table: Table) -> Verdict:
    """A question that shares eight words in a row with a benchmark."""
    return table.benchmark_N, tuple(f"8 words in a row as in {b}" for b in table.benchmarks)


def missing(table: Table) -> Verdict:
    """A missing feature (quality 1)."""
    return table.missing_N, tuple(f"{name} is missing" for name in NAMES)


def format_rules(table: Table) -> Verdict:
    """A question whose text shows that it was cut out of something (quality 2)."""
    return table.defect_N, tuple(f"question contains {name}" for name in DEFECTS)


def difficulty(table: Table) -> Verdict:
    """A question that a reference model solves."""
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
    """Run some of `FILTERS`, in their order; returns what is left and what each stage did."""
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
    """True for rows that are selected for sure.

    The attempt is correct, and the source is GPQA or AIME, or MATH with a trace of more than
    `min_math_length` tokens.
    """
    always_N = table.is_family("gpqa") | table.is_family("aime")
    math_N = table.is_family("math") & (table.length_N > min_math_length)
    return (table.correct_N == 1) & (always_N | math_N)
