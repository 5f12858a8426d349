"""The face of an engine: requests in, completions out.

`submit` queues a request, `step` runs one chunk and says what was written; `run` and `stream` are
these two in a loop.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from jaxs1.decoding.outputs import Completion, Request, TokenLog


class StreamOutput(NamedTuple):
    """What a chunk added to one sequence.

    request, sample: which one; written: the new tokens; completion: with the last event of a
    sequence
    """

    request: int
    sample: int
    written: TokenLog
    completion: Completion | None


class BaseEngine:
    """What completes requests: one engine, or several that share the work."""

    tokenizer: Any
    context: int
    submitted = 0

    def submit(self, request: Request, longest: int | None = None) -> int:
        """Queue a request; returns its number. What is wrong with it comes as an event.

        Args:
            request: what is asked
            longest: prompt [tokens] of the batch, for thinking.max auto; None: this request's
        """
        raise NotImplementedError

    def step(self) -> list[StreamOutput]:
        """Admit what fits, run a part of its prefill and one chunk; returns what was written."""
        raise NotImplementedError

    @property
    def busy(self) -> bool:
        """Whether anything is left to do."""
        raise NotImplementedError

    def run(self, requests: Iterable[Request]) -> Iterator[tuple[int, list[Completion]]]:
        """Complete requests.

        Yields:
            number of a request in the order given and its n completions, as they become whole;
            what cannot run has finish_reason "error".
        """
        gathered: dict[int, list[Completion]] = {}
        requests = list(requests)
        for event in self.stream(requests):
            if event.completion is not None:
                whole = gathered.setdefault(event.request, [])
                whole.append(event.completion)
                if len(whole) == requests[event.request].n:
                    whole = gathered.pop(event.request)
                    yield event.request, sorted(whole, key=lambda c: c.index)

    def stream(self, requests: Iterable[Request]) -> Iterator[StreamOutput]:
        """Complete requests; yields what each chunk wrote. Numbers count from 0 in this call."""
        first = self.submitted
        requests = list(requests)
        longest = max((len(r.prompt_ids) for r in requests), default=0)
        for request in requests:
            self.submit(request, longest)
        while self.busy:
            for event in self.step():
                yield event._replace(request=event.request - first)
