"""Chats to token ids and a loss mask: the exact text of s1's training.

s1 (arXiv 2501.19393) renders an example with the tokenizer's chat template. The assistant's text is
`<|im_start|>think\\n` + trace + `\\n<|im_start|>answer\\n` + attempt, and the loss counts only the
tokens after `<|im_start|>assistant\\n`. Tokenizers of other models get the delimiters that decoding
writes for them (`delimiters`). A text is encoded in the pieces in which decoding encodes or writes
it: prompt, start of thinking, the rest of the turn. So what is trained is what decoding writes,
token by token.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxs1.config import UserError
from jaxs1.data.conversation import Conversation, Turn, has_thinking
from jaxs1.data.delimiters import THINK, check_preset, choose_preset, with_thinking
from jaxs1.data.template import Message
from jaxs1.data.text import check_text

END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True)
class Record:
    """One training record: a chat or plain text.

    Args:
        where: origin (file:line), for messages
        messages: turns, from `clean_messages`; empty for plain text
        text: plain text
        tools: descriptions of tools that the chat may call
        trace: thinking and answer of the last message, whose content has s1's delimiters; None if
            the content is the user's own
    """

    where: str
    messages: tuple[Message, ...] = ()
    text: str = ""
    tools: list[Any] | None = None
    trace: tuple[str, str] | None = None


@dataclass(frozen=True)
class Example:
    """A tokenised record.

    Args:
        tokens: int32 [n], token ids
        is_target: bool [n], whether the loss counts the token
        left_out: number of assistant turns that the loss does not count, since the template writes
            them differently from what decoding continues, e.g. without their thinking
    """

    tokens: np.ndarray
    is_target: np.ndarray
    left_out: int = 0


def announced(attempt: str) -> str:
    """An attempt that says where its answer begins."""
    attempt = attempt.strip()
    return attempt if "Answer:" in attempt else f"Answer: {attempt}"


def reasoning(thinking: str, attempt: str) -> str:
    """The assistant's text of an s1K example."""
    return with_thinking("s1", thinking, announced(attempt))


def preset_of(records: Sequence[Record], tokenizer: Any, preset: str = "auto") -> str | None:
    """The delimiters of the records' thinking; None if no record has any.

    Raises:
        UserError: see `encode`.
    """
    thinks = any(r.trace or any(map(has_thinking, r.messages)) for r in records)
    chosen = choose_preset(preset, tokenizer)
    if thinks or preset != "auto":
        check_preset(chosen, tokenizer, "data.preset")
    return chosen if thinks else None


def encode(records: Sequence[Record], tokenizer: Any, preset: str = "auto") -> list[Example]:
    """Tokenise records: chats through the tokenizer's chat template, plain text unchanged.

    Args:
        records: chats and texts
        tokenizer: tokenizer of the model
        preset: delimiters of thinking: auto, s1 or think_tags

    Raises:
        UserError: the preset does not suit the tokenizer; the template drops or alters a part of a
            record, or writes no turn to learn from. The message names the record.
    """
    chosen = preset_of(records, tokenizer, preset) or choose_preset(preset, tokenizer)
    end = _end_of_text(tokenizer) if any(not r.messages for r in records) else 0
    pieces, counts, left_out = [], [], []
    for record in records:
        try:
            own, bare = _pieces(record, tokenizer, chosen)
        except UserError as error:
            raise UserError(f"{record.where}: {error}") from None
        pieces += own
        counts.append(len(own))
        left_out.append(bare)
    ids = iter(_tokenize([text for text, _ in pieces], tokenizer))
    is_target = iter([target for _, target in pieces])
    examples = []
    for record, count, bare in zip(records, counts, left_out, strict=True):
        parts = [(next(ids), next(is_target)) for _ in range(count)]
        if not record.messages:
            parts.append(([end], True))
        tokens = np.asarray([token for part, _ in parts for token in part], np.int32)
        mask = [target for part, target in parts for _ in part]
        examples.append(Example(tokens, np.asarray(mask, bool), bare))
    return examples


def _pieces(record: Record, tokenizer: Any, preset: str) -> tuple[list[tuple[str, bool]], int]:
    """The texts that are encoded one by one, whether the loss counts each, and turns left out."""
    if not record.messages:
        check_text(record.text, "text")
        return [(record.text, True)], 0
    conversation = Conversation(tokenizer, _messages(record, preset), preset, record.tools)
    if record.trace:
        conversation = _with_trace(conversation, record.trace)
    text, turns, left_out = conversation.training_text()
    if not turns:
        raise UserError(
            "the chat template wrote no turn of an assistant that can be learnt; give a chat with "
            "one, or a tokenizer with a ChatML template, such as Qwen's"
        )
    return _cut(text, turns), left_out


def _with_trace(conversation: Conversation, trace: tuple[str, str]) -> Conversation:
    """The conversation with the delimiters of its preset around the last message's thinking."""
    *earlier, last = conversation.messages
    content = with_thinking(conversation.preset, *trace, conversation.start)
    return replace(conversation, messages=(*earlier, last | {"content": content}))


def _messages(record: Record, preset: str) -> tuple[Message, ...]:
    """The messages; raises `UserError` if they use other delimiters than decoding will."""
    other = {"s1": "<think>", "think_tags": THINK}[preset]
    for i, message in enumerate(record.messages):
        is_own = message["role"] == "assistant" and not record.trace
        if is_own and message["content"].lstrip().startswith(other):
            right = "think_tags" if preset == "s1" else "s1"
            raise UserError(
                f"messages[{i}].content: begins with {other}, but decoding writes the delimiters "
                f"of {preset} with this tokenizer; give the thinking in reasoning_content, or set "
                f"data.preset={right}"
            )
    return record.messages


def _cut(text: str, turns: Sequence[Turn]) -> list[tuple[str, bool]]:
    """A text in pieces, cut where decoding begins to encode or to write."""
    places = {place for turn in turns for place in (turn.begin, turn.end, *turn.start)}
    cuts = sorted({0, len(text)} | places)
    return [
        (text[a:b], any(turn.begin <= a < turn.end for turn in turns))
        for a, b in itertools.pairwise(cuts)
    ]


def _end_of_text(tokenizer: Any) -> int:
    """The token behind a plain text: `<|endoftext|>`, or the tokenizer's own end."""
    end = tokenizer.get_vocab().get(END_OF_TEXT, tokenizer.eos_token_id)
    if end is None:
        raise UserError(
            f"tokenizer: has neither {END_OF_TEXT} nor an end of its own (eos_token) to put behind "
            "a text; set eos_token in its tokenizer_config.json"
        )
    return end


def _tokenize(texts: list[str], tokenizer: Any) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False)["input_ids"]
