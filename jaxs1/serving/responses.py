"""Replies in the shape of OpenAI's API: events of a stream, and whole replies made of the same."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxs1.decoding.outputs import Completion, StreamOutput
from jaxs1.serving.choice import Choice, Delta
from jaxs1.serving.errors import ApiError, internal_error
from jaxs1.serving.logprobs import ScoredToken, chat_logprobs, text_logprobs, with_prompt
from jaxs1.serving.requests import Job

#: Kind of job -> prefix of its ids, object of a whole reply and of an event.
OBJECTS = {
    "chat": ("chatcmpl-", "chat.completion", "chat.completion.chunk"),
    "completion": ("cmpl-", "text_completion", "text_completion"),
}
#: Around the thinking where it is part of the content.
OPENING, CLOSING = "<think>\n", "\n</think>\n\n"


class Reply:
    """The reply to one job, while it is generated.

    Args:
        job: what was asked for
        request_id: name of the request
        tokenizer: tokenizer of the model
        fingerprint: of weights and dtype
    """

    def __init__(self, job: Job, request_id: str, tokenizer: Any, fingerprint: str):
        prefix, self._whole, self._event = OBJECTS[job.kind]
        self.job, self.id = job, prefix + request_id
        self._head = {
            "id": self.id,
            "created": int(time.time()),
            "model": job.model,
            "system_fingerprint": fingerprint,
        }
        head = json.dumps({**self._head, "object": self._event}, ensure_ascii=False)
        #: An event up to its choices.
        self._begin = f'data: {head[:-1]}, "choices": ['
        self.choices = {
            (i, sample): Choice(
                sum(r.n for r in job.requests[:i]) + sample,
                tokenizer,
                limits,
                request.thinking.mode,
                job.stops,
                strip=job.kind == "chat",
                details=job.thinking.details,
                skipped=job.skipped,
                tools=job.tools.names,
                parallel_calls=job.tools.parallel,
                forced_call=job.tools.name,
            )
            for i, (request, limits) in enumerate(zip(job.requests, job.limits, strict=True))
            for sample in range(request.n)
        }
        self._texts: dict[int, dict[str, str]] = {c.index: {} for c in self.choices.values()}
        self._calls: dict[int, list[dict[str, Any]]] = {}
        self._cached: dict[int, int] = {}
        self._tokenizer = tokenizer
        #: Scored tokens that have been sent, and characters of them.
        self._sent: dict[int, tuple[int, int]] = {}
        #: Completions of a reply that echoes its prompts, for their scores.
        self._echoing: dict[int, Completion] = {}

    @property
    def cached_tokens(self) -> int:
        """Tokens of all prompts that were in the prefix cache."""
        return sum(self._cached.values())

    @property
    def done(self) -> bool:
        """Whether all choices are complete."""
        return all(choice.done for choice in self.choices.values())

    def add(
        self, outputs: Mapping[tuple[int, int], StreamOutput]
    ) -> Iterator[tuple[Choice, list[Delta]]]:
        """The new text of every choice that has any or has become complete.

        Raises:
            ApiError: the engine refused the request
        """
        for key, output in outputs.items():
            choice = self.choices[key]
            self._cached[key[0]] = max(self._cached.get(key[0], 0), output.cached_tokens)
            if choice.done:  # a stop ended it while the engine was writing
                continue
            if output.completion is not None and self.job.echo is not None:
                self._echoing[choice.index] = output.completion
            deltas = _merged(self._shown(choice, delta) for delta in choice.add(output))
            if choice.error is not None:
                raise ApiError(400, choice.error)
            for delta in deltas:
                texts = self._texts[choice.index]
                if delta.call is not None:
                    calls = self._calls.setdefault(choice.index, [])
                    calls.append(delta.call.as_json(len(calls)))
                texts[delta.channel] = texts.get(delta.channel, "") + delta.text
            yield choice, deltas

    def first_events(self) -> Iterator[bytes]:
        """The events before any text."""
        if self.job.kind == "chat":
            for choice in self.choices.values():
                delta = {"role": "assistant", "content": ""}
                yield self._sse({"index": choice.index, "delta": delta, "finish_reason": None})

    def events(self, choice: Choice, deltas: list[Delta]) -> Iterator[bytes]:
        """Events of new text, and of the end of a choice."""
        chat = self.job.kind == "chat"
        # `add` has numbered the calls of these deltas already
        called = len(self._calls.get(choice.index, ())) - sum(d.call is not None for d in deltas)
        for delta in deltas:
            fields = _chat_fields(delta) if chat else _text_fields(delta)
            if delta.call is not None:
                called += 1
                fields = {"tool_calls": [self._calls[choice.index][called - 1]]}
            part = {"delta": fields} if chat else fields
            part |= self._new_logprobs(choice)
            yield self._sse({"index": choice.index, **part, "finish_reason": None})
        if choice.done:
            part = {"delta": {}} if chat else {"text": ""}
            part |= self._new_logprobs(choice)
            yield self._sse({"index": choice.index, **part, **self._end(choice)})

    def last_events(self) -> Iterator[bytes]:
        """The events behind all text."""
        if self.job.include_usage:
            head = {**self._head, "object": self._event}
            yield sse({**head, "choices": [], "usage": self.usage()})
        yield DONE

    def whole(self) -> dict[str, Any]:
        """The reply that is no stream."""
        choices = []
        for choice in sorted(self.choices.values(), key=lambda c: c.index):
            texts = self._texts[choice.index]
            logprobs = self._logprobs(choice.scored)
            end = {"index": choice.index, "logprobs": logprobs, **self._end(choice)}
            if self.job.kind == "chat":
                choices.append({"message": self._message(choice.index), **end})
            else:
                thinking = {"reasoning": texts["reasoning"]} if texts.get("reasoning") else {}
                text = self._echoed(choice.index, end) + texts.get("content", "")
                choices.append({"text": text, **thinking, **end})
        head = {**self._head, "object": self._whole}
        return {**head, "choices": choices, "usage": self.usage()}

    def usage(self) -> dict[str, Any]:
        """Tokens of the reply so far."""
        completion = sum(c.usage.completion for c in self.choices.values())
        thinking = sum(c.usage.thinking for c in self.choices.values())
        prompt = self.job.prompt_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": thinking},
        }

    def _message(self, index: int) -> dict[str, Any]:
        texts = self._texts[index]
        message: dict[str, Any] = {"role": "assistant", "content": texts.get("content", "")}
        if thinking := texts.get("reasoning"):
            message |= {"reasoning": thinking, "reasoning_content": thinking}
        if calls := self._calls.get(index):
            named = [{k: v for k, v in call.items() if k != "index"} for call in calls]
            message |= {"content": message["content"] or None, "tool_calls": named}
        return message

    def _logprobs(self, tokens: Sequence[ScoredToken], offset: int = 0) -> dict[str, Any] | None:
        """The log-probabilities of some tokens of a choice, if the client wants any."""
        alternatives = self.job.logprobs
        if alternatives is None:
            return None
        if self.job.kind == "chat":
            details = self.job.thinking.details
            return chat_logprobs(tokens, self._tokenizer, alternatives, details=details)
        return text_logprobs(tokens, self._tokenizer, alternatives, offset)

    def _new_logprobs(self, choice: Choice) -> dict[str, Any]:
        """Those of the tokens since the last event, whose text may still be held back."""
        first, offset = self._sent.get(choice.index, (0, 0))
        logprobs = self._logprobs(choice.scored[first:], offset)
        if logprobs is None:
            return {}
        offset += sum(map(len, logprobs.get("tokens", ())))
        self._sent[choice.index] = len(choice.scored), offset
        return {"logprobs": logprobs}

    def _echoed(self, index: int, end: dict[str, Any]) -> str:
        """The prompt's text; its log-probabilities go into `end`."""
        if self.job.echo is None:
            return ""
        done = self._echoing.get(index)  # none if a stop has ended the answer
        if done is not None and done.prompt_scores is not None and self.job.logprobs is not None:
            end["logprobs"] = with_prompt(
                done.prompt_ids, done.prompt_scores, end["logprobs"], self._tokenizer,
                self.job.logprobs,
            )  # fmt: skip
        return self.job.echo[index // self.job.requests[0].n]

    def _end(self, choice: Choice) -> dict[str, Any]:
        """Why a choice ended, and what was done about its thinking."""
        params = self.job.thinking.params
        return {
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
            "seed": self.job.requests[0].seed,
            "thinking": {"min": params.min, **choice.summary(self.job.note)},
        }

    def _shown(self, choice: Choice, delta: Delta) -> Delta | None:
        """A delta as this client wants to see it."""
        thinking = self.job.thinking
        if delta.call is not None:
            return delta
        if delta.channel == "reasoning" and not thinking.include:
            return None
        if thinking.separate or delta.channel not in ("reasoning", "content"):
            return delta
        texts = self._texts[choice.index]
        if delta.channel == "reasoning":
            opened = "reasoning opened" in texts
            texts["reasoning opened"] = ""
            return Delta("content", delta.text if opened else OPENING + delta.text, delta.forced)
        closes = texts.pop("reasoning opened", None) is not None
        return Delta("content", CLOSING + delta.text if closes else delta.text)

    def _sse(self, choice: dict[str, Any]) -> bytes:
        text = json.dumps(choice, ensure_ascii=False)
        usage = f', "usage": {json.dumps(self.usage())}' if self.job.continuous_usage else ""
        return f"{self._begin}{text}]{usage}}}\n\n".encode()


DONE = b"data: [DONE]\n\n"


def sse(event: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(event, ensure_ascii=False).encode() + b"\n\n"


def error_events(error: Exception) -> bytes:
    """The end of a stream that fails after its head has been sent."""
    known = error if isinstance(error, ApiError) else internal_error()
    return sse(known.body()) + DONE


def _merged(deltas: Iterator[Delta | None]) -> list[Delta]:
    """One delta for each run of the same kind."""
    merged: list[Delta] = []
    for delta in deltas:
        if delta is None:
            continue
        is_text = delta.call is None and merged and merged[-1].call is None
        if is_text and (merged[-1].channel, merged[-1].forced) == (delta.channel, delta.forced):
            merged[-1].text += delta.text
        else:
            merged.append(delta)
    return merged


def _chat_fields(delta: Delta) -> dict[str, Any]:
    fields: dict[str, Any] = {delta.channel: delta.text}
    if delta.channel == "reasoning":
        fields["reasoning_content"] = delta.text  # DeepSeek's name; each client reads one of them
    return {**fields, "forced": delta.forced} if delta.forced else fields


def _text_fields(delta: Delta) -> dict[str, Any]:
    if delta.channel == "content":
        return {"text": delta.text}
    return {"text": "", **_chat_fields(delta)}
