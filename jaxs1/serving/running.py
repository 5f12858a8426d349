"""One request while it is answered: its outputs, its times, its end."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Protocol

from jaxs1.serving.admission import Admission
from jaxs1.serving.choice import Choice, Delta
from jaxs1.serving.config import ServeConfig
from jaxs1.serving.errors import ApiError
from jaxs1.serving.metrics import Metrics
from jaxs1.serving.output_stream import OutputStream
from jaxs1.serving.responses import Reply, error_events

#: Seconds between two comments of a stream that has no text yet.
COMMENT = 10.0


class Home(Protocol):
    """What a running request needs of its service."""

    config: ServeConfig
    metrics: Metrics
    admission: Admission

    def leave(self, running: Running, engine: int) -> None:
        """The request has ended."""


class Running:
    """A request from its admission to its end.

    Args:
        home: service that runs it
        reply: its reply
        stream: its outputs
        engine: number of the engine that completes it
    """

    def __init__(self, home: Home, reply: Reply, stream: OutputStream, engine: int):
        self.reply, self.stream = reply, stream
        self._home, self._engine = home, engine
        self._begin = time.monotonic()
        self._newest: float | None = None
        self._is_open = True

    async def parts(self) -> AsyncIterator[list[tuple[Choice, list[Delta]]]]:
        """New text of the choices, as it comes; empty after `COMMENT` seconds without any.

        Raises:
            ApiError: a timeout, or the engine refused the request
            Exception: the engine failed
        """
        while not self.reply.done:
            outputs = await self.stream.get(self._patience())
            if not outputs:
                yield []
                continue
            is_first = self._newest is None
            self._observe(sum(len(output.new_tokens.tokens) for output in outputs.values()))
            parts = list(self.reply.add(outputs))
            for choice, _ in parts:
                if choice.done:
                    self._home.metrics.finished(choice, choice.summary()["ended_by"])
            if parts:
                yield parts
            if is_first:
                self._home.metrics.queries.inc(self.reply.job.prompt_tokens)
                self._home.metrics.hits.inc(self.reply.cached_tokens)
        self._home.metrics.end_to_end.observe(time.monotonic() - self._begin)

    async def events(self) -> AsyncIterator[bytes]:
        """The reply as server-sent events, those that come together in one piece.

        An error is the last event.
        """
        try:
            if events := list(self.reply.first_events()):
                yield b"".join(events)
            async for parts in self.parts():
                if not parts:
                    yield b": queued\n\n" if self._newest is None else b": thinking\n\n"
                    continue
                events = [event for part in parts for event in self.reply.events(*part)]
                if self.reply.done:
                    events += self.reply.last_events()
                if events:
                    yield b"".join(events)
        except Exception as error:
            yield error_events(error)

    def close(self) -> None:
        """End the request: what is not complete is cancelled, its rows and pages become free."""
        if not self._is_open:
            return
        self._is_open = False
        if not self.reply.done:
            self._home.metrics.cancelled("client" if self._newest else "waiting").inc()
        if self._newest is None:
            self._home.admission.begun(self.reply.job.prompt_tokens)
        self.stream.close()
        self._home.leave(self, self._engine)

    def _observe(self, tokens: int) -> None:
        """Take the time of new tokens."""
        now, metrics = time.monotonic(), self._home.metrics
        if self._newest is None:
            metrics.first_token.observe(now - self._begin)
            metrics.prompt_tokens.inc(self.reply.job.prompt_tokens)
            metrics.prompt_length.observe(self.reply.job.prompt_tokens)
            self._home.admission.begun(self.reply.job.prompt_tokens)
        elif tokens:
            metrics.between.observe((now - self._newest) / tokens)
        self._newest = now

    def _patience(self) -> float:
        """Seconds to wait for the next output.

        Raises:
            ApiError: the request has taken too long
        """
        config, spent = self._home.config, time.monotonic() - self._begin
        limits = {"request_timeout": config.request_timeout}
        if self._newest is None:
            limits["queue_timeout"] = config.queue_timeout
        for name, limit in limits.items():
            if spent >= limit:
                raise ApiError(504, f"{name}={limit:g} s: is over; retry later", "timeout")
        return min(COMMENT, *(limit - spent for limit in limits.values()))
