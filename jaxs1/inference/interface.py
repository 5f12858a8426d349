"""What all models that answer prompts implement, and how many prompts are answered concurrently.

This file does not know what prompts and answers are.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Protocol, TypeVar

from jaxs1.config import UserError

K = TypeVar("K")
P = TypeVar("P")
A = TypeVar("A")
P_in = TypeVar("P_in", contravariant=True)
A_out = TypeVar("A_out", covariant=True)


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


class Model(Protocol[P_in, A_out]):
    """A model that answers prompts."""

    @property
    def parallel(self) -> int:
        """Number of prompts that it takes concurrently."""

    def answer(self, prompt: P_in, /) -> A_out:
        """The answer to one prompt; called from several threads.

        Raises:
            NoAnswer: the model did not answer.
            UserError: the model cannot be used at all, which the user can fix.
        """

    def close(self) -> None:
        """Release all resources; pending calls of `answer` raise `NoAnswer`."""


def answer_all(
    model: Model[P, A],
    prompts: Iterable[tuple[K, P]],
    may_start: Callable[[P], bool] = lambda _: True,
) -> Generator[tuple[K, A | NoAnswer]]:
    """Answer prompts, at most `model.parallel` at a time; then close the model.

    Args:
        model: Model that answers
        prompts: Keys and prompts; taken one by one as answers arrive
        may_start: Whether a prompt may start now. While it may not, pending answers are waited for;
            if there are none, the work ends

    Yields:
        Key and answer, or the reason why there is none, as they arrive

    Raises:
        UserError: from the model; from `prompts`, once all pending prompts have been answered.
    """

    def answer(prompt: P) -> A | NoAnswer:
        try:
            return model.answer(prompt)
        except NoAnswer as failure:
            return failure

    pending: dict[Future[A | NoAnswer], K] = {}
    broken: list[UserError] = []
    with ThreadPoolExecutor(model.parallel) as workers:
        try:
            for key, prompt in _until_broken(prompts, broken):
                while not (starts := may_start(prompt)) and pending:
                    yield from _finished(pending)
                if not starts:
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
        raise broken[0]


def _until_broken(items: Iterable[P], broken: list[UserError]) -> Iterator[P]:
    """Items until there is an error, which is put into `broken`: pending answers are not lost."""
    try:
        yield from items
    except UserError as error:
        broken.append(error)


def _finished(pending: dict[Future[A | NoAnswer], K]) -> Iterator[tuple[K, A | NoAnswer]]:
    """Wait for at least one answer, and remove all that have arrived."""
    done, _ = wait(pending, return_when=FIRST_COMPLETED)
    for future in done:
        yield pending.pop(future), future.result()
