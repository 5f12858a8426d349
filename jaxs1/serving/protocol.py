"""Bodies of requests: JSON to checked objects, and what is unknown or not supported.

A field is honoured, refused, or listed as ignored (`ignored`); settings of thinking are the
business of `thinking_fields`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jaxs1.decoding.params import MAX_BIASES
from jaxs1.serving import thinking_fields
from jaxs1.serving.errors import ApiError, bad_request
from jaxs1.serving.logprobs import MAX_ALTERNATIVES

#: Maximum depth of a body.
MAX_DEPTH = 64
MAX_MESSAGES, MAX_N, MAX_STOPS, MAX_PROMPTS, MAX_TOOLS = 4096, 16, 16, 64, 128
#: Fields of other servers that change nothing here.
HARMLESS = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")

Text = Annotated[str, Field(min_length=1, max_length=256)]
Count = Annotated[int, Field(ge=1, lt=2**31)]
Probability = Annotated[float, Field(ge=0, le=1)]
TokenId = Annotated[str, Field(pattern=r"^\d{1,9}$")]
Alternatives = Annotated[int, Field(ge=0, le=MAX_ALTERNATIVES)]
Bias = Annotated[float, Field(ge=-100, le=100)]


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class StreamOptions(_Body):
    """Options of a stream."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class Sampled(_Body):
    """What chat completions and completions have in common."""

    model: str | None = None
    max_tokens: Count | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Probability | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: Annotated[dict[TokenId, Bias], Field(max_length=MAX_BIASES)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_N)] | None = None
    stop: Text | Annotated[list[Text], Field(max_length=MAX_STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    request_id: Annotated[str, Field(pattern=r"^[\w.-]{1,64}$")] | None = None
    cache_salt: Annotated[str, Field(max_length=256)] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end the answer."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class ChatBody(Sampled):
    """Body of a chat completion."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Alternatives | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None


class CompletionBody(Sampled):
    """Body of a completion."""

    logprobs: Alternatives | None = None
    echo: bool | None = None

    prompt: (
        str
        | Annotated[list[int], Field(min_length=1)]
        | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]
        | Annotated[list[list[int]], Field(min_length=1, max_length=MAX_PROMPTS)]
    )


class TokenizeBody(_Body):
    """Body of /tokenize."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[dict[str, Any]], Field(max_length=MAX_MESSAGES)] | None = None
    add_special_tokens: bool = True


class DetokenizeBody(_Body):
    """Body of /detokenize."""

    model: str | None = None
    tokens: list[Annotated[int, Field(ge=0, lt=2**31)]]


class ControlBody(_Body):
    """Body of the control of a running request."""

    id: str
    action: str


#: Field -> values that mean nothing; any other value is refused, since it would not be honoured.
NOT_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "logprobs": (False, 0),
    "top_logprobs": (0,),
    "prompt_logprobs": (),
    "stop_token_ids": ([],),
    "echo": (False,),
    "best_of": (1,),
    "suffix": ("",),
    "use_beam_search": (False,),
    "response_format": ({"type": "text"},),
    "functions": ([],),
    "function_call": ("none",),
    "chat_template": (),
}
#: What to do instead, where that is not to leave the field out.
REMEDIES = {
    "response_format": (
        "describe the JSON in a message, or as a tool that tool_choice names, and check the reply"
    ),
}

Body = TypeVar("Body", bound=BaseModel)


def parse_json(data: bytes) -> dict[str, Any]:
    """The JSON object of a body.

    Raises:
        ApiError: not JSON, no object, nested too deeply, NaN, or half of a surrogate pair
    """
    try:
        value = json.loads(data, parse_constant=_no_constant)
        json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise bad_request(f"body: is nested too deeply; at most {MAX_DEPTH} levels") from None
    except ValueError as error:  # JSONDecodeError, UnicodeError, integers of thousands of digits
        raise bad_request(f"body: is not valid JSON ({str(error)[:100]})") from None
    if not isinstance(value, dict):
        raise bad_request("body: must be a JSON object")
    if _depth(value) > MAX_DEPTH:
        raise bad_request(f"body: is nested too deeply; at most {MAX_DEPTH} levels")
    return value


def check(schema: type[Body], body: Mapping[str, Any]) -> Body:
    """A body as an object.

    Raises:
        ApiError: the first field that is wrong
    """
    for name, neutral in NOT_SUPPORTED.items():
        if (
            body.get(name) is not None
            and body[name] not in neutral
            and name not in (schema.model_fields)
        ):
            remedy = REMEDIES.get(name, "remove it")
            raise bad_request(f"{name}: is not supported; {remedy}", param=name)
    try:
        return schema.model_validate(dict(body))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        path = ".".join(str(part) for part in first["loc"] if _is_field(part))
        value = "" if first["type"] == "missing" else f"={str(first['input'])[:60]!r}"
        raise bad_request(f"{path}{value}: {first['msg']}", param=path or None) from None


def ignored(schema: type[BaseModel], body: Mapping[str, Any]) -> list[str]:
    """Fields that have no effect; dots separate an object's fields."""
    paths = set(thinking_fields.KNOWN)
    groups = {path.partition(".")[0] for path in paths}
    known = {*schema.model_fields, *groups, *NOT_SUPPORTED, *HARMLESS}
    nested = [
        f"{name}.{field}"
        for name, value in body.items()
        if name in groups and isinstance(value, Mapping)
        for field in value
    ]
    return [name for name in body if name not in known] + [p for p in nested if p not in paths]


def check_model(name: str | None, names: tuple[str, ...]) -> str:
    """The name of the model in the reply; none is the default.

    Raises:
        ApiError: there is no such model
    """
    if name is not None and name not in names:
        raise ApiError(
            404,
            f"model={name[:100]!r}: does not exist here; use {names[0]}",
            "model_not_found",
            param="model",
        )
    return name or names[0]


def _is_field(part: int | str) -> bool:
    """Whether a part of pydantic's path is a field's name or an index, not a type's name."""
    return isinstance(part, int) or (part.isidentifier() and part not in ("str", "int"))


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        inner = [x.values() if isinstance(x, dict) else x for x in level
                 if isinstance(x, dict | list)]  # fmt: skip
        level = [x for group in inner for x in group]
    return depth
