"""The delimiters of thinking: `s1` or `think_tags`, chosen for a tokenizer and its template."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any, Literal

from jaxs1.config import UserError
from jaxs1.data import template
from jaxs1.data.model_settings import settings_of

START = "<|im_start|>"
THINK = "<|im_start|>think"
ANSWER = "<|im_start|>answer"
OPEN, CLOSE = "<think>\n", "</think>"

Preset = Literal["auto", "s1", "think_tags"]

#: Texts next to which a delimiter must keep its tokens.
_NEIGHBOURS = [
    *(*string.ascii_letters, *string.digits, *string.punctuation, " ", "\n", "\n\n", "é"),
    *("The", "So", "Answer", "Final", "done.", "**", "\\boxed"),
]


def choose_preset(preset: str, tokenizer: Any) -> str:
    """A preset, "auto" resolved.

    "auto" is what the model's folder declares (`model_settings`), else think_tags if the tokenizer
    has `</think>` as one token or the chat template names it, else s1.
    """
    if preset != "auto":
        return preset
    if declared := settings_of(tokenizer).preset:
        return declared
    tags = template.names_think_tags(tokenizer) or _is_token(CLOSE, tokenizer)
    return "think_tags" if tags else "s1"


def check_preset(preset: str, tokenizer: Any, setting: str) -> None:
    """Check that a preset suits a tokenizer and its chat template.

    Args:
        preset: s1 or think_tags
        tokenizer: tokenizer
        setting: field that holds the preset, for the message

    Raises:
        UserError: the template writes other delimiters, the tokenizer lacks a token of them, or
            the tokens of an end of thinking merge with those next to it.
    """
    check_template(preset, tokenizer, setting)
    if preset == "s1" and not _is_token(START, tokenizer):
        raise UserError(
            f"{setting}=s1: the tokenizer has no token {START}; set {setting}=think_tags, or use "
            "the tokenizer of another model"
        )
    if preset == "think_tags" and (example := merges(CLOSE, tokenizer)):
        raise UserError(
            f"{setting}=think_tags: the tokenizer has no token </think>, and its pieces merge with "
            f"the text next to it ({example!r}), where it would be missed; "
            + remedy(tokenizer, setting)
        )


def check_template(preset: str, tokenizer: Any, setting: str) -> None:
    """The part of `check_preset` that concerns the chat template; raises `UserError`."""
    if preset == "s1" and template.names_think_tags(tokenizer):
        raise UserError(
            f"{setting}=s1: contradicts the chat template, which writes <think> and </think>; set "
            f"{setting}=think_tags"
        )


def remedy(tokenizer: Any, setting: str) -> str:
    """What to do where think_tags cannot be used."""
    if template.names_think_tags(tokenizer) or not _is_token(START, tokenizer):
        return "use a tokenizer that has </think> as a token"
    return f"set {setting}=s1, or use a tokenizer that has </think> as a token"


def merges(text: str, tokenizer: Any, others: Sequence[str] = ()) -> str | None:
    """A text in which the tokens of `text` merge with a neighbour, or None.

    Args:
        text: a delimiter
        tokenizer: tokenizer
        others: texts that are delimiters as well, e.g. the same with a line break
    """
    ids = _ids(text, tokenizer)
    for char in _NEIGHBOURS:
        if _ids(char + text, tokenizer)[-len(ids) :] != ids:
            return char + text
        known = any(other != text and (text + char).startswith(other) for other in others)
        if not known and _ids(text + char, tokenizer)[: len(ids)] != ids:
            return text + char
    return None


def with_thinking(preset: str, thinking: str, answer: str, start: str | None = None) -> str:
    """An assistant's text in which thinking and answer are delimited as decoding writes them.

    Args:
        preset: s1 or think_tags
        thinking: thinking, without delimiters
        answer: answer
        start: beginning of think_tags where the template's own differs
    """
    if preset == "s1":
        return f"{THINK}\n{thinking.strip()}\n{ANSWER}\n{answer}"
    return f"{start or OPEN}{thinking.strip()}\n{CLOSE}\n\n{answer}"


def _is_token(text: str, tokenizer: Any) -> bool:
    return len(_ids(text, tokenizer)) == 1


def _ids(text: str, tokenizer: Any) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]
