"""From a checked body to requests of the engine. Slow parts (templates, tokenizing): a thread's."""

from __future__ import annotations

import dataclasses
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxs1.config import UserError
from jaxs1.data.template import THINKING_FIELDS
from jaxs1.decoding.base_engine import BaseEngine
from jaxs1.decoding.controls import SequenceLimits
from jaxs1.decoding.params import (
    Request,
    SamplingParams,
    ThinkingParams,
    delimiters_of,
    resolve_preset,
)
from jaxs1.decoding.prompt import prompt_ids
from jaxs1.serving import thinking_fields
from jaxs1.serving.config import ServeConfig
from jaxs1.serving.errors import ApiError, bad_request, from_user_error
from jaxs1.serving.protocol import (
    ChatBody,
    CompletionBody,
    Sampled,
    TokenizeBody,
    check,
    check_model,
    ignored,
)
from jaxs1.serving.thinking_fields import ThinkingRequest
from jaxs1.serving.tool_choice import NO_TOOLS, ToolChoice, read_tools

#: Maximum length of a prompt per token of the context [characters]; longer ones are not encoded.
CHARACTERS_PER_TOKEN = 16
#: Role of a message -> role in the chat template.
ROLES = {
    "system": "system", "developer": "system", "user": "user", "assistant": "assistant",
    "tool": "tool",
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """A request as the engine and the reply need it.

    Args:
        kind: chat or completion
        model: name of the model in the reply
        requests: one per prompt
        limits: limits of the sequences of each request
        thinking: thinking settings
        stops: texts that end the answer
        skipped: ids that are dropped where an answer begins with them
        stream: whether the reply is a stream of events
        include_usage: whether the stream ends with its usage
        continuous_usage: whether each event has the usage so far
        request_id: name of the request that the client chose
        ignored: fields of the body that have no effect
        tools: tools that an answer may call
        logprobs: number of alternatives to each token in the reply's log-probabilities; None: none
        echo: texts of the prompts, which the reply begins with; None: it does not
    """

    kind: str
    model: str
    requests: list[Request]
    limits: list[SequenceLimits]
    thinking: ThinkingRequest
    stops: tuple[str, ...]
    skipped: tuple[int, ...]
    stream: bool
    include_usage: bool
    continuous_usage: bool
    request_id: str | None
    ignored: list[str]
    tools: ToolChoice = NO_TOOLS
    logprobs: int | None = None
    echo: tuple[str, ...] | None = None

    @property
    def sequences(self) -> int:
        """Number of sequences."""
        return sum(request.n for request in self.requests)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts, starts of thinking included."""
        return sum(limits.prompt_length for limits in self.limits)

    @property
    def note(self) -> str | None:
        """Remark about a setting that could not be honoured as requested."""
        own = self.limits[0].note if self.thinking.explicit else None
        return self.thinking.note or own


def chat_job(raw: Mapping[str, Any], config: ServeConfig, engine: BaseEngine) -> Job:
    """A chat completion.

    Raises:
        ApiError: what the client has to change
    """
    body = check(ChatBody, raw)
    tools = read_tools(body.tools, body.tool_choice, body.parallel_tool_calls)
    thinking = thinking_fields.read(raw, config)
    ids = _rendered(body.messages, thinking, engine, tools.descriptions)
    limit = _same("max_tokens", body.max_tokens, "max_completion_tokens",
                  body.max_completion_tokens)  # fmt: skip
    if body.top_logprobs and not body.logprobs:
        raise bad_request("top_logprobs: needs logprobs=true; set it", "top_logprobs")
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    return _job("chat", body, raw, [ids], limit, thinking, config, engine, tools, logprobs)


def completion_job(raw: Mapping[str, Any], config: ServeConfig, engine: BaseEngine) -> Job:
    """A completion of raw prompts; without thinking, unless the body has settings of it.

    Raises:
        ApiError: what the client has to change
    """
    body = check(CompletionBody, raw)
    thinking = thinking_fields.read(raw, config)
    if not thinking.explicit and not _switches_on(raw):
        params = dataclasses.replace(thinking.params, mode="off")
        thinking = dataclasses.replace(thinking, params=params)
    prompts = _prompts(body.prompt)
    _check_length(sum(map(len, prompts)), engine.context * len(prompts))
    ids = [
        engine.tokenizer(p, add_special_tokens=False)["input_ids"] if isinstance(p, str) else p
        for p in prompts
    ]
    job = _job("completion", body, raw, ids, body.max_tokens, thinking, config, engine,
               logprobs=body.logprobs, prompt_scores=bool(body.echo))  # fmt: skip
    if not body.echo:
        return job
    if job.stream or (job.stops and body.logprobs is not None):
        raise bad_request("echo: cannot be combined with stream, or logprobs with stop", "echo")
    texts = [p if isinstance(p, str) else engine.tokenizer.decode(p) for p in prompts]
    return dataclasses.replace(job, echo=tuple(texts))


def sampling_of(
    body: Sampled, default: SamplingParams, thinking: ThinkingRequest
) -> SamplingParams:
    """Sampling parameters: the body's, else the server's."""
    names = (
        *("temperature", "top_p", "top_k", "min_p"),
        *("repetition_penalty", "presence_penalty", "frequency_penalty", "min_tokens"),
    )
    changes = {name: getattr(body, name) for name in names if getattr(body, name) is not None}
    if body.logit_bias is not None:
        changes["logit_bias"] = {int(token): bias for token, bias in body.logit_bias.items()}
    if changes.get("top_k") == -1:
        changes["top_k"] = 0
    if thinking.answer_temperature is not None:
        changes["answer_temperature"] = thinking.answer_temperature
    elif "temperature" in changes:
        changes["answer_temperature"] = None
    return dataclasses.replace(default, **changes)


def _job(
    kind: str,
    body: Sampled,
    raw: Mapping[str, Any],
    prompts: list[list[int]],
    max_tokens: int | None,
    thinking: ThinkingRequest,
    config: ServeConfig,
    engine: BaseEngine,
    tools: ToolChoice = NO_TOOLS,
    logprobs: int | None = None,
    prompt_scores: bool = False,
) -> Job:
    if body.min_tokens and body.stops:
        raise bad_request("min_tokens: cannot be combined with stop; remove one", "min_tokens")
    options = body.stream_options
    thinking = _with_preset(thinking, engine.tokenizer)
    settings: dict[str, Any] = {
        "n": body.n or 1,
        "seed": secrets.randbits(31) if body.seed is None else body.seed,
        "max_tokens": -1 if max_tokens is None else max_tokens,
        "cache_salt": body.cache_salt or "",
        "ignore_eos": bool(body.ignore_eos),
        "answer_start": tools.answer_start,
        "tool_call": tools.call_token(engine.tokenizer),
        "scores": logprobs is not None,
        "prompt_scores": prompt_scores and logprobs is not None,
    }
    try:
        sampling = sampling_of(body, config.sampling, thinking)
        requests = [Request(ids, thinking.params, sampling, **settings) for ids in prompts]
    except UserError as error:
        raise from_user_error(error, engine.context, 0) from None
    return Job(
        kind=kind,
        model=check_model(body.model, config.names),
        requests=requests,
        limits=[_limits(request, engine) for request in requests],
        thinking=thinking,
        stops=(*body.stops, *_plain_stops(thinking.params)),
        skipped=_skipped(thinking.params, engine.tokenizer),
        stream=bool(body.stream),
        include_usage=bool(options and options.include_usage),
        continuous_usage=bool(options and options.continuous_usage_stats),
        request_id=body.request_id,
        ignored=ignored(type(body), raw),
        tools=tools,
        logprobs=logprobs,
    )


def _rendered(
    messages: Sequence[Mapping[str, Any]],
    thinking: ThinkingRequest,
    engine: BaseEngine,
    tools: Sequence[Mapping[str, Any]] = (),
) -> list[int]:
    """Ids of a conversation.

    Thinking of earlier turns is rendered where the chat template has a place for it; other
    templates forget it, as the models were trained.
    """
    turns = [_turn(i, message) for i, message in enumerate(messages)]
    _check_length(sum(len(json.dumps(turn)) for turn in turns), engine.context)
    bare = [{k: v for k, v in turn.items() if k not in THINKING_FIELDS} for turn in turns]
    try:
        return prompt_ids(turns, thinking.params, engine.tokenizer, list(tools))
    except UserError as error:
        if bare == turns:
            raise _refusal(error) from None
    try:
        return prompt_ids(bare, thinking.params, engine.tokenizer, list(tools))
    except UserError as error:
        raise _refusal(error) from None


def _refusal(error: UserError) -> ApiError:
    index = re.match(r"messages\[(\d+)\]", str(error))
    return bad_request(str(error), f"messages.{index[1]}" if index else "messages")


def _with_preset(thinking: ThinkingRequest, tokenizer: Any) -> ThinkingRequest:
    try:
        params = resolve_preset(thinking.params, tokenizer)
    except UserError as error:
        raise bad_request(str(error), "thinking") from None
    return dataclasses.replace(thinking, params=params)


def _limits(request: Request, engine: BaseEngine) -> SequenceLimits:
    try:
        return engine.check(request)
    except UserError as error:
        raise from_user_error(error, engine.context, len(request.prompt_ids)) from None


def _turn(index: int, message: Mapping[str, Any]) -> dict[str, Any]:
    """A message with its role in the chat template; `prompt_ids` checks the rest."""
    role, where = message.get("role"), f"messages.{index}"
    if role not in ROLES:
        known = ", ".join(ROLES)
        raise bad_request(f"{where}.role={str(role)[:40]!r}: must be one of {known}", where)
    turn = {**message, "role": ROLES[role]}
    if role == "assistant" and turn.get("content") is None:
        turn["content"] = ""
    return turn


def _prompts(prompt: Any) -> list[Any]:
    """Texts, or lists of ids."""
    if isinstance(prompt, str) or isinstance(prompt[0], int):
        return [prompt]
    return list(prompt)


def _check_length(characters: int, context: int) -> None:
    """Refuse what cannot fit without spending time on it."""
    if characters > CHARACTERS_PER_TOKEN * context:
        message = (
            f"This model's maximum context length is {context} tokens, but the prompt has "
            f"{characters} characters; shorten it"
        )
        raise ApiError(400, message, "context_length_exceeded", param="messages")


def _same(name: str, value: int | None, other_name: str, other: int | None) -> int | None:
    if value is not None and other is not None and value != other:
        raise bad_request(
            f"{name}={value} and {other_name}={other}: disagree; give one of them", other_name
        )
    return other if value is None else value


def _switches_on(raw: Mapping[str, Any]) -> bool:
    """Whether a body has any setting of thinking."""
    groups = {path.partition(".")[0] for path in thinking_fields.KNOWN}
    shown = {"include_reasoning", "separate_reasoning"}
    return any(raw.get(name) is not None for name in groups - shown)


def _plain_stops(thinking: ThinkingParams) -> tuple[str, ...]:
    """The delimiters' stops that are no special tokens: they would be visible in the answer."""
    stops = delimiters_of(thinking).stop or ()
    return tuple(stop for stop in stops if not stop.startswith("<|"))


def _skipped(thinking: ThinkingParams, tokenizer: Any) -> tuple[int, ...]:
    """The close, where the model itself writes it into its answer; see `outputs.complete`."""
    if thinking.mode != "s1_readme":
        return ()
    close = delimiters_of(thinking).close
    return tuple(tokenizer(close, add_special_tokens=False)["input_ids"])


def token_ids(
    body: TokenizeBody, raw: Mapping[str, Any], config: ServeConfig, engine: BaseEngine
) -> list[int]:
    """Ids of a text, or of a conversation as `chat_job` renders it.

    Raises:
        ApiError: what the client has to change
    """
    check_model(body.model, config.names)
    if body.prompt is not None:
        _check_length(len(body.prompt), engine.context)
        add = body.add_special_tokens
        return engine.tokenizer(body.prompt, add_special_tokens=add)["input_ids"]
    return _rendered(body.messages or [], thinking_fields.read(raw, config), engine)
