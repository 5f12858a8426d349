"""All spellings of a thinking setting, and what they mean: one table.

Servers and clients have a dozen names for the same number. Each of them is honoured here, and a
name that looks like one but is none is refused: a budget is never ignored.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jaxs1.config import UserError
from jaxs1.decoding.params import ThinkingParams
from jaxs1.serving.config import ServeConfig
from jaxs1.serving.errors import bad_request, from_user_error

#: Setting -> its spellings in a request's body. Dots separate an object's fields.
SPELLINGS = {
    "budget": (
        "thinking.budget_tokens",  # Anthropic
        "thinking_token_budget",  # vLLM, TensorRT-LLM
        "thinking_budget",  # DashScope, SiliconFlow
        "thinking_budget_tokens",  # llama.cpp
        "reasoning_budget",
        "reasoning_budget_tokens",
        "reasoning.max_tokens",  # OpenRouter
        "chat_template_kwargs.thinking_budget",
        "chat_template_kwargs.thinking_token_budget",
        "custom_params.thinking_budget",  # SGLang
        "nvext.max_thinking_tokens",  # NIM
    ),
    "effort": ("reasoning_effort", "reasoning.effort", "think"),
    "enabled": (
        "thinking.type",
        "enable_thinking",
        "chat_template_kwargs.enable_thinking",
        "chat_template_kwargs.thinking",
        "reasoning.enabled",
        "think",
    ),
    "min": ("thinking.min_tokens",),
    "num_waits": ("thinking.num_waits",),
    "wait_strings": ("thinking.wait_strings",),
    "answer_prefix": ("thinking.answer_prefix", "thinking.cue"),
    "min_answer_tokens": ("thinking.min_answer_tokens",),
    "max_answer_tokens": ("thinking.max_answer_tokens",),
    "mode": ("thinking.mode",),
    "answer_temperature": ("thinking.answer_temperature",),
    "include": ("include_reasoning", "reasoning.exclude"),
    "separate": ("separate_reasoning",),
    "details": ("thinking.details",),
}
KNOWN = tuple(dict.fromkeys(path for paths in SPELLINGS.values() for path in paths))
#: Objects whose unknown fields are refused if their names contain one of `WORDS`.
OBJECTS = ("thinking", "reasoning", "chat_template_kwargs", "custom_params", "nvext")
WORDS = ("think", "reason", "budget")
TYPES = {"enabled": True, "disabled": False, "adaptive": True}
MODES = ("strict", "s1_readme", "s1_harness", "off")
#: Maximum number and length of wait strings, and length of an answer prefix [characters].
MAX_TEXTS, MAX_TEXT = 16, 256


@dataclass(frozen=True)
class ThinkingRequest:
    """What a request says about its thinking.

    Args:
        params: thinking parameters
        answer_temperature: temperature of the answer; None: that of the thinking
        include: whether the reply has the thinking
        separate: whether the thinking has fields of its own; otherwise it is part of the content
        details: whether the reply has token ids, and the texts that end the thinking
        note: remark about a budget that was clamped
        explicit: whether the request has a budget of its own
    """

    params: ThinkingParams
    answer_temperature: float | None = None
    include: bool = True
    separate: bool = True
    details: bool = False
    note: str | None = None
    explicit: bool = False


def read(body: Mapping[str, Any], config: ServeConfig) -> ThinkingRequest:
    """The thinking settings of a request.

    Args:
        body: JSON object of the request
        config: defaults, ceiling and efforts of the server

    Raises:
        ApiError: an unknown spelling, a wrong type, or two spellings that disagree
    """
    _refuse_unknown(body)
    given = {name: _value(name, body, config) for name in SPELLINGS}
    changes = {
        name: given[name]
        for name in ("min", "num_waits", "wait_strings", "answer_prefix", "mode",
                     "min_answer_tokens", "max_answer_tokens")
        if given[name] is not None
    }  # fmt: skip
    budget, note = _budget(given, config)
    if budget is None:
        changes["mode"] = "off"
    else:
        changes["max"] = budget
        if "min" not in changes and 0 <= budget < config.thinking.min:
            changes["min"] = budget
    try:
        params = dataclasses.replace(config.thinking, **changes)
    except UserError as error:
        raise from_user_error(error, 0, 0) from None
    return ThinkingRequest(
        params,
        given["answer_temperature"],
        include=given["include"] is not False,
        separate=given["separate"] is not False,
        details=given["details"] is True,
        note=note,
        explicit=given["budget"] is not None or given["effort"] is not None,
    )


def _budget(given: Mapping[str, Any], config: ServeConfig) -> tuple[int | None, str | None]:
    """The budget in tokens, None for no thinking at all; and a remark if it was clamped."""
    budget, effort, enabled = given["budget"], given["effort"], given["enabled"]
    if enabled is False and budget:
        raise bad_request(
            f"{_spelled('budget', budget)}: thinking is disabled by the same request; remove one"
        )
    if budget is None and (enabled is False or effort == "none" or given["mode"] == "off"):
        return None, None
    if budget is None:
        default = config.thinking.max
        assert isinstance(default, int)  # `ServeConfig` refuses auto
        budget = default if effort is None else config.efforts[effort]
        if effort is None and config.thinking.mode == "off" and enabled is None:
            return None, None
    ceiling = config.ceiling
    if ceiling is not None and not 0 <= budget <= ceiling:
        note = f"thinking budget {budget}: clamped to the server's ceiling of {ceiling}"
        return ceiling, note if given["budget"] is not None or effort else None
    return budget, None


def _value(name: str, body: Mapping[str, Any], config: ServeConfig) -> Any:
    """The one value that all spellings of a setting agree on; None if there is none."""
    found: dict[str, Any] = {}
    for path in SPELLINGS[name]:
        if (raw := _get(body, path)) is None or (path == "think" and not _is_for(name, raw)):
            continue
        found[path] = _checked(name, path, raw, config)
    if not found:
        return None
    (first, value), *others = found.items()
    for path, other in others:
        if other != value:
            raise bad_request(
                f"{first}={_get(body, first)!r} and {path}={_get(body, path)!r}: disagree; "
                "give one of them",
                param=path,
            )
    return value


def _is_for(name: str, raw: Any) -> bool:
    """Whether a value of Ollama's `think`, a switch or an effort, is meant for this setting."""
    return isinstance(raw, bool) == (name == "enabled")


def _checked(name: str, path: str, raw: Any, config: ServeConfig) -> Any:
    """A value in the type of its setting."""
    value = _READERS[name](raw, path, config)
    if value is None:
        wanted = _WANTED[name].format(efforts=", ".join(("none", *config.efforts)))
        raise bad_request(f"{path}={str(raw)[:80]!r}: must be {wanted}", param=path)
    return value


def _integer(minimum: int) -> Any:
    def read_it(raw: Any, path: str, config: ServeConfig) -> int | None:
        is_integer = isinstance(raw, int) and not isinstance(raw, bool)
        return raw if is_integer and minimum <= raw < 2**31 else None

    return read_it


def _switch(raw: Any, path: str, config: ServeConfig) -> bool | None:
    if path == "thinking.type":
        return TYPES.get(raw) if isinstance(raw, str) else None
    if not isinstance(raw, bool):
        return None
    return not raw if path == "reasoning.exclude" else raw


def _effort(raw: Any, path: str, config: ServeConfig) -> str | None:
    return raw if isinstance(raw, str) and raw in ("none", *config.efforts) else None


def _text(raw: Any, path: str, config: ServeConfig) -> str | None:
    return raw if isinstance(raw, str) and len(raw) <= MAX_TEXT else None


def _texts(raw: Any, path: str, config: ServeConfig) -> tuple[str, ...] | None:
    is_list = isinstance(raw, list) and 0 < len(raw) <= MAX_TEXTS
    fits = is_list and all(isinstance(t, str) and 0 < len(t) <= MAX_TEXT for t in raw)
    return tuple(raw) if fits else None


def _mode(raw: Any, path: str, config: ServeConfig) -> str | None:
    return raw if raw in MODES else None


def _temperature(raw: Any, path: str, config: ServeConfig) -> float | None:
    is_number = isinstance(raw, int | float) and not isinstance(raw, bool)
    return float(raw) if is_number and 0 <= raw <= 100 else None


_READERS: dict[str, Any] = {
    "budget": _integer(-1),
    "effort": _effort,
    "enabled": _switch,
    "min": _integer(0),
    "num_waits": _integer(0),
    "wait_strings": _texts,
    "answer_prefix": _text,
    "min_answer_tokens": _integer(1),
    "max_answer_tokens": _integer(-1),
    "mode": _mode,
    "answer_temperature": _temperature,
    "include": _switch,
    "separate": _switch,
    "details": _switch,
}
_WANTED = {
    "budget": "a number of tokens (an integer), or -1 (no limit)",
    "effort": "one of {efforts}",
    "enabled": "true or false; in thinking.type: enabled, disabled or adaptive",
    "min": "a number of tokens, 0 or more",
    "num_waits": "a number, 0 or more",
    "wait_strings": f"a list of 1 to {MAX_TEXTS} texts of at most {MAX_TEXT} characters",
    "answer_prefix": f"a text of at most {MAX_TEXT} characters",
    "min_answer_tokens": "a number of tokens, 1 or more",
    "max_answer_tokens": "a number of tokens, 1 or more, or -1 (no limit)",
    "mode": f"one of {', '.join(MODES)}",
    "answer_temperature": "a number, 0 or more",
    "include": "true or false",
    "separate": "true or false",
    "details": "true or false",
}


def _refuse_unknown(body: Mapping[str, Any]) -> None:
    """Refuse fields that look like a thinking setting and are none."""
    for name in OBJECTS:
        if not isinstance(body.get(name, {}), Mapping | None):
            raise bad_request(f"{name}: must be an object of fields", param=name)
    for path in _paths(body):
        if path not in KNOWN and any(word in path.lower() for word in WORDS):
            near = difflib.get_close_matches(path, KNOWN, n=1, cutoff=0.0)
            raise bad_request(f"{path}: no such field; did you mean {near[0]}?", param=path)


def _paths(body: Mapping[str, Any]) -> Iterator[str]:
    """Names of all fields, except for the objects themselves and for messages."""
    for name, value in body.items():
        if name in OBJECTS:
            yield from (f"{name}.{field}" for field in value or ())
        else:
            yield name


def _get(body: Mapping[str, Any], path: str) -> Any:
    group, dot, name = path.partition(".")
    inner = (body.get(group) or {}) if dot else body
    return inner.get(name or group)


def _spelled(name: str, value: Any) -> str:
    return f"{SPELLINGS[name][0]}={value}"
