"""Token sequences at the end of what a sequence has written: which of them occur there.

Letters as in `budget`; rows are right-aligned and padded with NONE.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

#: Pads arrays of ids. Never an id, never matched.
NONE = -1
#: Pads ids that are forbidden: out of bounds of any vocabulary (-1 would be its last id).
NEVER = int(np.iinfo(np.int32).max)


def matches(sequences_BEL: jax.Array, window_BL: jax.Array) -> jax.Array:
    """Which sequences the window ends with; one of only NONE is unused and never matches."""
    return fits(sequences_BEL, window_BL) & (sequences_BEL[..., -1] != NONE)


def fits(sequences_BEL: jax.Array, window_BL: jax.Array) -> jax.Array:
    """Which sequences equal the window, NONE matching anything."""
    return ((sequences_BEL == NONE) | (sequences_BEL == window_BL[:, None, :])).all(axis=-1)


def completing(sequences_BEL: jax.Array, recent_BH: jax.Array, where_B: jax.Array) -> jax.Array:
    """Ids that would complete a sequence now, [B, E]; NEVER for others and outside `where_B`."""
    begun_BE = fits(sequences_BEL[..., :-1], recent_BH)
    last_BE = sequences_BEL[..., -1]
    return jnp.where(where_B[:, None] & begun_BE & (last_BE != NONE), last_BE, NEVER)


def pick(table_BK: jax.Array, index_B: jax.Array) -> jax.Array:
    """table_BK[b, index_B[b]] for every b."""
    return table_BK[jnp.arange(table_BK.shape[0]), index_B]
