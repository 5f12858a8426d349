"""Several engines with the same weights on different devices, which share the requests."""

from __future__ import annotations

from collections.abc import Sequence

from jaxs1.decoding.base_engine import BaseEngine, StreamOutput
from jaxs1.decoding.engine import Engine
from jaxs1.decoding.outputs import Request


class DataParallelEngine(BaseEngine):
    """Data parallelism: each request goes to the engine that has the fewest.

    Args:
        engines: at least one, alike but for their devices
    """

    def __init__(self, engines: Sequence[Engine]):
        self.engines = list(engines)
        self.tokenizer, self.context = engines[0].tokenizer, engines[0].context
        self._numbers: list[dict[int, int]] = [{} for _ in engines]  # theirs to ours
        self._left: list[dict[int, int]] = [{} for _ in engines]  # completions that are to come

    def submit(self, request: Request, longest: int | None = None) -> int:
        """See `BaseEngine`."""
        loads = [sum(left.values()) for left in self._left]
        chosen = loads.index(min(loads))
        theirs = self.engines[chosen].submit(request, longest)
        self._numbers[chosen][theirs] = self.submitted
        self._left[chosen][theirs] = request.n
        self.submitted += 1
        return self.submitted - 1

    @property
    def busy(self) -> bool:
        """See `BaseEngine`."""
        return any(engine.busy for engine in self.engines)

    def step(self) -> list[StreamOutput]:
        """See `BaseEngine`. All devices work at the same time."""
        for engine in self.engines:
            engine.begin()
        events = []
        for engine, numbers, left in zip(self.engines, self._numbers, self._left, strict=True):
            for event in engine.end():
                if event.completion is not None:
                    left[event.request] -= 1
                    if not left[event.request]:
                        del left[event.request]
                events.append(event._replace(request=numbers[event.request]))
        return events
