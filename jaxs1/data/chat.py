"""Chats to token ids and a loss mask: the exact text of s1's training.

s1 (arXiv 2501.19393) renders an example with the tokenizer's chat template. The assistant's text is
`<|im_start|>think\\n` + trace + `\\n<|im_start|>answer\\n` + attempt, and the loss counts only the
tokens after `<|im_start|>assistant\\n`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxs1.config import UserError, one_line

THINK = "<|im_start|>think"
ANSWER = "<|im_start|>answer"
ASSISTANT = "<|im_start|>assistant\n"
USER = "<|im_start|>user"
END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True)
class Record:
    """One training record: a chat or plain text.

    Args:
        where: origin (file:line), for messages
        messages: turns with role and content; empty for plain text
        text: plain text
    """

    where: str
    messages: tuple[dict[str, str], ...] = ()
    text: str = ""


@dataclass(frozen=True)
class Example:
    """A tokenised record.

    Args:
        tokens: int32 [n], token ids
        is_target: bool [n], whether the loss counts the token
    """

    tokens: np.ndarray
    is_target: np.ndarray


def reasoning(thinking: str, attempt: str) -> str:
    """The assistant's text of an s1K example."""
    attempt = attempt.strip()
    if "Answer:" not in attempt:
        attempt = f"Answer: {attempt}"
    return f"{THINK}\n{thinking.strip()}\n{ANSWER}\n{attempt}"


def encode(records: Sequence[Record], tokenizer: Any) -> list[Example]:
    """Tokenise records: chats through the tokenizer's chat template, plain text unchanged.

    Raises:
        UserError: the tokenizer has no chat template, or its output has no
            `<|im_start|>assistant` turn; the message names the record.
    """
    end = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    texts = [_render(record, tokenizer) for record in records]
    examples = []
    for record, ids in zip(records, _tokenize(texts, tokenizer), strict=True):
        if record.messages:
            tokens = np.asarray(ids, np.int32)
            is_target = response_mask(tokens, _ids(ASSISTANT, tokenizer), _ids(USER, tokenizer))
            if not is_target.any():
                raise UserError(
                    f"{record.where}: the chat template wrote no {ASSISTANT!r}; "
                    "use a tokenizer with a ChatML template, such as Qwen's"
                )
        else:
            tokens = np.asarray([*ids, end], np.int32)
            is_target = np.ones(len(tokens), bool)
        examples.append(Example(tokens, is_target))
    return examples


def response_mask(
    tokens: np.ndarray, response: Sequence[int], instruction: Sequence[int]
) -> np.ndarray:
    """Bool [n]: true after every `response` marker, up to the next `instruction` marker.

    Equals TRL's completion-only collator, which was used for s1: the closing `<|im_end|>` and
    newline of an answer are targets, the markers themselves are not.
    """
    mask = np.zeros(len(tokens), bool)
    instructions = _find(tokens, instruction)
    for start in _find(tokens, response):
        begin = start + len(response)
        later = [i for i in instructions if i >= begin]
        mask[begin : later[0] if later else len(tokens)] = True
    return mask


def _find(tokens: np.ndarray, marker: Sequence[int]) -> list[int]:
    """Positions where the marker begins."""
    if len(tokens) < len(marker):
        return []
    windows = np.lib.stride_tricks.sliding_window_view(tokens, len(marker))
    return np.flatnonzero((windows == np.asarray(marker)).all(axis=1)).tolist()


def _render(record: Record, tokenizer: Any) -> str:
    if not record.messages:
        return record.text
    try:
        return tokenizer.apply_chat_template(list(record.messages), tokenize=False)
    except Exception as error:  # no template, or a template that rejects these messages
        reason = one_line(error)[:200]
        raise UserError(f"{record.where}: the chat template cannot render it ({reason})") from None


def _tokenize(texts: list[str], tokenizer: Any) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


def _ids(text: str, tokenizer: Any) -> list[int]:
    return _tokenize([text], tokenizer)[0]
