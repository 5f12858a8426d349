"""Rewards of groups to advantages. Letters: P groups, G samples of a group."""

from __future__ import annotations

from typing import Literal

import numpy as np


def advantages(
    reward_PG: np.ndarray, normalize: Literal["none", "group", "batch"]
) -> tuple[np.ndarray, np.ndarray]:
    """Advantages, float64 [P, G], and which groups are live, bool [P].

    The advantage of a sample is its reward minus the mean of its group. A group whose rewards are
    all equal is dead: it has nothing to say, and division by its deviation would be noise.

    Args:
        reward_PG: rewards
        normalize: what the difference is divided by: nothing; the standard deviation of the group;
            that of all rewards (both of the population)
    """
    reward_PG = np.asarray(reward_PG, np.float64)
    live_P = (reward_PG != reward_PG[:, :1]).any(axis=1)
    centred_PG = np.where(live_P[:, None], reward_PG - reward_PG.mean(axis=1, keepdims=True), 0.0)
    if normalize == "group":
        scale_P1 = np.where(live_P, reward_PG.std(axis=1), 1.0)[:, None]
        return centred_PG / scale_P1, live_P
    if normalize == "batch" and live_P.any():
        return centred_PG / reward_PG.std(), live_P
    return centred_PG, live_P
