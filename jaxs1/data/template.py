"""What a tokenizer's chat template writes, and what it says about thinking."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from jaxs1.config import UserError, one_line

Message = dict[str, Any]

#: Fields of a message that can hold an assistant's thinking, the most common first.
THINKING_FIELDS = ("reasoning_content", "reasoning", "thinking")
#: Variables with which hybrid templates turn thinking on and off: Qwen3's, DeepSeek V3.1's.
SWITCHES = ("enable_thinking", "thinking")
_OPEN = re.compile(r"<think>\s*$")


def source(tokenizer: Any) -> str:
    """The template itself; empty if the tokenizer has none."""
    return str(getattr(tokenizer, "chat_template", None) or "")


def names_think_tags(tokenizer: Any) -> bool:
    """Whether the template knows <think> or </think>."""
    return re.search("</?think>", source(tokenizer)) is not None


def thinking_field(tokenizer: Any) -> str | None:
    """The field in which the template expects an assistant's thinking; None if it knows none."""
    template = source(tokenizer)
    for name in THINKING_FIELDS:
        if re.search(rf"""\.{name}\b|\[['"]{name}['"]\]|get\(['"]{name}['"]""", template):
            return name
    return None


def render(
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    thinks: bool,
    tools: list[Any] | None = None,
    prompt: bool = False,
) -> str:
    """The text of a conversation.

    Args:
        tokenizer: tokenizer with a chat template
        messages: messages with the fields that the template knows
        thinks: value of the template's own switch of thinking, if it has one
        tools: descriptions of tools
        prompt: end with the header of the assistant's next turn

    Raises:
        UserError: there is no template, or it rejects the messages.
    """
    options: dict[str, Any] = {
        name: thinks for name in SWITCHES if re.search(rf"\b{name}\b", source(tokenizer))
    }
    if tools:
        options["tools"] = tools
    if prompt:
        options["add_generation_prompt"] = True
    try:
        return tokenizer.apply_chat_template(list(messages), tokenize=False, **options)
    except Exception as error:  # no template, or a template that rejects these messages
        raise UserError(f"the chat template cannot render it ({one_line(error)[:200]})") from None


def opening(tokenizer: Any) -> str:
    """The `<think>` and white space with which the template ends every prompt, or nothing."""
    if not names_think_tags(tokenizer):
        return ""
    text = render(tokenizer, [{"role": "user", "content": "?"}], thinks=True, prompt=True)
    found = _OPEN.search(text)
    return found.group() if found else ""


def prompt_text(
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    thinks: bool,
    tools: list[Any] | None = None,
) -> str:
    """The text after which the assistant's turn begins.

    Without thinking, a template's switch is turned off, and a thinking that the template opens
    nevertheless is closed at once, as Qwen3's template does itself.

    Raises:
        UserError: see `render`.
    """
    text = render(tokenizer, messages, thinks=thinks, tools=tools, prompt=True)
    if not thinks and (found := _OPEN.search(text)) and opening(tokenizer):
        text = f"{text[: found.start()]}<think>\n\n</think>\n\n"
    return text
