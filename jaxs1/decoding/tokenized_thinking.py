"""`ThinkingParams` in token ids: encoded once per tokenizer, fitted behind prompts, stacked as arrays.

    scripts = [script(thinking, tokenizer) for thinking in requests]
    prompts = [prompt + s.start for prompt, s in zip(prompt_ids, scripts)]
    controls, notes = build_controls(scripts, prompts, context, newline_table(tokenizer))

gives what `jaxs1.decoding.budget` runs on. What can be mended is a `UserError` of one line; a batch
is built from requests that were fitted one by one (`fit`), so that a bad one does not stop others.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxs1.config import UserError
from jaxs1.decoding import budget
from jaxs1.decoding.params import AUTO_ANSWER, Delimiters, ThinkingParams, delimiters_of

Ids = tuple[int, ...]

#: What `off` writes and counts is what s1_readme does with a budget of 0: nothing.
MODES = {
    "strict": budget.STRICT,
    "s1_readme": budget.S1_README,
    "s1_harness": budget.S1_HARNESS,
    "off": budget.S1_README,
}


@dataclass(frozen=True)
class TokenizedThinking:
    """`ThinkingParams` in the ids of one tokenizer.

    start: for the end of the prompt; ends, resume, stops, reopen: see `budget.Controls`;
    line_break, close, answer_prefix: the parts of what cuts thinking short; waits: the wait strings.
    """

    thinking: ThinkingParams
    start: Ids
    ends: tuple[Ids, ...]
    resume: Ids
    stops: tuple[Ids, ...]
    reopen: Ids
    line_break: Ids
    close: Ids
    answer_prefix: Ids
    waits: tuple[Ids, ...]

    @property
    def cut(self) -> Ids:
        """What is written where thinking is cut short, in full."""
        return self.line_break + self.close + self.answer_prefix

    @property
    def reserved_tokens(self) -> int:
        """Tokens that thinking leaves free in the context: the cut, and the least answer."""
        asked = self.thinking
        answer = (
            asked.min_answer_tokens
            if asked.max_answer_tokens < 0
            else min(asked.min_answer_tokens, asked.max_answer_tokens)
        )
        return len(self.cut) + answer


class Sizes(NamedTuple):
    """Lengths of the arrays that hold scripts (`budget.Controls`: E, S, L, K, T)."""

    ends: int
    stops: int
    longest: int
    texts: int
    text: int


#: What the engine's arrays hold, so that one compiled loop serves all requests.
SIZES = Sizes(ends=8, stops=8, longest=16, texts=budget.WAIT_TEXT + 16, text=64)


def script(thinking: ThinkingParams, tokenizer: Any) -> TokenizedThinking:
    """Encode the texts of a request; special tokens as their ids, never as their letters.

    Raises:
        UserError: a text that encodes to nothing, a special token that the tokenizer lacks, or an
            end of several tokens in a mode of s1's.
    """
    texts = delimiters_of(thinking)
    if thinking.mode != "off":  # which neither begins nor ends any thinking
        _require_special_tokens(texts, thinking.delimiters, tokenizer)
    start = _encode(texts.start, "delimiters.start", tokenizer)
    reopen = _encode((texts.start or "").strip(), "delimiters.start", tokenizer)
    line_break = tuple(_plain(texts.line_break or "", tokenizer))
    close = _encode(texts.close, "delimiters.close", tokenizer)
    # a preset serves several families of tokenizers; a special token that is not there cannot come
    known = [text for text in texts.stops or () if not _lacking(text, tokenizer)]
    stops = [_encode(text, "delimiters.stops", tokenizer) for text in known]
    if tokenizer.eos_token_id is not None:
        stops.append((tokenizer.eos_token_id,))
    ends = _ends(texts, close, tokenizer)
    for ids in stops:
        ends.setdefault(ids, budget.NONE)
    if thinking.mode in ("s1_readme", "s1_harness"):
        _require_single_tokens(tuple(ends), thinking.mode, tokenizer)
    silent = thinking.mode in ("s1_readme", "off")  # writes nothing when thinking ends
    return TokenizedThinking(
        thinking=thinking,
        start=() if thinking.mode == "off" else start,
        ends=tuple(ends),
        resume=tuple(budget.NONE if silent else follows for follows in ends.values()),
        stops=tuple(dict.fromkeys(stops)),
        reopen=reopen if thinking.mode == "strict" else (),
        line_break=() if silent else line_break,
        close=() if silent else close,
        answer_prefix=() if silent else _answer_prefix(thinking, texts, close, tokenizer),
        waits=tuple(_encode(text, "wait_strings", tokenizer) for text in thinking.wait_strings),
    )


def resolve_auto(asked: TokenizedThinking, prompt_lengths: Sequence[int]) -> TokenizedThinking:
    """The budget that s1's harness gives when it is asked for "auto"; others stay as they are.

    max_answer_tokens - longest prompt of the batch, start included - close and answer_prefix - 100.

    Raises:
        UserError: nothing is left over.
    """
    thinking = asked.thinking
    if thinking.max != "auto":
        return asked
    taken = max(prompt_lengths) + len(asked.close + asked.answer_prefix) + AUTO_ANSWER
    if thinking.max_answer_tokens <= taken:
        raise UserError(
            f"thinking.max=auto: is thinking.max_answer_tokens={thinking.max_answer_tokens} less {taken} for the "
            "longest prompt, close, answer_prefix and answer; raise thinking.max_answer_tokens"
        )
    chosen = dataclasses.replace(thinking, max=thinking.max_answer_tokens - taken)
    return dataclasses.replace(asked, thinking=chosen)


def fit(asked: TokenizedThinking, prompt_length: int, context: int) -> tuple[int, str | None]:
    """The budget that fits behind a prompt, and a note where it is less than was asked for.

    Raises:
        UserError: an empty prompt, no max_new_tokens for close, answer_prefix and answer, or none for the minimum.
    """
    thinking = asked.thinking
    if thinking.mode == "off":
        limit = 0
    elif isinstance(thinking.max, int):
        limit = thinking.max
    else:
        raise UserError("thinking.max=auto: needs the whole batch; call resolve_auto first")
    if prompt_length == 0:
        raise UserError("prompt: is empty; give at least one token")
    left = context - prompt_length - asked.reserved_tokens
    if left < 0:
        raise UserError(
            f"prompt of {prompt_length} tokens: leaves {max(0, context - prompt_length)} of the "
            f"context's {context}, but close, answer_prefix and answer need {asked.reserved_tokens}; shorten it or "
            "lower thinking.min_answer_tokens"
        )
    if thinking.min > left and thinking.mode != "off":
        raise UserError(
            f"thinking.min={thinking.min}: does not fit, the context of {context} leaves {left} "
            f"behind a prompt of {prompt_length} tokens; lower it"
        )
    if limit <= left:
        return limit, None
    return left, (
        f"thinking.max={limit}: clamped to {left}, what the context of {context} leaves behind a "
        f"prompt of {prompt_length} tokens, close, answer_prefix and answer"
    )


def capacity(asked: TokenizedThinking, limit: int, context: int) -> int:
    """Tokens that can follow a prompt at most.

    Args:
        asked: the request
        limit: its budget, from `fit`
        context: what there is where a budget has no limit
    """
    thinking = asked.thinking
    if thinking.max_answer_tokens < 0 or limit < 0:
        return context
    waits = thinking.num_waits * max(map(len, asked.waits), default=0)
    return limit + waits + len(asked.cut) + thinking.max_answer_tokens


def check_sizes(asked: TokenizedThinking) -> None:
    """Refuse texts beyond `SIZES`; raises `UserError`."""
    words = (
        "delimiters.ends: number of ends and stops",
        "delimiters.stops: number of stops",
        "delimiters: tokens of an end or a stop",
        "wait_strings: number of texts",
        "wait_strings: tokens of a wait string, or of close and answer_prefix",
    )
    for word, needed, given in zip(words, sizes_of([asked]), SIZES, strict=True):
        if needed > given:
            raise UserError(f"thinking.{word} is {needed}: must be at most {given}; take fewer")


def sizes_of(scripts: Sequence[TokenizedThinking]) -> Sizes:
    """The smallest arrays that hold all of these scripts."""
    delimiters = [ids for s in scripts for ids in (*s.ends, *s.stops, s.reopen)]
    texts = [ids for s in scripts for ids in (s.cut, *s.waits)]
    return Sizes(
        ends=max(len(s.ends) for s in scripts),
        stops=max(1, *(len(s.stops) for s in scripts)),
        longest=max(1, *map(len, delimiters)),
        texts=budget.WAIT_TEXT + max(1, *(len(s.waits) for s in scripts)),
        text=max(1, *map(len, texts)),
    )


def build_controls(
    scripts: Sequence[TokenizedThinking],
    prompts: Sequence[Sequence[int]],
    context: int,
    is_newline_V: Any,
    sizes: Sizes | None = None,
) -> tuple[budget.Controls, list[str | None]]:
    """Arrays for `budget.step`.

    Args:
        scripts: one per sequence
        prompts: ids of each, with the script's start at the end
        context: tokens that a sequence may have, prompt included
        is_newline_V: from `newline_table`
        sizes: of the arrays, where batches must share a compiled loop; null for the smallest

    Returns:
        the controls, and for each sequence a note where its budget was clamped.

    Raises:
        UserError: a prompt or budget that does not fit, or a script beyond `sizes`.
    """
    smallest = sizes_of(scripts)
    sizes = sizes or smallest
    for name, needed, given in zip(Sizes._fields, smallest, sizes, strict=True):
        if needed > given:
            raise UserError(f"sizes.{name}={given}: too small for these delimiters, give {needed}")
    fitted = [fit(s, len(p), context) for s, p in zip(scripts, prompts, strict=True)]
    asked = [s.thinking for s in scripts]
    waiting = [t.mode == "s1_harness" and t.num_waits > 0 for t in asked]
    texts = [(s.close, s.cut, *s.waits) for s in scripts]
    columns = {
        "mode": [MODES[t.mode] for t in asked],
        "thinking_budget": [limit for limit, _ in fitted],
        # the original asks for one token in every round, the first too, once there are Waits
        "min_thinking": [max(t.min, int(w)) for t, w in zip(asked, waiting, strict=True)],
        "num_waits": [t.num_waits for t in asked],
        "num_strings": [max(1, len(s.waits)) for s in scripts],
        "max_answer_tokens": [t.max_answer_tokens for t in asked],
        "max_new_tokens": [context - len(p) for p in prompts],
        "reserved_tokens": [s.reserved_tokens for s in scripts],
        "last": [p[-1] for p in prompts],
        "ends_BEL": [_right(s.ends, sizes.ends, sizes.longest) for s in scripts],
        "resume_BE": [_left([s.resume], 1, sizes.ends)[0] for s in scripts],
        "stops_BSL": [_right(s.stops, sizes.stops, sizes.longest) for s in scripts],
        "reopen_B1L": [_right([s.reopen], 1, sizes.longest) for s in scripts],
        "text_BKT": [_left(t, sizes.texts, sizes.text) for t in texts],
        "length_BK": [[*map(len, t), *[0] * (sizes.texts - len(t))] for t in texts],
        "close_at": [len(s.line_break) for s in scripts],
        "answer_prefix_at": [len(s.line_break + s.close) for s in scripts],
    }
    arrays = {name: jnp.asarray(np.asarray(value, np.int32)) for name, value in columns.items()}
    controls = budget.Controls(**arrays, is_newline_V=jnp.asarray(is_newline_V))
    return controls, [note for _, note in fitted]


def newline_table(tokenizer: Any) -> np.ndarray:
    """bool [V]: whose text ends in a line break. Once per tokenizer: it decodes every id."""
    texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    return np.asarray([text.endswith("\n") for text in texts])


def _require_special_tokens(texts: Delimiters, own: Delimiters, tokenizer: Any) -> None:
    """Texts like <|im_start|> must be one token each, or the model has never seen them."""
    parts = {"start": [texts.start], "ends": texts.ends, "close": [texts.close], "stops": own.stops}
    for name, values in parts.items():
        lacking = [special for text in values or () for special in _lacking(text, tokenizer)]
        if lacking:
            raise UserError(
                f"thinking.delimiters.{name}: the tokenizer has no token {lacking[0]}; "
                "give thinking.preset think_tags, or texts that the model was trained with"
            )


def _lacking(text: str | None, tokenizer: Any) -> list[str]:
    """Special tokens in a text that the tokenizer would take apart."""
    specials = re.findall(r"<\|[^|]*\|>", text or "")
    return [special for special in specials if len(_plain(special, tokenizer)) != 1]


def _require_single_tokens(ends: Sequence[Ids], mode: str, tokenizer: Any) -> None:
    for ids in ends:
        if len(ids) > 1:
            raise UserError(
                f"thinking.mode={mode}: needs ends of one token, as s1's own, but "
                f"{tokenizer.decode(list(ids))!r} is {len(ids)}; give thinking.mode strict"
            )


def _plain(text: str, tokenizer: Any) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _encode(text: str | None, name: str, tokenizer: Any) -> Ids:
    ids = tuple(_plain(text or "", tokenizer))
    if not ids:
        raise UserError(f"thinking.{name}={text!r}: encodes to no token; give a text that does")
    return ids


def _ends(texts: Delimiters, close: Ids, tokenizer: Any) -> dict[Ids, int]:
    """Ends of thinking, and for each the token of the close that follows it.

    One that begins with another is left out: it would never be reached.
    """
    spelled = {_encode(text, "delimiters.ends", tokenizer): text for text in texts.ends or ()}
    ends = {}
    for ids, text in spelled.items():
        if any(ids[:n] in spelled for n in range(1, len(ids))):
            continue
        if close[: len(ids)] == ids:
            ends[ids] = len(ids)
        else:  # "</think>\n\n" is a whole close, an end unlike the close is none of it
            ends[ids] = len(close) if text.startswith(texts.close or "") else budget.NONE
    return ends


def _answer_prefix(thinking: ThinkingParams, texts: Delimiters, close: Ids, tokenizer: Any) -> Ids:
    """The answer_prefix's ids, encoded together with the close, as s1 does, unless the two melt together."""
    answer_prefix = thinking.answer_prefix
    if answer_prefix is None:
        answer_prefix = "\nFinal Answer:" if thinking.mode == "s1_harness" else ""
    both = tuple(_plain((texts.close or "") + answer_prefix, tokenizer))
    return (
        both[len(close) :]
        if both[: len(close)] == close
        else tuple(_plain(answer_prefix, tokenizer))
    )


def _right(sequences: Sequence[Ids], rows: int, width: int) -> list[list[int]]:
    padded = [[budget.NONE] * (width - len(ids)) + list(ids) for ids in sequences]
    return padded + [[budget.NONE] * width] * (rows - len(padded))


def _left(sequences: Sequence[Ids], rows: int, width: int) -> list[list[int]]:
    padded = [list(ids) + [budget.NONE] * (width - len(ids)) for ids in sequences]
    return padded + [[budget.NONE] * width] * (rows - len(padded))
