"""Which tools an answer may call, and which one it must: `tools`, `tool_choice`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxs1.serving.errors import bad_request
from jaxs1.serving.tool_calls import OPEN

#: Beginning of a call; a model trained on this format writes the rest.
NAME_FOLLOWS = f'{OPEN}\n{{"name": "'
CHOICES = "must be none, auto, required or a function by its name"


@dataclass(frozen=True)
class ToolChoice:
    """The tools of a request.

    Args:
        descriptions: what the chat template is given
        required: whether the answer begins with a call
        name: tool that this call must name; None: the model's choice
        parallel: whether an answer may have more than one call
    """

    descriptions: Sequence[dict[str, Any]] = ()
    required: bool = False
    name: str | None = None
    parallel: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tools."""
        return tuple(tool["function"]["name"] for tool in self.descriptions)

    @property
    def answer_start(self) -> str:
        """The text with which the controller begins the answer."""
        if not self.required:
            return ""
        if self.name is None:
            return NAME_FOLLOWS
        # without a blank at the end, which is a part of the next token
        return f'{OPEN}\n{{"name": {json.dumps(self.name)}, "arguments":'

    def call_token(self, tokenizer: Any) -> str:
        """The text that ends a thought because a call begins; empty where it is no single token.

        Of several tokens, all but the last one would already be part of the thought.
        """
        is_token = len(tokenizer(OPEN, add_special_tokens=False)["input_ids"]) == 1
        return OPEN if self.descriptions and is_token else ""


NO_TOOLS = ToolChoice()


def read_tools(tools: Sequence[dict[str, Any]] | None, choice: Any, parallel: Any) -> ToolChoice:
    """The tools of a request.

    Args:
        tools: descriptions of functions
        choice: `tool_choice` of the request
        parallel: `parallel_tool_calls` of the request

    Raises:
        ApiError: a tool has no name, or the choice is none of the known ones
    """
    for i, tool in enumerate(tools or ()):
        function = tool.get("function")
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise bad_request(f"tools.{i}: must describe a function that has a name", f"tools.{i}")
    is_parallel = parallel is not False
    if choice == "none":
        return NO_TOOLS
    plain = ToolChoice(tools or (), parallel=is_parallel)
    if choice in (None, "auto"):
        return plain
    if choice != "required":
        return ToolChoice(plain.descriptions, True, _named(choice, plain.names), parallel=False)
    if not plain.names:
        raise bad_request("tool_choice=required: there are no tools; give some", "tool_choice")
    name = plain.names[0] if len(plain.names) == 1 else None
    return ToolChoice(plain.descriptions, True, name, is_parallel)


def _named(choice: Any, names: Sequence[str]) -> str:
    """The name of the tool that must be called."""
    is_function = isinstance(choice, dict) and choice.get("type") == "function"
    function = choice.get("function") if is_function else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise bad_request(f"tool_choice={str(choice)[:80]!r}: {CHOICES}", "tool_choice")
    if name not in names:
        known = ", ".join(names[:8]) or "none"
        raise bad_request(f"tool_choice={name[:80]!r}: no such tool among {known}", "tool_choice")
    return name
