"""An OpenAI-compatible endpoint: one HTTP request per chat completion, with retries and a pace."""

from __future__ import annotations

import email.utils
import http.client
import json
import os
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from jaxs1.config import UserError, one_line
from jaxs1.inference.interface import NoAnswer

A = TypeVar("A")
#: Statuses after which a retry may succeed, other than those from 500.
_RETRIED = (408, 409, 425, 429)
#: Statuses that every further question would receive as well; 402: no money left.
_FATAL = (401, 402, 403, 404, 405)
#: Longest wait between two attempts [s]; `Retry-After` may ask for more.
LONGEST_BACKOFF = 60.0
#: Longest `Retry-After` that is waited for [s].
LONGEST_PAUSE = 3600.0


@dataclass(frozen=True)
class EndpointConfig:
    """An OpenAI-compatible endpoint.

    Args:
        url: Base URL of the endpoint, e.g. http://127.0.0.1:8000/v1; empty uses the local engine
        key_variable: Environment variable that holds the API key; null for none (endpoint only)
        parallel: Number of concurrent requests
        requests_per_minute: Maximum number of requests per minute, retries included; null for no
            limit (endpoint only)
        retries: Maximum number of retries of a failed request (endpoint only)
        backoff: Wait before the first retry [s], doubled for each further one up to 60, less up to
            a half by chance; a longer wait that the endpoint asks for (Retry-After) is honoured, by
            all requests (endpoint only)
        timeout: Timeout of a request [s] (endpoint only)
    """

    url: str = ""
    key_variable: str | None = None
    parallel: int = 16
    requests_per_minute: float | None = None
    retries: int = 6
    backoff: float = 1.0
    timeout: float = 600.0

    def check(self, setting: str) -> None:
        """Reject impossible settings; `setting` is the field that holds this endpoint."""
        if self.url and not self.url.startswith(("http://", "https://")):
            raise UserError(f"{setting}.url={self.url}: must begin with http:// or https://")
        for name in ("parallel", "timeout", "requests_per_minute"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"{setting}.{name}={value}: must be positive")
        for name in ("retries", "backoff"):
            if getattr(self, name) < 0:
                raise UserError(f"{setting}.{name}={getattr(self, name)}: must be 0 or more")

    def check_key(self, setting: str) -> None:
        """Require the API key; `setting` is the field that holds this endpoint."""
        if self.url and self.key_variable and not os.environ.get(self.key_variable):
            raise UserError(
                f"{setting}.key_variable={self.key_variable}: no such environment variable; set it "
                "to the API key"
            )


class OpenAIClient:
    """Sends chat completions; may be used by several threads.

    Args:
        config: Checked settings with a url
    """

    def __init__(self, config: EndpointConfig) -> None:
        self._config = config
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._next_start = time.monotonic()
        self._interval = 60 / config.requests_per_minute if config.requests_per_minute else 0.0
        #: Number of requests that were sent again.
        self.retries = 0

    def chat(self, body: Mapping[str, Any], read: Callable[[Any], A]) -> A:
        """One chat completion.

        Args:
            body: JSON object of the request
            read: From the JSON of a reply to its content; a `ValueError` says why it has none, a
                `LookupError`, `TypeError` or `AttributeError` that it is no completion: reasons to
                try again

        Raises:
            NoAnswer: all retries have failed, or another attempt would fail the same way.
        """
        for attempt in range(self._config.retries + 1):
            self._await_turn()
            asked_for = 0.0
            try:
                return _content(self._post(body), read)
            except urllib.error.HTTPError as error:
                reason, asked_for = _refusal(error), _retry_after(error)
            except (OSError, http.client.HTTPException, ValueError) as error:
                reason = _reason(error)
            if attempt < self._config.retries:
                self._back_off(attempt, asked_for)
        raise NoAnswer(f"{reason}, {self._config.retries + 1} times")

    def close(self) -> None:
        """End all waits; requests that wait raise `NoAnswer`."""
        self._closed.set()

    def _post(self, body: Mapping[str, Any]) -> bytes:
        config = self._config
        headers = {"Content-Type": "application/json"}
        if config.key_variable:
            headers["Authorization"] = f"Bearer {os.environ[config.key_variable]}"
        request = urllib.request.Request(
            config.url.rstrip("/") + "/chat/completions", json.dumps(body).encode(), headers
        )
        with urllib.request.urlopen(request, timeout=config.timeout) as response:
            return response.read()

    def _await_turn(self) -> None:
        """Wait until the pace allows another request."""
        with self._lock:
            start = max(time.monotonic(), self._next_start)
            self._next_start = start + self._interval
        self._wait(start - time.monotonic())

    def _back_off(self, attempt: int, asked_for: float) -> None:
        """Wait before the next attempt; a wait that the endpoint asks for holds for all threads."""
        with self._lock:
            self.retries += 1
            if asked_for:
                self._next_start = max(self._next_start, time.monotonic() + asked_for)
        wait = min(LONGEST_BACKOFF, self._config.backoff * 2**attempt) * random.uniform(0.5, 1)
        self._wait(asked_for + wait)

    def _wait(self, seconds: float) -> None:
        if seconds > 0 and self._closed.wait(seconds):
            raise NoAnswer("interrupted")


def _content(body: bytes, read: Callable[[Any], A]) -> A:
    """The content of a reply; raises `ValueError` if it has none."""
    if not body:
        raise ValueError("an empty reply")
    broken = ValueError(f"a reply that is no completion ({body[:60]!r})")
    try:
        reply = json.loads(body)
    except ValueError:
        raise broken from None
    try:
        return read(reply)
    except (LookupError, TypeError, AttributeError):
        raise broken from None


def _refusal(error: urllib.error.HTTPError) -> str:
    """What a status says; raises `NoAnswer` if another attempt would end the same way."""
    with error:
        try:
            says = one_line(error.read(1000).decode(errors="replace"))[:200]
        except (OSError, http.client.HTTPException):  # cut off
            says = ""
    reason = f"HTTP {error.code} {error.reason}" + (f": {says}" if says else "")
    if error.code < 500 and error.code not in _RETRIED:
        fatal = error.code in _FATAL
        raise NoAnswer(reason, fatal=fatal, refused=not fatal) from None
    return reason


def _retry_after(error: urllib.error.HTTPError) -> float:
    """The wait that a reply asks for in seconds or with a date [s]; 0 without."""
    value = error.headers.get("Retry-After", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return 0.0
    return min(max(0.0, seconds), LONGEST_PAUSE)


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no reply in time"
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    return one_line(cause) or type(error).__name__
