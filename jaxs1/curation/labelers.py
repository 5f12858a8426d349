"""Language models that label questions: a small interface with two implementations.

A `Model` answers one prompt, `answer_all` many concurrently; `ModelConfig` names the model. This
file does not know what the prompts and answers mean.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Protocol

from jaxs1.config import UserError


class NoAnswer(Exception):
    """A model did not answer.

    Args:
        reason: Human-readable reason
        fatal: Whether no other question would be answered either
        refused: Whether the question itself is the reason, so that others may be answered
    """

    def __init__(self, reason: str, *, fatal: bool = False, refused: bool = False) -> None:
        super().__init__(reason)
        self.fatal, self.refused = fatal, refused


class Model(Protocol):
    """A model that answers prompts."""

    @property
    def identity(self) -> str:
        """Part of the names of caches: differs wherever answers would differ."""

    @property
    def where(self) -> str:
        """Name of the model, for messages."""

    @property
    def parallel(self) -> int:
        """Number of prompts that it takes concurrently."""

    def answer(self, prompt: str) -> str:
        """The answer to one prompt, without surrounding white space; called from several threads.

        Raises:
            NoAnswer: the model did not answer.
            UserError: the model cannot be used at all, which the user can fix.
        """

    def close(self) -> None:
        """Release all resources; pending calls of `answer` raise `NoAnswer`."""


@dataclass(frozen=True)
class ModelConfig:
    """A model that answers questions: at an OpenAI-compatible endpoint, or in the local engine.

    Args:
        url: Base URL of the endpoint, e.g. http://127.0.0.1:8000/v1; empty uses the local engine
        model: Name of the model at the endpoint; for the local engine a Hugging Face folder, a hub
            id, a converted checkpoint or a training run, the same on all machines whose caches are
            merged; empty for none
        temperature: Sampling temperature (s1: 0.05)
        max_tokens: Maximum length of an answer [tokens]
        parallel: Number of concurrent requests; batch size of the local engine
        retries: Maximum number of retries of a failed request (endpoint only)
        backoff: Wait before the first retry [s], doubled for each further one up to 60 (endpoint
            only)
        timeout: Timeout of a request [s] (endpoint only)
        key_variable: Environment variable that holds the API key; null for none (endpoint only)
        tensor: Number of devices that share a copy of the model (local engine only)
        replicas: Number of copies of the model (local engine only)
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
    tensor: int = 1
    replicas: int = 1

    def check(self, setting: str) -> None:
        """Reject impossible settings; `setting` is the field that holds this model."""
        if self.url and not self.url.startswith(("http://", "https://")):
            raise UserError(f"{setting}.url={self.url}: must begin with http:// or https://")
        if self.url and not self.model:
            raise UserError(f"{setting}.model='': {self.url} needs the name of the model; give it")
        if self.url and self.key_variable and not os.environ.get(self.key_variable):
            raise UserError(
                f"{setting}.key_variable={self.key_variable}: no such environment variable; set it "
                "to the API key"
            )
        for name in ("max_tokens", "parallel", "timeout", "tensor", "replicas"):
            if not getattr(self, name) > 0:
                raise UserError(f"{setting}.{name}={getattr(self, name)}: must be positive")
        for name in ("retries", "backoff", "temperature"):
            if getattr(self, name) < 0:
                raise UserError(f"{setting}.{name}={getattr(self, name)}: must be 0 or more")


def answer_all(
    model: Model, prompts: Iterable[tuple[str, str]]
) -> Iterator[tuple[str, str | NoAnswer]]:
    """Answer prompts, at most `model.parallel` at a time; then close the model.

    Args:
        model: Model that answers
        prompts: Keys and prompts; taken one by one as answers arrive

    Yields:
        Key and answer, or the reason why there is none, as they arrive

    Raises:
        UserError: from the model; from `prompts`, once all pending prompts have been answered.
    """

    def answer(prompt: str) -> str | NoAnswer:
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
                except UserError as error:  # pending answers are not lost with it
                    broken = error
                    break
                pending[workers.submit(answer, prompt)] = key
                if len(pending) >= model.parallel:
                    yield from _finished(pending)
            while pending:
                yield from _finished(pending)
        finally:
            workers.shutdown(wait=False, cancel_futures=True)
            model.close()
    if broken:
        raise broken


def _finished(
    pending: dict[Future[str | NoAnswer], str],
) -> Iterator[tuple[str, str | NoAnswer]]:
    """Wait for at least one answer, and remove all that have arrived."""
    done, _ = wait(pending, return_when=FIRST_COMPLETED)
    for future in done:
        yield pending.pop(future), future.result()
