"""Questions to a language model, behind a small interface with two implementations.

A `Model` answers one prompt; `ask_all` asks many at a time; `ModelConfig` says which model. What is
asked and what becomes of the answers is not known here.
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
        reason: in words
        fatal: no other question would be answered either
        refused: it lies with this question, others may be answered
    """

    def __init__(self, reason: str, *, fatal: bool = False, refused: bool = False) -> None:
        super().__init__(reason)
        self.fatal, self.refused = fatal, refused


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
        """The answer to one prompt, without white space around it; called from several threads.

        Raises:
            NoAnswer: there is none.
            UserError: the model cannot be used at all, and the user can mend it.
        """

    def close(self) -> None:
        """Give back what answering took; who still waits gets `NoAnswer`."""


@dataclass(frozen=True)
class ModelConfig:
    """A model that answers questions: behind an OpenAI-compatible endpoint, or in our own engine.

    Args:
        url: base of the endpoint's API, e.g. http://127.0.0.1:8000/v1; empty: our own engine
        model: name under which the endpoint serves it; for our own engine a Hugging Face folder, a
            hub id, a converted checkpoint or a training run, one and the same for all machines
            whose caches are put together; empty for none
        temperature: of sampling (s1: 0.05)
        max_tokens: of one answer
        parallel: requests at the same time; sequences that our own engine decodes at the same time
        retries: of an endpoint, further tries of a request that failed in a way that may pass
        backoff: of an endpoint, wait before the first retry [s]; doubles with each, at most 60
        timeout: of an endpoint, for one request [s]
        key_variable: of an endpoint, environment variable that holds the API key; null for none
        tensor: of our own engine, devices that share one copy of the model
        replicas: of our own engine, copies of the model
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
        """Refuse what cannot be asked; `setting` is what the user calls this model."""
        if self.url and not self.url.startswith(("http://", "https://")):
            raise UserError(f"{setting}.url={self.url}: must begin with http:// or https://")
        if self.url and not self.model:
            raise UserError(
                f"{setting}.model='': {self.url} must be told which model; give its name"
            )
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

    def open(self) -> Model:
        """The model; takes no device before the first question.

        Raises:
            UserError: our own engine finds no weights there.
        """
        if self.url:
            from jaxs1.curation.openai_model import Endpoint

            return Endpoint(self)
        from jaxs1.curation.local_model import OwnEngine  # jax takes its time to import

        return OwnEngine(self)


def ask_all(
    model: Model, prompts: Iterable[tuple[str, str]]
) -> Iterator[tuple[str, str | NoAnswer]]:
    """Ask `model.parallel` prompts at a time, and never hold more than that; then close the model.

    Args:
        model: who is asked
        prompts: key and prompt; taken one by one as answers come in

    Yields:
        key and answer, or why there is none, in the order in which they come in

    Raises:
        UserError: of the prompts' source, after what was asked already has been answered; of the
            model.
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
            model.close()
    if broken:
        raise broken


def _finished(
    pending: dict[Future[str | NoAnswer], str],
) -> Iterator[tuple[str, str | NoAnswer]]:
    """Wait for at least one, and take out all that are there."""
    done, _ = wait(pending, return_when=FIRST_COMPLETED)
    for future in done:
        yield pending.pop(future), future.result()
