"""What a step's roll-outs say about the policy: shares and means, by name, for the log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from jaxs1.rl.plan import Group
from jaxs1.rl.rewards import Graded
from jaxs1.training.loss import TokenMetrics

#: Metrics of the line in the terminal, in this order.
SHOWN = (
    *("reward", "live_groups", "thinking_tokens", "ended_by_model", "entropy", "gap_max"),
    *("grad_norm", "seconds"),
)
#: Steps after which budgets at which nothing is learnt are named, and the share that is too small.
WARN_AFTER, FEWEST_LIVE = 10, 0.05


def rollout_metrics(
    groups: Sequence[Group], graded_PG: Sequence[Sequence[Graded]], live_P: np.ndarray
) -> dict[str, float]:
    """Metrics of a roll-out.

    Args:
        groups: the step's groups
        graded_PG: their completions with rewards
        live_P: which groups have different rewards

    Returns:
        reward, of all and by budget; shares of completions that are right, wrong, without answer;
        shares of groups that are live, dead and all right, dead and not right; mean thinking and
        answer [tokens]; shares of thinking by what ended it; share of forced tokens; number of live
        sequences.
    """
    graded = [g for group in graded_PG for g in group]
    outcomes = Counter(g.outcome for g in graded)
    ended = Counter(g.completion.thinking_ended_by for g in graded)
    reward_P = np.asarray([np.mean([g.reward for g in group]) for group in graded_PG])
    usage = [g.completion.usage for g in graded]
    values = {"reward": float(reward_P.mean())}
    for budget in sorted({group.budget for group in groups}):
        chosen = [group.budget == budget for group in groups]
        values[f"reward/{budget}"] = float(reward_P[chosen].mean())
    values |= {name: outcomes[name] / len(graded) for name in ("right", "wrong", "no_answer")}
    values["live_groups"] = float(live_P.mean())
    values["dead_right"] = float((~live_P & (reward_P > 0)).mean())
    values["dead_wrong"] = float((~live_P & (reward_P == 0)).mean())
    for name in ("thinking_tokens", "answer_tokens"):
        values[name] = _mean(u[name] for u in usage)
    for name in ("model", "budget", "context"):
        values[f"ended_by_{name}"] = ended[name] / len(graded)
    written = sum(u["completion_tokens"] for u in usage)
    values["forced"] = sum(u["forced_tokens"] for u in usage) / max(1, written)
    values["sequences"] = float(
        sum(len(g) for g, alive in zip(graded_PG, live_P, strict=True) if alive)
    )
    return values


def token_metrics(metrics: TokenMetrics) -> dict[str, float]:
    """Means over the chosen tokens of a step, and the largest gap between decoding and training."""
    sums = {name: float(value) for name, value in metrics.sums.items()}
    tokens = max(1.0, sums.pop("tokens"))
    means = {name: value / tokens for name, value in sums.items()}
    means["gap_mean"] = means.pop("gap")
    return {"chosen_tokens": tokens, **means, "gap_max": float(metrics.maxima["gap"])}


class LiveGroups:
    """Counts live groups by budget, to name budgets at which nothing is learnt."""

    def __init__(self) -> None:
        self._groups: Counter[int] = Counter()
        self._live: Counter[int] = Counter()

    def add(self, groups: Sequence[Group], live_P: np.ndarray) -> None:
        """Count the groups of a step."""
        for group, alive in zip(groups, live_P, strict=True):
            self._groups[group.budget] += 1
            self._live[group.budget] += bool(alive)

    def warnings(self) -> list[str]:
        """A line for each budget at which almost all groups are dead."""
        shares = {b: self._live[b] / n for b, n in sorted(self._groups.items())}
        return [
            f"warning: with a budget of {budget} tokens {share:.0%} of {self._groups[budget]} "
            "groups are live: all samples of a question get the same reward; leave "
            "the budget out, or raise group"
            for budget, share in shares.items()
            if share < FEWEST_LIVE
        ]


def sample_row(step: int, group: Group, question: str, graded: Graded) -> dict[str, Any]:
    """A line of samples.jsonl, so that a person can read what is rewarded."""
    done = graded.completion
    return {
        "step": step,
        "question": question,
        "budget": group.budget,
        "reward": graded.reward,
        "outcome": graded.outcome,
        "prediction": graded.prediction,
        "thinking": done.thinking,
        "answer": done.answer,
        "thinking_ended_by": done.thinking_ended_by,
        "usage": done.usage,
    }


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))
