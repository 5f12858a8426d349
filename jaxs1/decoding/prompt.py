"""From a conversation to the ids of a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxs1.config import UserError, one_line
from jaxs1.decoding.params import ThinkingParams, delimiters_of


def prompt_ids(
    messages: Sequence[dict[str, str]], thinking: ThinkingParams, tokenizer: Any
) -> list[int]:
    """Ids of a conversation in the tokenizer's chat template, up to where thinking begins.

    The engine writes the start of thinking; where a template does so too, it is taken away.

    Raises:
        UserError: the tokenizer has no chat template, or one that refuses the conversation.
    """
    try:
        text = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # no template, or one that refuses these messages
        raise UserError(
            "model: its tokenizer's chat template cannot render the conversation "
            f"({one_line(error)[:200]}); give a model with a chat template"
        ) from None
    if thinking.mode != "off":
        text = text.removesuffix(delimiters_of(thinking).start or "")
    return tokenizer(text, add_special_tokens=False)["input_ids"]
