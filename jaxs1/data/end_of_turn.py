"""The token that ends an assistant's turn, found in what the chat template writes."""

from __future__ import annotations

from typing import Any

#: An answer that no template alters.
_ANSWER = "forty-two"
_CONVERSATION = [
    {"role": "user", "content": "Which number is it?"},
    {"role": "assistant", "content": _ANSWER},
]


def end_of_turn(tokenizer: Any) -> int | None:
    """Id of the first special token that the chat template writes behind an answer.

    `<|im_end|>` in ChatML, the end of a sentence in DeepSeek's template; None if the template ends
    turns with plain text, or there is no template.
    """
    try:
        text = tokenizer.apply_chat_template(_CONVERSATION, tokenize=False)
    except Exception:  # no template, or one that rejects this conversation
        return None
    _, answer, behind = text.rpartition(_ANSWER)
    if not answer:
        return None
    added = tokenizer.added_tokens_decoder
    ids = tokenizer(behind, add_special_tokens=False)["input_ids"]
    return next((token for token in ids if token in added), None)
