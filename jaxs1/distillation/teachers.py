"""Teachers: an OpenAI-compatible endpoint, or our own engine. Both answer a `Job`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from convert.weights import open_weights
from jaxs1.data.delimiters import CLOSE, OPEN
from jaxs1.data.template import THINKING_FIELDS
from jaxs1.data.text import encodable
from jaxs1.decoding.outputs import answer_prefix_ids
from jaxs1.decoding.params import Request
from jaxs1.decoding.prompt import prompt_ids
from jaxs1.decoding.sampling import seed_from_text
from jaxs1.distillation.answers import Answer, Key
from jaxs1.distillation.config import TracesConfig
from jaxs1.inference.interface import Model
from jaxs1.inference.local_engine import LocalEngine
from jaxs1.inference.openai_client import OpenAIClient

#: Settings of the engine that an answer depends on.
_OF_ENGINE = ("tokenizer", "dtype", "impl", "weights")


@dataclass(frozen=True)
class Job:
    """One request to a teacher.

    Args:
        key: What the answer belongs to
        messages: Conversation
        seed: Random seed
    """

    key: Key
    messages: list[dict[str, str]]
    seed: int


def make_job(config: TracesConfig, question: str, key: Key) -> Job:
    """The request for one sample; its seed depends on the question's text, not on its place."""
    system = [] if config.system is None else [{"role": "system", "content": config.system}]
    text = encodable(config.prompt.replace("{question}", question))
    seed = seed_from_text(f"{config.seed} {key.question} {key.sample}")
    return Job(key, [*system, {"role": "user", "content": text}], seed)


def settings_of(config: TracesConfig) -> dict[str, Any]:
    """All settings that an answer depends on: those of one output folder.

    Raises:
        UserError: the local engine finds no weights.
    """
    shared = {name: getattr(config, name) for name in ("prompt", "system", "seed", "max_tokens")}
    sampling = dataclasses.asdict(config.sampling)
    if config.endpoint.url:  # without the URL: the same model may move
        return {**shared, "model": config.model, "body": config.endpoint.body, "sampling": sampling}
    return {
        **shared,
        # paths, sizes and modification times: a copy of the weights counts as another teacher
        "model": open_weights(config.model).fingerprint(),
        **{name: getattr(config, name) for name in _OF_ENGINE},
        "limits.max_seq_len": config.limits.max_seq_len,
        "thinking": dataclasses.asdict(config.thinking),
        "sampling": sampling,
    }


def open_teacher(config: TracesConfig) -> Model[Job, Answer]:
    """The teacher of a configuration; takes no device before its first job."""
    return EndpointTeacher(config) if config.endpoint.url else EngineTeacher(config)


class EndpointTeacher:
    """A teacher at an OpenAI-compatible endpoint; see `inference.interface.Model`.

    Args:
        config: Settings with the url of an endpoint
    """

    def __init__(self, config: TracesConfig) -> None:
        self._config = config
        self._client = OpenAIClient(config.endpoint)
        self.parallel = config.endpoint.parallel

    def answer(self, job: Job) -> Answer:
        """The answer to a job; raises `NoAnswer` once all retries have failed."""
        config = self._config
        body = {
            "model": config.model,
            "messages": job.messages,
            "max_tokens": config.max_tokens,
            "temperature": config.sampling.temperature,
            "top_p": config.sampling.top_p,
            "seed": job.seed,
            **config.endpoint.body,
        }
        return self._client.chat({k: v for k, v in body.items() if v is not None}, read_reply)

    def close(self) -> None:
        """End all retries."""
        self._client.close()


class EngineTeacher:
    """Our own engine as the teacher; see `inference.interface.Model`.

    Args:
        config: Settings without the url of an endpoint
    """

    def __init__(self, config: TracesConfig) -> None:
        self._config = config
        self._engine = LocalEngine(config)
        self.parallel = self._engine.parallel

    def answer(self, job: Job) -> Answer:
        """The answer to a job; raises `NoAnswer` if the engine refuses it or fails."""
        config = self._config
        tokenizer: Any = None

        def make_request(loaded: Any) -> Request:
            nonlocal tokenizer
            tokenizer = loaded
            ids = prompt_ids(job.messages, config.thinking, tokenizer)
            return Request(
                ids,
                config.thinking,
                config.sampling,
                seed=job.seed,
                max_tokens=config.max_tokens,
            )

        done = self._engine.complete(make_request)
        return Answer(
            done.thinking,
            (tokenizer.decode(answer_prefix_ids(done)) + done.answer).strip(),
            done.finish_reason,
            done.usage["prompt_tokens"],
            done.usage["completion_tokens"],
            done.thinking_ended_by,
        )

    def close(self) -> None:
        """Release the engine."""
        self._engine.close()


def read_reply(reply: Any) -> Answer:
    """The answer in the JSON of a chat completion.

    Raises:
        LookupError, TypeError, AttributeError: it is no chat completion.
    """
    choice: dict[str, Any] = reply["choices"][0]
    usage: dict[str, Any] = reply.get("usage") or {}
    message = choice["message"]
    content = message.get("content") or ""
    given = (message.get(name) for name in THINKING_FIELDS)
    thinking = next((text for text in given if isinstance(text, str) and text.strip()), "")
    if not thinking:
        thinking, content = split_thinking(content)
    return Answer(
        thinking.strip(),
        content.strip(),
        choice.get("finish_reason") or "stop",
        _count(usage.get("prompt_tokens")),
        _count(usage.get("completion_tokens")),
        (choice.get("thinking") or {}).get("ended_by"),
    )


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and value >= 0 else None


def split_thinking(content: str) -> tuple[str, str]:
    """Thinking and answer of a text with `<think>` tags; some templates write the first one.

    A text without tags is an answer; thinking that is never closed has no answer.
    """
    before, close, after = content.partition(CLOSE)
    opened = before.lstrip().startswith(OPEN.strip())
    if not close and not opened:
        return "", content
    return before.lstrip().removeprefix(OPEN.strip()), after
