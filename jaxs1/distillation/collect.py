"""All answers of a teacher: what is not stored yet is requested, within limits, with progress."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from jaxs1.config import UserError
from jaxs1.distillation.account import Account
from jaxs1.distillation.answers import Answer, Answers, Key
from jaxs1.distillation.teachers import Job
from jaxs1.inference.interface import Model, NoAnswer, answer_all

#: Smallest number of consecutive failures after which a teacher is given up.
PATIENCE = 4
SECONDS_BETWEEN_LINES = 20


@dataclass
class Failures:
    """Requests that were not answered.

    Args:
        patience: Number of consecutive failures that end the work
        reasons: Why each was not answered
        fatal: Why the work ended; empty: it did not
    """

    patience: int
    reasons: dict[Key, str] = field(default_factory=dict)
    fatal: str = ""
    _in_a_row: int = 0

    def add(self, key: Key, failure: NoAnswer, *, any_answer: bool) -> None:
        """Count a failure; a refused question is its own reason once any has been answered."""
        self.reasons[key] = str(failure)
        self._in_a_row += not (failure.refused and any_answer)
        if failure.fatal or self._in_a_row >= self.patience:
            self.fatal = str(failure)

    def interrupt(self) -> None:
        """An answer came: earlier failures were not those of the teacher."""
        self._in_a_row = 0


class _Recorded:
    """A teacher whose answers are stored by the thread that receives them.

    So those that were paid for are kept if the main thread is interrupted.
    """

    def __init__(self, teacher: Model[Job, Answer], answers: Answers) -> None:
        self._teacher, self._answers = teacher, answers
        self._running = set[Key]()
        self.parallel = teacher.parallel

    def answer(self, job: Job) -> Answer:
        self._running.add(job.key)
        try:
            answer = self._teacher.answer(job)
            self._answers.add(job.key, answer)
        finally:
            self._running.discard(job.key)
        return answer

    def close(self) -> None:
        if running := len(self._running):
            print(f"waiting for {running} requests that are under way", flush=True)
        self._teacher.close()


def collect(
    teacher: Model[Job, Answer], jobs: Sequence[Job], answers: Answers, account: Account
) -> Failures:
    """Request all jobs, in order; returns the failures. What is answered is in `answers`.

    The work ends early where `account` allows no further request, or the teacher is given up.

    Args:
        teacher: Teacher; it is closed at the end
        jobs: What to request; none of them is stored
        answers: Receives the answers
        account: Counts their tokens

    Raises:
        UserError: the teacher cannot be used; it does not report its usage, which a limit of the
            cost needs.
    """
    failures = Failures(max(PATIENCE, teacher.parallel))
    progress = Progress(len(jobs), account)

    def prompts() -> Iterator[tuple[Key, Job]]:
        for job in jobs:
            if failures.fatal:
                return
            yield job.key, job

    results = answer_all(_Recorded(teacher, answers), prompts(), account.may_start)
    try:
        for key, result in results:
            account.release(key)
            if isinstance(result, NoAnswer):
                failures.add(key, result, any_answer=bool(answers.stored))
            else:
                failures.interrupt()
                account.add(answers.stored[key])
                _require_usage(result, account)
            progress.show(failures)
    finally:
        results.close()  # stops the teacher now, not when the generator is collected
    return failures


def _require_usage(answer: Answer, account: Account) -> None:
    if account.max_cost is not None and None in (answer.prompt_tokens, answer.completion_tokens):
        raise UserError(
            f"max_cost={account.max_cost}: the teacher does not report its usage, so its cost is "
            "unknown; leave out --max_cost"
        )


class Progress:
    """Prints a line now and then: answers, tokens, dollars, time left.

    Args:
        total: Number of requests of this run
        account: Tokens and cost
    """

    def __init__(self, total: int, account: Account) -> None:
        self._total, self._account = total, account
        self._start = self._last = time.monotonic()
        self._done = 0

    def show(self, failures: Failures) -> None:
        """Count a request that has ended, and print a line if it is time."""
        self._done += 1
        now = time.monotonic()
        if now - self._last < SECONDS_BETWEEN_LINES and self._done < self._total:
            return
        self._last = now
        left = (now - self._start) / self._done * (self._total - self._done)
        failed = f", {len(failures.reasons):,} failed" if failures.reasons else ""
        print(
            f"  {self._done:,} of {self._total:,} answers{failed}; {usage_line(self._account)}; "
            f"{duration(left)} left",
            flush=True,
        )


def usage_line(account: Account) -> str:
    """Tokens and cost for people."""
    cost = f", ${account.cost:,.4f}" if account.price.input or account.price.output else ""
    return (
        f"{account.prompt_tokens:,} prompt tokens, {account.completion_tokens:,} of thinking and "
        f"answers{cost}"
    )


def duration(seconds: float) -> str:
    """A duration for people: 45 s, 12 min, 3 h 5 min."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
