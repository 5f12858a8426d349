"""A model at an OpenAI-compatible endpoint: one HTTP request per question, with retries."""

from __future__ import annotations

import http.client
import json
import os
import random
import threading
import urllib.error
import urllib.request
from typing import Any

from jaxs1.config import one_line
from jaxs1.curation.labelers import ModelConfig, NoAnswer

#: Statuses after which a retry may succeed.
_RETRIED = (408, 409, 425, 429)
#: Statuses that every further question would receive as well.
_FATAL = (401, 403, 404, 405)


class OpenAIModel:
    """See `labelers.Model`.

    Args:
        config: Checked settings with a url
    """

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self._closed = threading.Event()
        self.parallel = config.parallel
        #: Without the URL: the same model may move.
        self.identity = f"{config.model} {config.temperature} {config.max_tokens}"
        self.where = f"{config.model} at {config.url}"

    def answer(self, prompt: str) -> str:
        """See `labelers.Model`; raises `NoAnswer` once all retries have failed."""
        config = self._config
        for attempt in range(config.retries + 1):
            try:
                return self._request(prompt)
            except (OSError, http.client.HTTPException, ValueError) as error:
                reason = _reason(error)
            wait = min(60, config.backoff * 2**attempt) * random.uniform(0.5, 1)
            if attempt < config.retries and self._closed.wait(wait):
                raise NoAnswer("interrupted")
        raise NoAnswer(f"{reason}, {config.retries + 1} times")

    def close(self) -> None:
        """See `labelers.Model`; ends all retries."""
        self._closed.set()

    def _request(self, prompt: str) -> str:
        """One attempt; raises `NoAnswer` if another one would fail the same way."""
        config = self._config
        body = {
            "model": config.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": config.temperature,
            "max_tokens": config.max_tokens,
        }
        headers = {"Content-Type": "application/json"}
        if config.key_variable:
            headers["Authorization"] = f"Bearer {os.environ[config.key_variable]}"
        request = urllib.request.Request(
            config.url.rstrip("/") + "/chat/completions", json.dumps(body).encode(), headers
        )
        try:
            with urllib.request.urlopen(request, timeout=config.timeout) as response:
                return _content(response.read())
        except urllib.error.HTTPError as error:
            says = one_line(error.read(1000).decode(errors="replace"))[:200]
            reason = f"HTTP {error.code} {error.reason}" + (f": {says}" if says else "")
            if error.code < 500 and error.code not in _RETRIED:
                fatal = error.code in _FATAL
                raise NoAnswer(reason, fatal=fatal, refused=not fatal) from None
            raise OSError(reason) from None


def _content(body: bytes) -> str:
    """The text of a completion; raises `ValueError` if there is none."""
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
    if isinstance(error, TimeoutError):
        return "no reply in time"
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    return one_line(cause) or type(error).__name__
