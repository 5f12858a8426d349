"""The controller's settings for a batch: limits fitted behind the prompts, texts in padded arrays.

    limits = [fit(t, len(prompt), context) for t, prompt in zip(thinking, prompts)]
    controls = build_controls(thinking, prompts, limits)

Requests are fitted one by one, so that one that does not fit fails alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxs1.config import UserError
from jaxs1.decoding import budget
from jaxs1.decoding.page_allocator import pages_for
from jaxs1.decoding.tokenized_thinking import Ids, TokenizedThinking
from jaxs1.model.kv_cache import PAGE

#: `off` is s1_readme with a budget of 0: nothing is inserted, nothing is counted.
MODES = {
    "strict": budget.Mode.STRICT,
    "s1_readme": budget.Mode.S1_README,
    "s1_harness": budget.Mode.S1_HARNESS,
    "off": budget.Mode.S1_README,
}


class SequenceLimits(NamedTuple):
    """Limits of one sequence, fitted behind its prompt.

    Args:
        budget: maximum thinking tokens; -1: limited only by the context
        max_new_tokens: tokens after the prompt that its pages and the context hold
        num_pages: pages for the prompt and all tokens that can follow
        note: human-readable remark if the budget is less than requested
        limited_by: context or max_tokens, whichever leaves fewer tokens
        prompt_length: tokens of the prompt, start of thinking included
    """

    budget: int
    max_new_tokens: int
    num_pages: int
    note: str | None = None
    limited_by: str = "context"
    prompt_length: int = 0


class Sizes(NamedTuple):
    """Sizes of the arrays of `budget.Controls`: E, S, L, K and T there."""

    ends: int
    stops: int
    longest: int
    texts: int
    text: int


#: Fixed, so that one compiled loop serves all requests.
SIZES = Sizes(ends=8, stops=8, longest=16, texts=budget.WAIT_TEXT + 16, text=64)


class PromptTooLong(UserError):
    """The prompt leaves too few tokens of the context."""


def fit(
    thinking: TokenizedThinking, prompt_length: int, context: int, max_tokens: int = -1
) -> SequenceLimits:
    """The limits of a sequence behind its prompt.

    Args:
        thinking: thinking parameters in token ids, "auto" resolved
        prompt_length: tokens of the prompt, start of thinking included
        context: maximum length of a sequence, prompt included [tokens]
        max_tokens: see `Request`; `thinking` comes from `with_reserve`

    Raises:
        PromptTooLong: the prompt leaves too few tokens for close, answer prefix and answer
        UserError: the prompt is empty, or the minimum of thinking does not fit
    """
    params = thinking.thinking
    budget_ = 0 if params.mode == "off" else params.max
    if budget_ == "auto":
        raise UserError("thinking.max=auto: depends on the whole batch; call resolve_auto first")
    if prompt_length == 0:
        raise UserError("prompt: is empty; give at least one token")
    limited_by, what = "context", f"the context of {context}"
    end = context
    if 0 <= max_tokens < context - prompt_length:
        limited_by, what, end = "max_tokens", f"max_tokens={max_tokens}", prompt_length + max_tokens
    left = end - prompt_length - thinking.reserved_tokens
    if left < 0:
        raise PromptTooLong(
            f"prompt of {prompt_length} tokens: leaves {max(0, context - prompt_length)} of the "
            f"context's {context}, but close, answer prefix and answer need "
            f"{thinking.reserved_tokens}; shorten it or lower thinking.min_answer_tokens"
        )
    if params.min > left and params.mode != "off":
        raise UserError(
            f"thinking.min={params.min}: does not fit, {what} leaves {left} "
            f"after a prompt of {prompt_length} tokens; lower it"
        )
    note = None
    if budget_ > left:
        note = (
            f"thinking.max={budget_}: clamped to {left}, which is what {what} "
            f"leaves after a prompt of {prompt_length} tokens, close, answer prefix and answer"
        )
        budget_ = left
    longest = min(end, prompt_length + capacity(thinking, budget_, context))
    num_pages = pages_for(longest)
    max_new_tokens = min(end, num_pages * PAGE) - prompt_length
    return SequenceLimits(budget_, max_new_tokens, num_pages, note, limited_by, prompt_length)


def with_reserve(thinking: TokenizedThinking, max_tokens: int) -> TokenizedThinking:
    """Thinking parameters whose minimal answer is at most a quarter of `max_tokens`."""
    if max_tokens < 0:
        return thinking
    params = thinking.thinking
    answer = min(params.min_answer_tokens, max(1, max_tokens // 4))
    params = dataclasses.replace(params, min_answer_tokens=answer)
    return dataclasses.replace(thinking, thinking=params)


def capacity(thinking: TokenizedThinking, budget: int, context: int) -> int:
    """Tokens for which a sequence gets pages after its prompt.

    Args:
        thinking: thinking parameters in token ids
        budget: thinking tokens, from `fit`; -1: no limit
        context: maximum length of a sequence, where nothing else limits it
    """
    params = thinking.thinking
    if params.max_answer_tokens < 0 or budget < 0:
        return context
    waits = params.num_waits * max(map(len, thinking.waits), default=0)
    kept = budget + waits + len(thinking.cut) + params.max_answer_tokens
    rounds = 1 + params.num_waits if params.mode == "s1_harness" else 0
    return max(kept, rounds * budget + waits)  # all rounds are cached before the surplus is cut off


def check_sizes(thinking: TokenizedThinking) -> None:
    """Check that all texts fit into arrays of `SIZES`; raises `UserError`."""
    delimiters = (*thinking.ends, *thinking.stops, thinking.reopen)
    needed = {
        "delimiters.ends: number of ends and stops": len(thinking.ends),
        "delimiters.stop: number of stops": len(thinking.stops),
        "delimiters: tokens of an end or a stop": max(map(len, delimiters)),
        "wait_strings: number of strings": len(thinking.waits),
        "wait_strings: tokens of a wait string, or of close and answer_prefix": max(
            map(len, (thinking.cut, *thinking.waits))
        ),
    }
    sizes = SIZES._replace(texts=SIZES.texts - budget.WAIT_TEXT)
    for (what, number), limit in zip(needed.items(), sizes, strict=True):
        if number > limit:
            raise UserError(f"thinking.{what} is {number}: must be at most {limit}; use fewer")
    if (number := len(thinking.cut + thinking.answer_start)) > SIZES.text:
        raise UserError(
            f"answer_start (the beginning of a tool's call): with close and answer_prefix it has "
            f"{number} tokens, must have at most {SIZES.text}; use a shorter one"
        )


def build_controls(
    thinking: Sequence[TokenizedThinking],
    prompts: Sequence[Sequence[int]],
    limits: Sequence[SequenceLimits],
) -> budget.Controls:
    """The arrays for `budget.step`, in numpy.

    Args:
        thinking: thinking parameters of each sequence, checked by `check_sizes`
        prompts: token ids of each, start of thinking included
        limits: limits of each, from `fit`
    """
    columns = {
        **_numbers(thinking, limits),
        **_delimiters(thinking),
        **_texts(thinking),
        "last": [prompt[-1] for prompt in prompts],
    }
    arrays: dict[str, Any] = {k: np.asarray(v, np.int32) for k, v in columns.items()}
    return budget.Controls(**arrays)


def newline_table(tokenizer: Any) -> np.ndarray:
    """bool [V]: ids whose text ends in a line break. Slow: decodes the whole vocabulary."""
    texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    return np.asarray([text.endswith("\n") for text in texts])


def _numbers(
    thinking: Sequence[TokenizedThinking], limits: Sequence[SequenceLimits]
) -> dict[str, list[Any]]:
    params = [t.thinking for t in thinking]
    return {
        "mode": [MODES[p.mode] for p in params],
        "thinking_budget": [limit.budget for limit in limits],
        # s1's harness requires a token in every round, the first included, once there are Waits
        "min_thinking": [
            max(p.min, int(p.mode == "s1_harness" and p.num_waits > 0)) for p in params
        ],
        "num_waits": [p.num_waits for p in params],
        "num_strings": [max(1, len(t.waits)) for t in thinking],
        "max_answer_tokens": [p.max_answer_tokens for p in params],
        "max_new_tokens": [limit.max_new_tokens for limit in limits],
        "reserved_tokens": [t.reserved_tokens for t in thinking],
    }


def _delimiters(thinking: Sequence[TokenizedThinking]) -> dict[str, list[Any]]:
    return {
        "ends_BEL": [_right(t.ends, SIZES.ends) for t in thinking],
        "resume_BE": [_left([t.resume], 1, SIZES.ends)[0] for t in thinking],
        "end_text_BE": [_end_texts(t) for t in thinking],
        "stops_BSL": [_right(t.stops, SIZES.stops) for t in thinking],
        "reopen_B1L": [_right([t.reopen], 1) for t in thinking],
    }


def _texts(thinking: Sequence[TokenizedThinking]) -> dict[str, list[Any]]:
    begins = [t.answer_start or t.call for t in thinking]
    texts = [
        (t.close + t.answer_start, t.cut + t.answer_start, t.close + begin, *t.waits)
        for t, begin in zip(thinking, begins, strict=True)
    ]
    return {
        "text_BKT": [_left(t, SIZES.texts, SIZES.text) for t in texts],
        "length_BK": [[*map(len, t), *[0] * (SIZES.texts - len(t))] for t in texts],
        "close_at": [len(t.line_break) for t in thinking],
        "answer_prefix_at": [len(t.line_break + t.close) for t in thinking],
        "answer_at_BK": [
            [len(t.close), len(t.cut), len(t.close)] + [0] * (SIZES.texts - budget.WAIT_TEXT)
            for t in thinking
        ],
    }


def _end_texts(thinking: TokenizedThinking) -> list[int]:
    """The text of each end: CALL_TEXT for a call, CLOSE_TEXT for all others."""
    texts = [budget.CALL_TEXT if end == thinking.call else budget.CLOSE_TEXT
             for end in thinking.ends]  # fmt: skip
    return texts + [budget.CLOSE_TEXT] * (SIZES.ends - len(texts))


def _right(sequences: Sequence[Ids], rows: int) -> list[list[int]]:
    """Right-aligned rows of SIZES.longest ids."""
    width = SIZES.longest
    padded = [[budget.NONE] * (width - len(ids)) + list(ids) for ids in sequences]
    return padded + [[budget.NONE] * width] * (rows - len(padded))


def _left(sequences: Sequence[Ids], rows: int, width: int) -> list[list[int]]:
    padded = [list(ids) + [budget.NONE] * (width - len(ids)) for ids in sequences]
    return padded + [[budget.NONE] * width] * (rows - len(padded))
