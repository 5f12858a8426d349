"""Recipes: which stages run, which columns they read, and which rows are selected in the end.

Letters: N rows of the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxs1.config import UserError
from jaxs1.curation import filters, selection
from jaxs1.curation.filters import Stage
from jaxs1.curation.table import NAMES, Table

CLEAN = ("duplicates", "decontamination", "missing", "format")
#: Recipe -> its stages. s1k: section 2.2 of the paper; the others: its ablations (section 5.1),
#: which start from the quality-filtered pool; `all` keeps every row that can be trained on.
RECIPES = {
    "s1k": (*CLEAN, "difficulty", "seeds", "diversity"),
    "random": (*CLEAN, "diversity"),
    "longest": (*CLEAN, "diversity"),
    "diverse": (*CLEAN, "diversity"),
    "all": ("duplicates", "decontamination", "missing"),
}
#: Recipe -> the columns that its draw reads.
DRAWN_BY = {
    "s1k": ("source_type", "length", "subject"),
    "random": ("question",),
    "longest": ("length",),
    "diverse": ("subject",),
    "all": (),
}


@dataclass(frozen=True)
class Recipe:
    """Stages and parameters of a selection.

    Args:
        name: Name in `RECIPES`
        stages: Stages to run, in order
        solved: Columns that tell whether a reference model solves the question
        size: Number of rows to select
        uniform_until: Number of selected rows from which on subjects are drawn by benchmark weight
        min_math_length: Trace length above which MATH questions are seeds [tokens]
        seed: Random seed of the draws
    """

    name: str
    stages: Sequence[str]
    solved: Sequence[str]
    size: int
    uniform_until: int
    min_math_length: int
    seed: int

    def needs(self, stage: str) -> Sequence[str]:
        """The columns that a pool must have for a stage.

        `missing` checks all of `columns` that a pool has; it requires those that training reads.
        """
        return {
            "duplicates": ("question",),
            "decontamination": ("question",),
            "missing": ("question", "thinking_trajectories", "attempt"),
            "format": ("question", "source_type"),
            "difficulty": self.solved,
            "seeds": ("source_type", "length", "correct"),
            "diversity": DRAWN_BY[self.name],
        }[stage]

    @property
    def columns(self) -> list[str]:
        """All columns that are read; those of reference models only if `solved` names them."""
        return [n for n in NAMES if not n.startswith("solved_") or n in self.solved]


@dataclass(frozen=True)
class Selection:
    """The outcome of a recipe on a table.

    Args:
        stages: What each stage did, in order
        selected_N: True for selected rows
        seeds: Number of rows that were selected as seeds
        notes: Choices that were made for the user, one sentence each
    """

    stages: Sequence[Stage]
    selected_N: np.ndarray
    seeds: int
    notes: Sequence[str]


def select(table: Table, recipe: Recipe) -> Selection:
    """Filter a table and draw from the remaining rows.

    Raises:
        UserError: too few rows are left, too many are seeds, a row lacks a column of the draw.
    """
    left, stages = filters.apply_filters(table, recipe.stages)
    chosen, seeds, notes = np.ones(len(left), bool), 0, list[str]()
    if "diversity" in recipe.stages:
        _check_drawable(recipe, left, stages)
        seeds_N = np.zeros(len(left), bool)
        if "seeds" in recipe.stages:
            seeds_N = filters.seeds(left, recipe.min_math_length)
        seeds = int(seeds_N.sum())
        if seeds > recipe.size:
            raise UserError(
                f"size={recipe.size}: {seeds:,} rows are seeds, which are always selected; raise "
                "--size or --min_math_length, or give --stages.seeds false"
            )
        chosen, notes = _draw(recipe, left, seeds_N)
        verdict = np.where(chosen, -1, 0), ("not drawn",)
        stages.append(filters.drop(left, "diversity", *verdict))
    elif not len(left):
        raise UserError(
            f"input: no row is left after {', '.join(recipe.stages)}; give a larger pool, or "
            "switch a stage off"
        )
    selected_N = np.zeros(len(table), bool)
    selected_N[left.row_N[chosen]] = True
    return Selection(stages, selected_N, seeds, notes)


def _draw(recipe: Recipe, left: Table, seeds_N: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """True for drawn rows, and notes for the user."""
    key_N, size, seed = left.key_N, recipe.size, recipe.seed
    if recipe.name == "random":
        return selection.random(key_N, size=size, seed=seed), []
    if recipe.name == "longest":
        return selection.longest(key_N, left.length_N, size=size), []
    if recipe.name == "diverse":
        return selection.diverse(key_N, left.subject_N, size=size, seed=seed), []
    aime_N, gpqa_N = left.is_family("aime"), left.is_family("gpqa")
    weights = selection.benchmark_weights(left.subject_N, aime_N, gpqa_N)
    chosen, unweighted = selection.diversity(
        key_N,
        left.subject_N,
        left.length_N,
        seeds_N,
        weights,
        size=size,
        uniform_until=recipe.uniform_until,
        seed=seed,
    )
    if not unweighted:
        return chosen, []
    return chosen, [
        f"{unweighted:,} rows were drawn from all subjects uniformly: those of AIME and GPQA "
        "questions had no rows left."
    ]


def _check_drawable(recipe: Recipe, left: Table, stages: Sequence[Stage]) -> None:
    """Reject a draw from too few rows, or from rows without a column that it reads."""
    if len(left) < recipe.size:
        counts = ", ".join(f"{s.name} {s.kept:,}" for s in stages)
        raise UserError(
            f"size={recipe.size}: only {len(left):,} rows are left to draw from "
            f"({counts or 'the entire pool'}); lower --size, give a larger pool, or switch a stage "
            "off"
        )
    for name, column_N in (("subject", left.subject_N), ("length", left.length_N)):
        lacking = int((column_N < 0).sum())
        if lacking and name in DRAWN_BY[recipe.name]:
            raise UserError(
                f"stages.missing=false: {lacking:,} rows have no {name}, which stage diversity "
                "needs; leave the stage on"
            )
