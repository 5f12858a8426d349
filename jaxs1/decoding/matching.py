"""Token sequences at the end of what a sequence has written: which of them occur there.

Letters as in `budget`; rows are right-aligned and padded with NONE.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

#: Pads arrays of ids. Never an id, never matched.
NONE = -1


def matches(sequences_BEL: jax.Array, window_BL: jax.Array) -> jax.Array:
    """Which sequences the window ends with; one of only NONE is unused and never matches."""
    return fits(sequences_BEL, window_BL) & (sequences_BEL[..., -1] != NONE)


def fits(sequences_BEL: jax.Array, window_BL: jax.Array) -> jax.Array:
    """Which sequences equal the window, NONE matching anything."""
    return ((sequences_BEL == NONE) | (sequences_BEL == window_BL[:, None, :])).all(axis=-1)


def pick(table_BK: jax.Array, index_B: jax.Array) -> jax.Array:
    """table_BK[b, index_B[b]] for every b."""
    return table_BK[jnp.arange(table_BK.shape[0]), index_B]
