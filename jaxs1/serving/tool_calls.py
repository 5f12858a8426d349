"""Calls of tools in an answer, in the format of Hermes and Qwen.

<tool_call>
{"name": "add", "arguments": {"a": 1}}
</tool_call>
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from jaxs1.serving.answer_text import ChannelText

OPEN, CLOSE = "<tool_call>", "</tool_call>"


class ToolCall(NamedTuple):
    """A call.

    Args:
        id: name of the call, to which its result refers
        name: name of the tool
        arguments: JSON
    """

    id: str
    name: str
    arguments: str

    def as_json(self, index: int) -> dict[str, Any]:
        """The call in OpenAI's shape."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"index": index, "id": self.id, "type": "function", "function": function}


class ToolCalls:
    """Splits an answer into text and calls. A call that is no JSON, or of no tool, stays text.

    Args:
        names: names of the tools
        forced: name of the only tool that is called: the first call is one, JSON or not, since the
            controller has begun it
    """

    def __init__(self, names: Sequence[str], forced: str | None = None):
        self._names, self._forced = names, forced
        self._text = ChannelText([OPEN])
        self._call: str | None = None  # what follows the opening tag

    def add(self, text: str) -> Iterator[str | ToolCall]:
        """Append text; yields what is complete."""
        while True:
            if self._call is None:
                if before := self._text.add(text):
                    yield before
                if self._text.stopped_by is None:
                    return
                text, self._call = self._text.rest, ""
            self._call += text
            inside, found, text = self._call.partition(CLOSE)
            if not found:
                return
            yield self._parsed(inside)
            self._begin()

    def flush(self) -> Iterator[str | ToolCall]:
        """What is left at the end of the answer; a call may lack its closing tag."""
        if self._call is None:
            rest: str | ToolCall = self._text.flush()
        else:
            rest = self._parsed(self._call, close="")
        self._begin()
        if rest:
            yield rest

    def _begin(self) -> None:
        self._text, self._call = ChannelText([OPEN]), None

    def _parsed(self, text: str, close: str = CLOSE) -> str | ToolCall:
        try:
            call = json.loads(text)
        except (ValueError, RecursionError):
            call = None
        if not isinstance(call, dict) or call.get("name") not in self._names:
            if self._forced is None:
                return f"{OPEN}{text}{close}"
            rest = text.partition('"arguments":')[2].strip()
            call = {"name": self._forced, "arguments": rest}
        arguments = call.get("arguments", {})
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        return ToolCall(f"call_{uuid.uuid4().hex[:24]}", call["name"], arguments)
