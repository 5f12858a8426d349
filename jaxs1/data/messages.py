"""Messages as users give them, in one form: every field is known and of its type, or refused."""

from __future__ import annotations

import json
from typing import Any

from jaxs1.config import UserError
from jaxs1.data.template import THINKING_FIELDS, Message
from jaxs1.data.text import check_text

#: Fields that decide whether an assistant's turn is learnt; the template does not get them.
LEARN_FIELDS = ("weight", "train")
FIELDS = ("role", "content", *THINKING_FIELDS, "tool_calls", "name", "tool_call_id", *LEARN_FIELDS)
_TEXTS = ("name", "tool_call_id")


def clean_messages(messages: Any, *, prompt: bool = False) -> tuple[Message, ...]:
    """Messages in one form: role, content, and of the others the fields that hold something.

    Text parts of a content are joined. Thinking is in `reasoning_content`, under whatever name it
    came; `train` says whether an assistant's turn is learnt. A call's arguments in JSON are
    parsed, since templates write them as JSON themselves.

    Args:
        messages: a list of messages
        prompt: they are a prompt, which cannot be learnt from

    Raises:
        UserError: a message that is none, a field that is unknown, of the wrong type, or missing.
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise UserError("messages: must be a list of {role, content}, with at least one")
    return tuple(_clean(m, f"messages[{i}]", prompt) for i, m in enumerate(messages))


def clean_tools(tools: Any) -> list[Any] | None:
    """Descriptions of tools as a list; None if there are none.

    Raises:
        UserError: they are neither a list nor one in JSON.
    """
    if isinstance(tools, str):
        tools = _parsed(tools, tools)
    if tools is None or tools == []:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise UserError("tools: must be a list of objects that describe functions; change it")
    check_text(tools, "tools")
    return tools


def _clean(message: Any, name: str, prompt: bool) -> Message:
    if not isinstance(message, dict):
        raise UserError(f"{name}: must have role and content")
    given = {k: v for k, v in message.items() if v is not None and v != [] and v != ""}
    given |= {"content": message["content"]} if "content" in message else {}
    if unknown := [k for k in given if k not in FIELDS]:
        raise UserError(
            f"{name}.{unknown[0]}: unknown field; remove it, known are {', '.join(FIELDS)}"
        )
    if "role" not in given or not ("content" in given or "tool_calls" in given):
        raise UserError(f"{name}: must have role and content")
    check_text(given, name)
    clean: Message = {"role": _text(given["role"], f"{name}.role")}
    clean["content"] = _content(given, name)
    clean |= {k: _text(given[k], f"{name}.{k}") for k in _TEXTS if k in given}
    clean |= _thinking(given, name)
    if "tool_calls" in given:
        clean["tool_calls"] = _calls(given["tool_calls"], f"{name}.tool_calls")
    return clean | _train(given, name, prompt)


def _content(message: Message, name: str) -> str:
    content = message.get("content")
    if content is None and "tool_calls" in message:
        return ""  # as OpenAI's format has it
    if not isinstance(content, list | tuple):
        return _text(content, f"{name}.content")
    texts = []
    for i, part in enumerate(content):
        where = f"{name}.content[{i}]"
        if isinstance(part, dict):
            others = [k for k, v in part.items() if k not in ("type", "text") and v is not None]
            if part.get("type", "text") != "text" or others:
                kind = others[0] if others else part["type"]
                raise UserError(f"{where}: is of type {kind!r:.40}; only text can be used")
            part = part.get("text")
        texts.append(_text(part, where))
    return "".join(texts)


def _thinking(message: Message, name: str) -> Message:
    given = [field for field in THINKING_FIELDS if field in message]
    if not given:
        return {}
    if message["role"] != "assistant":
        raise UserError(f"{name}.{given[0]}: only an assistant's message can have it; remove it")
    texts = {_text(message[field], f"{name}.{field}") for field in given}
    if len(texts) > 1:
        raise UserError(f"{name}: {' and '.join(given)} differ; keep one of them")
    (text,) = texts
    return {"reasoning_content": text} if text.strip() else {}


def _calls(calls: Any, name: str) -> list[Any]:
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise UserError(f"{name}: must be a list of objects that call functions; change it")
    parsed = []
    for call in calls:
        function = call.get("function", call)
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise UserError(f"{name}: must name a function in each call; change it")
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            function = function | {"arguments": _parsed(arguments, arguments)}
        parsed.append(call | {"function": function} if "function" in call else function)
    check_text(parsed, name)
    return parsed


def _train(message: Message, name: str, prompt: bool) -> Message:
    given = [field for field in LEARN_FIELDS if field in message]
    if not given:
        return {}
    if prompt:
        raise UserError(f"{name}.{given[0]}: has no meaning in a prompt; remove it")
    for field in given:
        if message[field] not in (0, 1) or isinstance(message[field], str):
            raise UserError(
                f"{name}.{field}={message[field]!r:.40}: must be 0 or 1; a turn is learnt or not"
            )
    learnt = {bool(message[field]) for field in given}
    if len(learnt) > 1:
        raise UserError(f"{name}: {' and '.join(given)} contradict each other; keep one of them")
    if True in learnt and message["role"] != "assistant":
        raise UserError(f"{name}.{given[0]}: only an assistant's turn can be learnt; set it to 0")
    return {"train": learnt.pop()}


def _parsed(text: str, otherwise: Any) -> Any:
    """JSON as a value, if it is an object or a list."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return otherwise
    return value if isinstance(value, dict | list) else otherwise


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        kind = "null" if value is None else f"a {type(value).__name__}"
        raise UserError(f"{name}: must be a string, is {kind}")
    return value
