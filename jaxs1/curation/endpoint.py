"""Questions to a language model, behind a small interface with one implementation.

A `Model` answers one prompt; `ask_all` asks many at a time. What is asked and what becomes of the
answers is not known here.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Protocol

from jaxs1.config import UserError

#: Statuses that another try may mend.
_RETRIED = (408, 409, 425, 429)
#: Statuses that every further question would get as well.
_FATAL = (401, 403, 404, 405)


class NoAnswer(Exception):
    """A model did not answer.

    Args:
        reason: in words
        fatal: no other question would be answered either
    """

    def __init__(self, reason: str, *, fatal: bool = False) -> None:
        super().__init__(reason)
        self.fatal = fatal


class Model(Protocol):
    """Something that answers a prompt."""

    @property
    def identity(self) -> str:
        """Differs where answers would differ: names of caches are made of it."""

    @property
    def where(self) -> str:
        """What messages call it."""

    @property
    def parallel(self) -> int:
        """Prompts that it takes at the same time."""

    def answer(self, prompt: str) -> str:
        """The answer to one prompt, without white space around it; raises `NoAnswer`."""


@dataclass(frozen=True)
class Endpoint:
    """A model behind any OpenAI-compatible endpoint.

    Args:
        url: base of the API, e.g. http://127.0.0.1:8000/v1; empty for none
        model: name under which the endpoint serves it
        temperature: of sampling (s1: 0.05)
        max_tokens: of one answer
        parallel: requests at the same time
        retries: further tries of a request that failed in a way that may pass
        backoff: wait before the first retry [s]; doubles with each, at most 60
        timeout: of one request [s]
        key_variable: environment variable that holds the API key; null for none
    """

    url: str = ""
    model: str = ""
    temperature: float = 0.05
    max_tokens: int = 8192
    parallel: int = 16
    retries: int = 6
    backoff: float = 1.0
    timeout: float = 600.0
    key_variable: str | None = None

    def check(self, setting: str) -> None:
        """Refuse what cannot be asked; `setting` is what the user calls this endpoint."""
        if self.url and not self.url.startswith(("http://", "https://")):
            raise UserError(f"{setting}.url={self.url}: must begin with http:// or https://")
        if self.url and not self.model:
            raise UserError(
                f"{setting}.model='': {self.url} must be told which model; give its name"
            )
        for name in ("max_tokens", "parallel", "timeout"):
            if not getattr(self, name) > 0:
                raise UserError(f"{setting}.{name}={getattr(self, name)}: must be positive")
        for name in ("retries", "backoff", "temperature"):
            if getattr(self, name) < 0:
                raise UserError(f"{setting}.{name}={getattr(self, name)}: must be 0 or more")

    @property
    def identity(self) -> str:
        """Model and sampling; the same model may move to another URL."""
        return f"{self.model} {self.temperature} {self.max_tokens}"

    @property
    def where(self) -> str:
        """What messages call it."""
        return f"{self.model} at {self.url}"

    def answer(self, prompt: str) -> str:
        """The answer to one prompt; raises `NoAnswer` when all tries failed."""
        for attempt in range(self.retries + 1):
            try:
                return self._request(prompt)
            except NoAnswer:
                raise
            except (OSError, http.client.HTTPException, ValueError) as error:
                reason = _reason(error)
            if attempt < self.retries:
                time.sleep(min(60, self.backoff * 2**attempt) * random.uniform(0.5, 1))
        raise NoAnswer(f"{reason}, {self.retries + 1} times")

    def _request(self, prompt: str) -> str:
        """One try; raises `NoAnswer` where another one would end the same way."""
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
        }
        headers = {"Content-Type": "application/json"}
        if self.key_variable:
            headers["Authorization"] = f"Bearer {os.environ.get(self.key_variable, '')}"
        request = urllib.request.Request(
            self.url.rstrip("/") + "/chat/completions", json.dumps(body).encode(), headers
        )
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                return _content(response.read())
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in _RETRIED:
                raise NoAnswer(_reason(error), fatal=error.code in _FATAL) from None
            raise


def _content(body: bytes) -> str:
    """The text of a completion; raises `ValueError` where there is none."""
    if not body:
        raise ValueError("an empty reply")
    try:
        reply: Any = json.loads(body)
        text = reply["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        raise ValueError(f"a reply that is no completion ({body[:60]!r})") from None
    if not isinstance(text, str) or not text.strip():
        raise ValueError("a completion without text")
    return text.strip()


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    if isinstance(error, TimeoutError):
        return "no reply in time"
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    return " ".join(str(cause).split()) or type(error).__name__


def ask_all(
    model: Model, prompts: Iterable[tuple[str, str]]
) -> Iterator[tuple[str, str | NoAnswer]]:
    """Ask `model.parallel` prompts at a time, and never hold more than that.

    Args:
        model: who is asked
        prompts: key and prompt; taken one by one as answers come in

    Yields:
        key and answer, or why there is none, in the order in which they come in
    """

    def ask(prompt: str) -> str | NoAnswer:
        try:
            return model.answer(prompt)
        except NoAnswer as failure:
            return failure

    pending: dict[Future[str | NoAnswer], str] = {}
    source, broken = iter(prompts), None
    with ThreadPoolExecutor(model.parallel) as workers:
        try:
            while True:
                try:
                    key, prompt = next(source)
                except StopIteration:
                    break
                except UserError as error:  # what was asked already is not lost with it
                    broken = error
                    break
                pending[workers.submit(ask, prompt)] = key
                if len(pending) >= model.parallel:
                    yield from _finished(pending)
            while pending:
                yield from _finished(pending)
        finally:
            workers.shutdown(wait=False, cancel_futures=True)
    if broken:
        raise broken


def _finished(
    pending: dict[Future[str | NoAnswer], str],
) -> Iterator[tuple[str, str | NoAnswer]]:
    """Wait for at least one, and take out all that are there."""
    done, _ = wait(pending, return_when=FIRST_COMPLETED)
    for future in done:
        yield pending.pop(future), future.result()
