"""Text that comes from users: what no tokenizer can encode is refused in one line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from jaxs1.config import UserError

#: Nesting of JSON beyond which Python's own recursion becomes the limit.
MAX_DEPTH = 100
_SURROGATE = re.compile("[\ud800-\udfff]")


class Leaf(NamedTuple):
    """A key, or a value that has no parts.

    Args:
        place: where it is, e.g. tools[0].name; of a key, the place of its object
        value: the key or the value
        is_key: whether it is a key
    """

    place: str
    value: Any
    is_key: bool


def leaves(value: Any, name: str = "") -> Iterator[Leaf]:
    """All keys, texts and numbers in a value made of lists and dictionaries.

    Raises:
        UserError: the value is nested too deeply.
    """
    stack = [(name, value, 0)]
    while stack:
        place, item, depth = stack.pop()
        if depth > MAX_DEPTH:
            raise UserError(
                f"{_short(place)}: is nested more than {MAX_DEPTH} levels deep; flatten it"
            )
        parts: list[tuple[str, Any]] = []
        if isinstance(item, dict):
            yield from (Leaf(place, key, True) for key in item)
            parts = [(f"{place}.{key}" if place else str(key), item[key]) for key in item]
        elif isinstance(item, list | tuple):
            parts = [(f"{place}[{i}]", part) for i, part in enumerate(item)]
        else:
            yield Leaf(place, item, False)
        stack += [(*part, depth + 1) for part in reversed(parts)]


def check_text(value: Any, name: str = "") -> None:
    """Check that a text, or every text in a JSON value, has an encoding.

    Args:
        value: text, or a value made of lists and dictionaries
        name: what it is, for the message

    Raises:
        UserError: half of a surrogate pair (UTF-16's "\\ud83d" alone); too deeply nested.
    """
    for leaf in leaves(value, name):
        if isinstance(leaf.value, str) and (found := _SURROGATE.search(leaf.value)):
            code = f"\\u{ord(found.group()):04x}"
            raise UserError(
                f"{_short(leaf.place)}: contains {code}, half of a surrogate pair, which is no "
                "character; remove it, or write the complete character"
            )


def encodable(text: str) -> str:
    """The text with "?" for half of a surrogate pair, which no tokenizer accepts."""
    return text.encode(errors="replace").decode()


def encode(text: str, tokenizer: Any, name: str = "prompt") -> list[int]:
    """Token ids of a text; special tokens in it become their ids.

    Args:
        text: text
        tokenizer: tokenizer
        name: what the text is, for the message

    Raises:
        UserError: see `check_text`.
    """
    check_text(text, name)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _short(place: str) -> str:
    place = _SURROGATE.sub("?", place)
    return place if len(place) <= 80 else f"{place[:80]}..."
