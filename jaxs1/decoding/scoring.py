"""Log-probabilities of given tokens: a prefill that looks at what the model expected.

Letters in addition to those of `decode_loop`: P all positions, S those whose logits exist at the
same time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxs1.model import decode
from jaxs1.model.kv_cache import KVCache
from jaxs1.model.transformer import Transformer

#: Positions whose logits exist at the same time: 64 x 152,000 ids are 39 MB.
BLOCK = 64


class TokenScores(NamedTuple):
    """What a model expected in place of some tokens, each behind all those before it.

    Args:
        logprobs: natural logarithm of each token's probability, over all ids of the model
        best_ids: most likely token in its place
        best_logprobs: log-probability of that one
    """

    logprobs: Any
    best_ids: Any
    best_logprobs: Any

    @property
    def is_greedy(self) -> bool:
        """Whether greedy decoding would have written these tokens."""
        return all(x == y for x, y in zip(self.logprobs, self.best_logprobs, strict=True))

    def since(self, first: int) -> TokenScores:
        """The scores from a token on."""
        return TokenScores(*(x[first:] for x in self))


def score(
    model: Transformer,
    params: Any,
    cache: KVCache,
    tokens_RT: jax.Array,
    positions_RT: jax.Array,
    table_RM: jax.Array,
    next_RT: jax.Array,
) -> tuple[KVCache, TokenScores]:
    """Prefill parts of prompts, and score the token that follows each position.

    Args:
        model: abstract
        params: see `model.decode_params`
        cache: keys and values of the preceding tokens
        tokens_RT, positions_RT, table_RM: as in `decode_loop.prefill`
        next_RT: int32, the prompt's next token behind each position

    Returns:
        the cache, and scores of arrays [R, T]
    """
    x_RTD, cache = decode.forward(model, params, cache, tokens_RT, positions_RT, table_RM)

    def block(part: tuple[jax.Array, jax.Array]) -> TokenScores:
        x_SD, next_S = part
        return scores_of(decode.logits(model, params, x_SD), next_S)

    shape, count = next_RT.shape, next_RT.size
    size = min(BLOCK, count)
    padding = -count % size
    x_PD = jnp.pad(x_RTD.reshape(count, -1), ((0, padding), (0, 0)))
    next_P = jnp.pad(next_RT.reshape(count), (0, padding))
    blocks = (x_PD.reshape(-1, size, x_PD.shape[-1]), next_P.reshape(-1, size))
    scores = lax.map(block, blocks)
    return cache, TokenScores(*(x_NS.reshape(-1)[:count].reshape(shape) for x_NS in scores))


def scores_of(logits_BV: jax.Array, token_B: jax.Array) -> TokenScores:
    """Scores of tokens, each an array [B]."""
    logprobs_BV = jax.nn.log_softmax(logits_BV, axis=-1)
    own_B = jnp.take_along_axis(logprobs_BV, token_B[:, None], axis=-1)[:, 0]
    best_B = jnp.argmax(logprobs_BV, axis=-1).astype(jnp.int32)
    return TokenScores(own_B, best_B, logprobs_BV.max(axis=-1))


def of_tokens(rows: Sequence[tuple[float, int, float]]) -> TokenScores:
    """Scores of tokens one by one, as columns."""
    logprobs, best_ids, best_logprobs = map(list, zip(*rows, strict=True)) if rows else ([], [], [])
    return TokenScores(logprobs, best_ids, best_logprobs)


def joined(parts: Sequence[tuple[TokenScores, int, int]]) -> TokenScores:
    """Scores of one prompt on the host, in lists.

    Args:
        parts: scores of several prompts on the device, row of this one, number of its tokens
    """
    fetched = jax.device_get([scores for scores, _, _ in parts])
    rows = [
        [x_RT[row, :count] for x_RT in scores]
        for scores, (_, row, count) in zip(fetched, parts, strict=True)
    ]
    arrays = [np.concatenate(column).tolist() for column in zip(*rows, strict=True)]
    return TokenScores(*arrays) if arrays else TokenScores([], [], [])
