"""Render a conversation with the chat template, as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxs1.config import UserError
from jaxs1.data.conversation import Conversation
from jaxs1.data.messages import clean_messages, clean_tools
from jaxs1.data.text import encode
from jaxs1.decoding.params import ThinkingParams, delimiters_of, resolve_preset


def prompt_ids(
    messages: Sequence[dict[str, Any]],
    thinking: ThinkingParams,
    tokenizer: Any,
    tools: Any = None,
) -> list[int]:
    """Ids of a conversation in the tokenizer's chat template, without the start of thinking.

    The engine appends the start of thinking; if the template has appended it too, it is removed.
    With `thinking.mode` off, a template's own thinking is turned off, or closed at once.

    Args:
        messages: role and content, and the fields that `clean_messages` knows
        thinking: thinking parameters
        tokenizer: tokenizer of the model
        tools: descriptions of tools

    Raises:
        UserError: the tokenizer has no chat template, the template rejects the conversation or
            drops a part of it, or the preset contradicts the template
    """
    thinking = resolve_preset(thinking, tokenizer)
    cleaned, described = clean_messages(messages, prompt=True), clean_tools(tools)
    conversation = Conversation(tokenizer, cleaned, thinking.preset, described)
    try:
        text = conversation.prompt(thinks=thinking.mode != "off")
    except UserError as error:
        if not getattr(tokenizer, "chat_template", None):
            raise UserError(
                "model: its tokenizer has no chat template; use a model with one"
            ) from None
        raise error
    if thinking.mode != "off":
        text = text.removesuffix(delimiters_of(thinking).start or "")
    return encode(text, tokenizer, "messages")
