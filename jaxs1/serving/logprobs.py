"""Log-probabilities of tokens in the two shapes of OpenAI's API."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxs1.decoding.budget import TokenKind
from jaxs1.decoding.detokenizer import REPLACEMENT
from jaxs1.decoding.scoring import TokenScores

#: Alternatives to each token: the most likely one.
MAX_ALTERNATIVES = 1


class ScoredToken(NamedTuple):
    """A token of a completion.

    Args:
        id: token id
        kind: its `TokenKind`
        score: log-probability, most likely id in its place, log-probability of that one
    """

    id: int
    kind: int
    score: tuple[float, int, float]


def chat_logprobs(
    tokens: Sequence[ScoredToken], tokenizer: Any, alternatives: int, *, details: bool
) -> dict[str, Any]:
    """`logprobs` of a chat completion: the tokens of the answer, special tokens apart.

    Args:
        tokens: tokens of the completion
        tokenizer: tokenizer of the model
        alternatives: number of alternatives to each token
        details: whether the tokens of the thinking have an entry of their own, `reasoning`
    """
    special = set(tokenizer.all_special_ids)

    def entries(*kinds: int) -> list[dict[str, Any]]:
        return [
            _entry(token, tokenizer, alternatives)
            for token in tokens
            if token.kind in kinds and token.id not in special
        ]

    content = {"content": entries(TokenKind.ANSWER), "refusal": None}
    if details:
        content["reasoning"] = entries(TokenKind.THINKING, TokenKind.WAIT)
    return content


def text_logprobs(
    tokens: Sequence[ScoredToken], tokenizer: Any, alternatives: int, offset: int = 0
) -> dict[str, Any]:
    """`logprobs` of a completion: the tokens of the answer, with the one that ends it.

    Args:
        tokens: tokens of the completion
        tokenizer: tokenizer of the model
        alternatives: number of alternatives to each token
        offset: characters before the first token
    """
    answer = [token for token in tokens if token.kind == TokenKind.ANSWER]
    return _columns(
        [token.id for token in answer], [token.score for token in answer],
        tokenizer, alternatives, offset,
    )  # fmt: skip


def with_prompt(
    ids: Sequence[int],
    scores: TokenScores,
    after: dict[str, Any],
    tokenizer: Any,
    alternatives: int,
) -> dict[str, Any]:
    """`logprobs` of a completion that echoes its prompt, whose first token has no probability."""
    rows: list[Any] = [None, *zip(*scores, strict=True)]
    before = _columns(ids, rows, tokenizer, alternatives, 0)
    joined = {name: before[name] + after[name] for name in before if alternatives or name != TOP}
    end = before["text_offset"][-1] + len(before["tokens"][-1])
    offsets = [end + offset for offset in after["text_offset"]]
    return {TOP: None, **joined, "text_offset": [*before["text_offset"], *offsets]}


TOP = "top_logprobs"


def _columns(
    ids: Sequence[int], scores: Sequence[Any], tokenizer: Any, alternatives: int, offset: int
) -> dict[str, Any]:
    texts = [tokenizer.decode([token]) for token in ids]
    offsets = list(itertools.accumulate(map(len, texts), initial=offset))[:-1]
    tops: list[Any] = []
    for text, score in zip(texts, scores, strict=True):
        # the most likely one last: two tokens may have the same text
        best = {} if score is None else {text: score[0], tokenizer.decode([score[1]]): score[2]}
        tops.append(best or None)
    return {
        "tokens": texts,
        "token_logprobs": [None if score is None else score[0] for score in scores],
        TOP: tops if alternatives else None,
        "text_offset": offsets,
    }


def _entry(token: ScoredToken, tokenizer: Any, alternatives: int) -> dict[str, Any]:
    logprob, best, best_logprob = token.score
    top = [_token(best, best_logprob, tokenizer)] if alternatives else []
    return {**_token(token.id, logprob, tokenizer), TOP: top}


def _token(token: int, logprob: float, tokenizer: Any) -> dict[str, Any]:
    """A token; its bytes are not known where it is only a part of a character."""
    text = tokenizer.decode([token])
    is_part = REPLACEMENT in text
    return {"token": text, "logprob": logprob, "bytes": None if is_part else list(text.encode())}
