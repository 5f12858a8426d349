"""A conversation in the chat template, complete: nothing that was given vanishes silently.

Templates drop what they do not know: roles, fields, the thinking of earlier turns. Here every part
of every message is looked for in what the template wrote, in order. A conversation with markers in
place of its texts shows which parts the template drops wherever they stand; the texts themselves
show what it cuts from these texts.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from jaxs1.config import UserError
from jaxs1.data import template
from jaxs1.data.delimiters import CLOSE, OPEN, THINK, with_thinking
from jaxs1.data.template import THINKING_FIELDS, Message
from jaxs1.data.text import Leaf, leaves

_MARKER = "[part {}]"
_TAGS = re.compile("(</?think>)")
#: Fields that a template may not know, besides those with thinking.
_OPTIONAL = ("name", "tool_call_id", "tool_calls")


class Part(NamedTuple):
    """A text in a message.

    Args:
        message: index of the message
        field: field that holds it
        is_thinking: whether it is an assistant's thinking
        text: without white space around it
    """

    message: int
    field: str
    is_thinking: bool
    text: str


class Turn(NamedTuple):
    """A part of a training text that the assistant wrote; positions are those of characters.

    Args:
        begin: end of the prompt in front of it
        end: end of the turn, with what the template writes behind it
        start: begin and end of the start of thinking, which may be a part of the prompt; without
            thinking twice the same as `begin`
    """

    begin: int
    end: int
    start: tuple[int, int]


@dataclass(frozen=True)
class Conversation:
    """Messages and tools, in the chat template of a tokenizer.

    Args:
        tokenizer: tokenizer with a chat template
        messages: messages from `clean_messages`
        preset: s1 or think_tags; writes thinking where the template has no field for it
        tools: descriptions of tools
    """

    tokenizer: Any
    messages: Sequence[Message]
    preset: str
    tools: list[Any] | None = None

    @cached_property
    def start(self) -> str:
        """The beginning of thinking, as decoding writes it behind the prompt."""
        return THINK if self.preset == "s1" else template.opening(self.tokenizer) or OPEN

    @cached_property
    def rendered(self) -> list[Message]:
        """The messages as the template gets them."""
        field = template.thinking_field(self.tokenizer)
        return [self._for_template(message, field) for message in self.messages]

    @cached_property
    def thinks(self) -> bool:
        """Whether any turn has thinking."""
        return any(map(has_thinking, self.messages))

    def prompt(self, *, thinks: bool) -> str:
        """The text after which the next turn of the assistant begins, without start of thinking.

        Raises:
            UserError: the template rejects the messages, or drops a part of them.
        """
        raw = self._render(self.rendered, thinks=thinks, prompt=True)
        for part in self._missing(raw, thinks=thinks, prompt=True):
            raise self._vanishes(part)
        return self._prompt(self.rendered, thinks=thinks)

    def training_text(self) -> tuple[str, list[Turn], int]:
        """The complete text, the turns to learn from, and the number of those that are left out.

        Templates write earlier turns without their thinking, or differently from what decoding
        continues; such turns are context only. Where a template drops that of the last turn as well
        (R1's does), this turn is written as decoding writes it.

        Raises:
            UserError: the template rejects the messages, drops a part of them, or does not begin
                the last turn as decoding does.
        """
        text = self._render(self.rendered, thinks=self.thinks)
        missing = self._missing(text, thinks=self.thinks)
        last = len(self.messages) - 1
        dropped = [part for part in missing if part.is_thinking and part.message == last]
        if dropped and (decoded := self._as_decoded()):
            text, missing = decoded, [part for part in missing if part not in dropped]
        for part in missing:
            if not part.is_thinking or part.message == last:
                raise self._vanishes(part)
        bare = {part.message for part in missing}
        turns, left_out = [], len(bare)
        for i, message in enumerate(self.messages):
            if i not in bare and message["role"] == "assistant" and message.get("train", True):
                turn = self._turn(text, i)
                if turn is None and i == last:
                    raise self._contradiction(i)
                left_out += turn is None
                turns += [turn] if turn is not None else []
        return text, turns, left_out

    def _for_template(self, message: Message, field: str | None) -> Message:
        """A message with its thinking where the template writes it."""
        given = {k: v for k, v in message.items() if k not in ("train", "reasoning_content")}
        thinking = message.get("reasoning_content")
        if thinking is None:
            return given
        if field is not None:
            return given | {field: thinking}
        return given | {
            "content": with_thinking(self.preset, thinking, given["content"], self.start)
        }

    def _render(self, messages: Sequence[Message], *, thinks: bool, prompt: bool = False) -> str:
        return template.render(
            self.tokenizer, messages, thinks=thinks, tools=self.tools, prompt=prompt
        )

    def _prompt(self, messages: Sequence[Message], *, thinks: bool) -> str:
        return template.prompt_text(self.tokenizer, messages, thinks=thinks, tools=self.tools)

    def _missing(self, text: str, *, thinks: bool, prompt: bool = False) -> list[Part]:
        """Parts that the template drops; raises `UserError` for fields that it drops."""
        marked, parts = _marked(self.rendered)
        try:
            shown = self._render(marked, thinks=thinks, prompt=prompt)
        except UserError:  # a template that reads the texts
            shown = "".join(map(_MARKER.format, range(len(parts))))
        there: list[Part] = []
        missing: list[Part] = []
        position = 0
        for number, part in enumerate(parts):
            found = shown.find(_MARKER.format(number), position)
            (missing if found < 0 else there).append(part)
            position = max(position, found)
        missing += _not_in_order(text, there)
        self._check_fields(text, thinks=thinks, prompt=prompt)
        return missing

    def _check_fields(self, text: str, *, thinks: bool, prompt: bool) -> None:
        """Check that tools, calls and names are written: without them the text is another one."""
        for i, message in enumerate(self.rendered):
            for field in (f for f in _OPTIONAL if f in message):
                without = list(self.rendered)
                without[i] = {k: v for k, v in message.items() if k != field}
                other = self._without(without, self.tools, thinks=thinks, prompt=prompt)
                _check_written(f"messages[{i}].{field}", message[field], text, other)
        if self.tools:
            other = self._without(self.rendered, None, thinks=thinks, prompt=prompt)
            _check_written("tools", self.tools, text, other)

    def _without(
        self, messages: Sequence[Message], tools: list[Any] | None, *, thinks: bool, prompt: bool
    ) -> str:
        """The text without a field; empty if the template cannot do without it."""
        try:
            return template.render(
                self.tokenizer, messages, thinks=thinks, tools=tools, prompt=prompt
            )
        except UserError:
            return ""

    def _as_decoded(self) -> str | None:
        """The text whose last turn is what decoding writes behind its prompt.

        None if the template writes something else than the start of thinking in front of it.
        """
        *earlier, last = self.rendered
        prompt = self._prompt(earlier, thinks=True).removesuffix(self.start)
        marker = _MARKER.format(0)
        answered = self._render([*earlier, last | {"content": marker}], thinks=True)
        before, _, tail = answered.partition(marker)
        thinking, close, answer = last["content"].removeprefix("<think>").partition(CLOSE)
        if before != prompt or not close:
            return None
        return prompt + with_thinking(self.preset, thinking, answer.strip(), self.start) + tail

    def _turn(self, text: str, i: int) -> Turn | None:
        """Where a turn is in the training text, if it begins there as decoding begins it."""
        prompt, end = self._prompt_in(text, i), self._end(text, i)
        if prompt is None or end is None or len(prompt) >= end:
            return None
        begin = len(prompt)
        if _not_in_order(text[:end], _parts(i, self.rendered[i]), begin):
            return None
        start = (begin, begin)
        if has_thinking(self.messages[i]):
            first = len(prompt.removesuffix(self.start))
            start = (first, first + len(self.start))
        return Turn(begin, end, start)

    def _prompt_in(self, text: str, i: int) -> str | None:
        """The prompt of a turn, if the training text begins with it and the start of thinking."""
        thinks = has_thinking(self.messages[i])
        for switch in (True,) if thinks else (False, True):
            try:
                prompt = self._prompt(self.rendered[:i], thinks=switch)
            except UserError:  # an assistant's greeting, which no prompt comes before
                return None
            started = prompt.removesuffix(self.start) + self.start if thinks else prompt
            if text.startswith(prompt) and text.startswith(started):
                return prompt
        return None

    def _end(self, text: str, i: int) -> int | None:
        """The end of a turn; its tail is what the template writes behind it as the last turn."""
        alone = self._render(self.rendered[: i + 1], thinks=self.thinks)
        if text.startswith(alone):
            return len(alone)
        marker = _MARKER.format(0)
        changed = [*self.rendered]
        changed[i] = self.rendered[i] | {"content": marker}
        alone, complete = (
            self._render(messages, thinks=self.thinks) for messages in (changed[: i + 1], changed)
        )
        _, found, rest = complete.partition(marker)
        if not found or marker not in alone or not text.endswith(rest):
            return None
        tail = _common_beginning(alone.partition(marker)[2], rest)
        tail = re.sub("<[^<>]*$", "", tail)  # not the first part of a special token
        return len(text) - len(rest) + len(tail)

    def _vanishes(self, part: Part) -> UserError:
        message, name = self.messages[part.message], f"messages[{part.message}].{part.field}"
        if part.is_thinking:
            what = "the thinking" + ("" if part.message == len(self.messages) - 1 else " here")
            return UserError(
                f"{name}: the chat template leaves out {what} ({part.text!r:.40}); remove it, or "
                "use a tokenizer whose template writes it"
            )
        return UserError(
            f"{name}: the chat template does not write it for the role {message['role']!r:.40} "
            f"({part.text!r:.40}); change it, or use a tokenizer whose template writes it"
        )

    def _contradiction(self, i: int) -> UserError:
        thinks = has_thinking(self.messages[i])
        prompt = self._prompt(self.rendered[:i], thinks=thinks)
        begins = prompt.removesuffix(self.start) + self.start if thinks else prompt
        return UserError(
            f"messages[{i}]: the chat template does not begin this turn as decoding does, with "
            f"{begins[-40:]!r}; give its thinking in reasoning_content, or use a tokenizer with "
            "another template"
        )


def has_thinking(message: Message) -> bool:
    """Whether an assistant's message has thinking, in a field or in its content."""
    before, tag, _ = message["content"].partition("</think>")
    in_content = bool(tag and before.replace("<think>", "").strip())
    return message["role"] == "assistant" and (
        "reasoning_content" in message or in_content or message["content"].startswith(THINK)
    )


def _parts(i: int, message: Message) -> list[Part]:
    """The texts of a message in the order in which templates write them."""
    fields = [field for field in THINKING_FIELDS if field in message]
    parts = [Part(i, field, True, message[field].strip()) for field in fields]
    pieces = _pieces(message)
    for number, piece in enumerate(pieces):
        is_thinking = pieces[number + 1 : number + 2] == ["</think>"]
        if piece.strip() and not _TAGS.fullmatch(piece):
            parts.append(Part(i, "content", is_thinking, piece.strip()))
    return parts


def _pieces(message: Message) -> list[str]:
    """The content, split at the tags of an assistant's thinking."""
    is_assistant = message["role"] == "assistant"
    return _TAGS.split(message["content"]) if is_assistant else [message["content"]]


def _marked(messages: Sequence[Message]) -> tuple[list[Message], list[Part]]:
    """The messages with a marker in place of every part, and the parts."""
    marked: list[Message] = []
    parts: list[Part] = []
    for i, message in enumerate(messages):
        own = _parts(i, message)
        markers = iter([_MARKER.format(len(parts) + number) for number in range(len(own))])
        fields = {part.field: next(markers) for part in own if part.field != "content"}
        pieces = [
            piece.replace(piece.strip(), next(markers), 1)
            if piece.strip() and not _TAGS.fullmatch(piece)
            else piece
            for piece in _pieces(message)
        ]
        marked.append(message | fields | {"content": "".join(pieces)})
        parts += own
    return marked, parts


def _not_in_order(text: str, parts: Iterable[Part], position: int = 0) -> list[Part]:
    """Parts that do not occur in a text behind the one before."""
    missing = []
    position = max(0, position)
    for part in parts:
        found = text.find(part.text, position)
        if found < 0:
            missing.append(part)
        else:
            position = found + len(part.text)
    return missing


def _common_beginning(a: str, b: str) -> str:
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False))
    return "".join(char for char, _ in same)


def _check_written(name: str, value: Any, text: str, without: str) -> None:
    """Check that a field changes the text, and that everything in it occurs there."""
    lost = [name] if text == without else []
    lost += [leaf.place for leaf in leaves(value, name) if not _is_written(leaf, text)]
    if lost:
        raise UserError(
            f"{lost[0]}: the chat template does not write it; remove it, or use a tokenizer whose "
            "template does"
        )


def _is_written(leaf: Leaf, text: str) -> bool:
    """Whether a value is in the text, as it is or in JSON; format keys and types need not be."""
    is_own = re.search("[.](arguments|properties)$", leaf.place) is not None
    if (leaf.is_key and not is_own) or leaf.place.endswith(".type"):
        return True
    if isinstance(leaf.value, str):
        quoted = [json.dumps(leaf.value, ensure_ascii=ascii)[1:-1] for ascii in (False, True)]
        return any(spelling in text for spelling in (leaf.value.strip(), *quoted))
    return json.dumps(leaf.value) in text or str(leaf.value) in text
