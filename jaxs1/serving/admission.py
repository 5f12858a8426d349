"""Whether a request may come in: a bounded queue, and when a retry makes sense."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

from jaxs1.serving.errors import ApiError

#: Bounds of Retry-After [s].
SOONEST, LATEST = 1, 60
#: Weight of the past in the mean time between two finished sequences.
MEMORY = 0.9


@dataclass
class Admission:
    """Counts the sequences inside, from admission to their end. Used in one event loop only.

    Args:
        capacity: sequences that are decoded at the same time
        max_waiting: sequences that may wait in addition
        max_waiting_tokens: prompt tokens of requests without a first token
    """

    capacity: int
    max_waiting: int
    max_waiting_tokens: int
    inside: int = 0
    waiting_tokens: int = 0
    _interval: float = 0.0
    _last: float | None = None

    def enter(self, sequences: int, prompt_tokens: int) -> None:
        """Admit a request.

        Raises:
            ApiError: the queue is full
        """
        self.check(sequences, prompt_tokens)
        self.inside += sequences
        self.waiting_tokens += prompt_tokens

    def check(self, sequences: int = 1, prompt_tokens: int = 0) -> None:
        """Raise what `enter` would; before the prompt is rendered, so refusals cost nothing."""
        full = self.inside and self.inside + sequences > self.capacity + self.max_waiting
        long = self.waiting_tokens and (
            self.waiting_tokens + prompt_tokens > self.max_waiting_tokens
        )
        if full or long:
            what = "prompt tokens" if long else "sequences"
            raise ApiError(
                429,
                f"the queue is full ({self.inside} sequences, {self.waiting_tokens} prompt "
                f"tokens): too many {what}; retry later",
                "queue_full",
                retry_after=self.retry_after(),
            )

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Count a request whose prompt is being rendered as one sequence."""
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    def begun(self, prompt_tokens: int) -> None:
        """A request has its first token."""
        self.waiting_tokens -= prompt_tokens

    def leave(self, sequences: int) -> None:
        """A request has ended, one way or another."""
        self.inside -= sequences
        now = time.monotonic()
        if self._last is not None:
            spent = (now - self._last) / max(1, sequences)
            self._interval = MEMORY * self._interval + (1 - MEMORY) * spent
        self._last = now

    def retry_after(self) -> int:
        """Seconds until about half of the queue is gone."""
        seconds = self._interval * max(1, self.inside - self.capacity) / 2
        return min(max(math.ceil(seconds), SOONEST), LATEST)
