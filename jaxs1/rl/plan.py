"""What a step trains on: questions, budgets and seeds, as a function of the seed and the step.

There is no iterator state to save: a run resumed at step n plans step n as if it had never ended.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxs1.rl.config import BudgetsConfig


class Group(NamedTuple):
    """Samples of one question, whose rewards are compared.

    Args:
        question: index of the question
        budget: thinking budget [tokens]
        seed: random seed of its samples
    """

    question: int
    budget: int
    seed: int


def plan_groups(
    step: int, *, seed: int, num_questions: int, prompts: int, budgets: BudgetsConfig
) -> list[Group]:
    """The groups of a step: the next questions of a permutation, each with a budget and a seed.

    Args:
        step: number of the step, from 0
        seed: random seed of the run
        num_questions: number of questions; those that fill no complete step of an epoch are left
            out of it
        prompts: questions of a step
        budgets: thinking budgets
    """
    epoch, number = divmod(step, num_questions // prompts)
    order = np.random.default_rng([seed, epoch]).permutation(num_questions)
    chosen = order[number * prompts : (number + 1) * prompts]
    # a third number, or these would be the numbers behind an epoch's permutation
    rng = np.random.default_rng([seed, step, 1])
    drawn = rng.choice(budgets_at(step, budgets), size=prompts)
    seeds = rng.integers(1 << 31, size=prompts)
    return [Group(*map(int, group)) for group in zip(chosen, drawn, seeds, strict=True)]


def budgets_at(step: int, budgets: BudgetsConfig) -> list[int]:
    """The budgets that groups of a step draw from."""
    if budgets.start is None or step >= budgets.until:
        return list(budgets.values)
    share = step / budgets.until
    pairs = zip(budgets.start, budgets.values, strict=True)
    return [round(first + (last - first) * share) for first, last in pairs]


def update_order(step: int, *, seed: int, sequences: int, updates: int) -> list[np.ndarray]:
    """Which sequences of a roll-out each optimizer step takes; all at once if there is only one."""
    order = np.arange(sequences)
    if updates > 1:
        order = np.random.default_rng([seed, step, 2]).permutation(sequences)
    return np.array_split(order, updates)
