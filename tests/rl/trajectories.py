"""Random trajectories: prompts, forced texts, replaced choices, gates."""

import numpy as np

from jaxs1.rl.batches import Trajectory


def random_trajectories(rng, count, *, vocabulary, gated_ids=(), longest=24):
    """Trajectories of 3 to `longest` tokens; a fifth of what follows the prompt is forced."""
    made = []
    for _ in range(count):
        n = int(rng.integers(3, longest + 1))
        prompt = int(rng.integers(1, n - 1))
        tokens = rng.integers(vocabulary, size=n)
        chosen = (np.arange(n) >= prompt) & (rng.random(n) > 0.2)
        gated = chosen & (rng.random(n) < 0.3)
        replaced = chosen & (rng.random(n) < 0.2)
        targets = np.where(replaced, rng.integers(vocabulary, size=n), tokens)
        targets = np.where(gated & np.isin(targets, gated_ids), vocabulary - 1, targets)
        made.append(
            Trajectory(
                tokens.astype(np.int32), targets.astype(np.int32), chosen, gated,
                np.zeros(n, np.float32), float(rng.normal()),
            )
        )  # fmt: skip
    return made
