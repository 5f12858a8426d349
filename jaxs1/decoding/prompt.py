"""Render a conversation with the chat template, as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxs1.config import UserError, one_line
from jaxs1.decoding.params import ThinkingParams, delimiters_of


def prompt_ids(
    messages: Sequence[dict[str, str]], thinking: ThinkingParams, tokenizer: Any
) -> list[int]:
    """Ids of a conversation in the tokenizer's chat template, without the start of thinking.

    The engine appends the start of thinking; if the template has appended it too, it is removed.

    Raises:
        UserError: the tokenizer has no chat template, or the template rejects the conversation
    """
    try:
        text = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # no template, or one that rejects these messages
        raise UserError(
            "model: its tokenizer's chat template cannot render the conversation "
            f"({one_line(error)[:150]}); use a model with a chat template"
        ) from None
    if thinking.mode != "off":
        text = text.removesuffix(delimiters_of(thinking).start or "")
    return tokenizer(text, add_special_tokens=False)["input_ids"]
