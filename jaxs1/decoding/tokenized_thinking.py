"""`ThinkingParams` in the token ids of one tokenizer.

    thinking = tokenize_thinking(params, tokenizer)
    prompt = [*prompt_ids, *thinking.start]

`controls` makes the arrays of a batch from it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxs1.config import UserError
from jaxs1.data.delimiters import merges, remedy
from jaxs1.data.model_settings import settings_of
from jaxs1.data.text import encode
from jaxs1.decoding import budget
from jaxs1.decoding.params import (
    AUTO_ANSWER,
    Delimiters,
    ThinkingParams,
    delimiters_of,
    resolve_preset,
)

Ids = tuple[int, ...]


@dataclass(frozen=True)
class TokenizedThinking:
    """`ThinkingParams` in token ids.

    Args:
        thinking: the parameters
        start: tokens appended to the prompt
        ends: token sequences that end thinking
        resume: for each end, the token of `close` that follows it; see `budget.Controls`
        stops: token sequences that end the answer
        reopen: token sequence in the answer that begins thinking again; empty: none
        line_break: first part of the text that cuts thinking short
        close: second part of it, and the text after an end of the model's own
        answer_prefix: third part of it
        waits: wait strings
        answer_start: beginning of every answer, written by the controller
        call: the end of thinking that calls a tool, repeated behind the close; empty: none
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
    answer_start: Ids = ()
    call: Ids = ()

    @property
    def cut(self) -> Ids:
        """All tokens that are inserted to cut thinking short."""
        return self.line_break + self.close + self.answer_prefix

    @property
    def reserved_tokens(self) -> int:
        """Tokens of the context that thinking leaves free: for `cut` and a minimal answer."""
        params = self.thinking
        answer = params.min_answer_tokens
        if params.max_answer_tokens >= 0:
            answer = min(answer, params.max_answer_tokens)
        return len(self.cut) + answer


def tokenize_thinking(
    params: ThinkingParams, tokenizer: Any, answer_start: str = "", tool_call: str = ""
) -> TokenizedThinking:
    """Encode the texts of a request; special tokens become their ids, never their characters.

    Besides the tokenizer's own end, those that the model's folder declares are stops.

    Args:
        params: thinking parameters
        tokenizer: tokenizer of the model
        answer_start, tool_call: see `Request`

    Raises:
        UserError: a text encodes to no token, the preset contradicts the chat template, the
            tokenizer lacks a special token, the tokens of an end merge with their neighbours, or
            one of s1's own modes is used with an end of several tokens or a text that it lacks
    """
    params = resolve_preset(params, tokenizer)
    texts = delimiters_of(params)
    if params.mode != "off":  # which has no thinking to begin or to end
        _require_special_tokens(texts, params.delimiters, tokenizer)
        _require_distinct_ends(texts, params, tokenizer)
    start = _encode(texts.start, "delimiters.start", tokenizer)
    reopen = _encode((texts.start or "").strip(), "delimiters.start", tokenizer)
    line_break = tuple(_plain(texts.line_break or "", tokenizer))
    close = _encode(texts.close, "delimiters.close", tokenizer)
    # presets serve several tokenizers; a special token that this one lacks cannot be generated
    known = [text for text in texts.stop or () if not _lacking(text, tokenizer)]
    stops = [_encode(text, "delimiters.stop", tokenizer) for text in known]
    eos = (tokenizer.eos_token_id, *settings_of(tokenizer).eos_ids)
    stops += [(token,) for token in eos if token is not None and 0 <= token < len(tokenizer)]
    ends = _ends(texts, close, tokenizer)
    for ids in stops:
        ends.setdefault(ids, budget.NONE)
    call = tuple(_plain(tool_call, tokenizer)) if params.mode == "strict" else ()
    if call:
        ends.setdefault(call, budget.NONE)
    if params.mode in ("s1_readme", "s1_harness"):
        if answer_start:
            raise UserError(
                f"thinking.mode={params.mode}: has no text that begins the answer; set "
                "thinking.mode=strict"
            )
        _require_single_tokens(tuple(ends), params.mode, tokenizer)
    silent = params.mode in ("s1_readme", "off")  # inserts nothing when thinking ends
    return TokenizedThinking(
        thinking=params,
        start=() if params.mode == "off" else start,
        ends=tuple(ends),
        resume=tuple(budget.NONE if silent else follows for follows in ends.values()),
        stops=tuple(dict.fromkeys(stops)),
        reopen=reopen if params.mode == "strict" else (),
        line_break=() if silent else line_break,
        close=() if silent else close,
        answer_prefix=() if silent else _answer_prefix(params, texts, close, tokenizer),
        waits=tuple(_encode(text, "wait_strings", tokenizer) for text in params.wait_strings),
        answer_start=tuple(_plain(answer_start, tokenizer)),
        call=call,
    )


def resolve_auto(thinking: TokenizedThinking, prompt_lengths: Sequence[int]) -> TokenizedThinking:
    """Replace the budget "auto" by the number that s1's harness derives; other budgets stay.

    The number is max_answer_tokens less the longest prompt of the batch (start of thinking
    included), less close and answer prefix, less 100.

    Raises:
        UserError: no token is left for thinking
    """
    params = thinking.thinking
    if params.max != "auto":
        return thinking
    taken = max(prompt_lengths) + len(thinking.close + thinking.answer_prefix) + AUTO_ANSWER
    if params.max_answer_tokens <= taken:
        raise UserError(
            f"thinking.max=auto: thinking.max_answer_tokens={params.max_answer_tokens} leaves no "
            f"thinking, the longest prompt, close, answer prefix and answer need {taken}; raise "
            "thinking.max_answer_tokens"
        )
    chosen = dataclasses.replace(params, max=params.max_answer_tokens - taken)
    return dataclasses.replace(thinking, thinking=chosen)


def _require_special_tokens(texts: Delimiters, own: Delimiters, tokenizer: Any) -> None:
    """Check that special tokens such as <|im_start|> exist: the model only knows them as one id."""
    parts = {"start": [texts.start], "ends": texts.ends, "close": [texts.close], "stop": own.stop}
    for name, values in parts.items():
        lacking = [special for text in values or () for special in _lacking(text, tokenizer)]
        if lacking:
            raise UserError(
                f"thinking.delimiters.{name}: the tokenizer has no token {lacking[0]}; "
                "set thinking.preset=think_tags, or texts that the model was trained with"
            )


def _require_distinct_ends(texts: Delimiters, params: ThinkingParams, tokenizer: Any) -> None:
    """Check that no end of thinking can hide in tokens that it shares with its neighbours."""
    ends = texts.ends or ()
    setting = "delimiters.ends" if params.delimiters.ends else f"preset={params.preset}"
    for end in ends:
        is_longer = any(end != other and end.startswith(other) for other in ends)
        if not is_longer and (example := merges(end, tokenizer, ends)):
            raise UserError(
                f"thinking.{setting}: the tokens of {end!r} merge with the text next to it "
                f"({example!r}), where it would be missed; {remedy(tokenizer, 'thinking.preset')}"
            )


def _lacking(text: str | None, tokenizer: Any) -> list[str]:
    """Special tokens of a text that the tokenizer would split."""
    specials = re.findall(r"<\|[^|]*\|>", text or "")
    return [special for special in specials if len(_plain(special, tokenizer)) != 1]


def _require_single_tokens(ends: Sequence[Ids], mode: str, tokenizer: Any) -> None:
    for ids in ends:
        if len(ids) > 1:
            raise UserError(
                f"thinking.mode={mode}: requires ends of thinking of one token, but "
                f"{tokenizer.decode(list(ids))!r} is {len(ids)}; set thinking.mode=strict"
            )


def _plain(text: str, tokenizer: Any) -> list[int]:
    return encode(text, tokenizer, "thinking")


def _encode(text: str | None, name: str, tokenizer: Any) -> Ids:
    ids = tuple(encode(text or "", tokenizer, f"thinking.{name}"))
    if not ids:
        raise UserError(f"thinking.{name}={text!r}: encodes to no token; set a non-empty text")
    return ids


def _ends(texts: Delimiters, close: Ids, tokenizer: Any) -> dict[Ids, int]:
    """Ends of thinking, and for each the token of the close that follows it.

    An end that begins with another end is left out: it could never be reached.
    """
    spelled = {_encode(text, "delimiters.ends", tokenizer): text for text in texts.ends or ()}
    ends = {}
    for ids, text in spelled.items():
        if any(ids[:n] in spelled for n in range(1, len(ids))):
            continue
        if close[: len(ids)] == ids:
            ends[ids] = len(ids)
        else:  # "</think>\n\n" contains the complete close; an end unlike the close has none of it
            ends[ids] = len(close) if text.startswith(texts.close or "") else budget.NONE
    return ends


def _answer_prefix(params: ThinkingParams, texts: Delimiters, close: Ids, tokenizer: Any) -> Ids:
    """The prefix as encoded behind the close, as in s1, unless BPE merges the two at the seam."""
    text = params.answer_prefix
    if text is None:
        text = "\nFinal Answer:" if params.mode == "s1_harness" else ""
    both = tuple(_plain((texts.close or "") + text, tokenizer))
    if both[: len(close)] == close:
        return both[len(close) :]
    return tuple(_plain(text, tokenizer))
