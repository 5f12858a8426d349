"""A model behind any OpenAI-compatible endpoint: one HTTP request a question, with retries."""

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

#: Statuses that another try may mend.
_RETRIED = (408, 409, 425, 429)
#: Statuses that every further question would get as well.
_FATAL = (401, 403, 404, 405)


class Endpoint:
    """See `models.Model`.

    Args:
        config: checked; its url is not empty
    """

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self._closed = threading.Event()
        self.parallel = config.parallel
        #: The same model may move to another URL.
        self.identity = f"{config.model} {config.temperature} {config.max_tokens}"
        self.where = f"{config.model} at {config.url}"

    def answer(self, prompt: str) -> str:
        """See `models.Model`; `NoAnswer` when all tries failed."""
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
        """See `models.Model`: no request is tried again."""
        self._closed.set()

    def _request(self, prompt: str) -> str:
        """One try; raises `NoAnswer` where another one would end the same way."""
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
    if isinstance(error, TimeoutError):
        return "no reply in time"
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    return one_line(cause) or type(error).__name__
