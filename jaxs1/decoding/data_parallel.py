"""Data parallelism: engines with the same weights on different devices share the requests."""

from __future__ import annotations

from collections.abc import Sequence

from jaxs1.decoding.base_engine import ALL_STEPS, BaseEngine, Load, Steps
from jaxs1.decoding.controls import SequenceLimits
from jaxs1.decoding.engine import Engine
from jaxs1.decoding.outputs import StreamOutput
from jaxs1.decoding.params import Request


class DataParallelEngine(BaseEngine):
    """Several engines; each request goes to the one with the fewest unfinished completions.

    Args:
        engines: at least one; equal but for their devices
    """

    def __init__(self, engines: Sequence[Engine]):
        self.engines = list(engines)
        self.tokenizer, self.context = engines[0].tokenizer, engines[0].context
        # for each engine: its own number of a request -> the number here; -> unfinished completions
        self._numbers: list[dict[int, int]] = [{} for _ in engines]
        self._left: list[dict[int, int]] = [{} for _ in engines]

    def submit(self, request: Request, longest: int | None = None) -> int:
        """See `BaseEngine`."""
        loads = [sum(left.values()) for left in self._left]
        chosen = loads.index(min(loads))
        number = self.engines[chosen].submit(request, longest)
        self._numbers[chosen][number] = self.submitted
        self._left[chosen][number] = request.n
        self.submitted += 1
        return self.submitted - 1

    def check(self, request: Request) -> SequenceLimits:
        """See `BaseEngine`."""
        return self.engines[0].check(request)

    def cancel(self, number: int) -> None:
        """See `BaseEngine`."""
        for engine, left, own in self._find(number):
            engine.cancel(own)
            del left[own]

    def end_thinking(self, number: int) -> bool:
        """See `BaseEngine`."""
        return any(engine.end_thinking(own) for engine, _, own in self._find(number))

    def load(self) -> Load:
        """See `BaseEngine`."""
        return Load(*map(sum, zip(*(engine.load() for engine in self.engines), strict=True)))

    @property
    def busy(self) -> bool:
        """See `BaseEngine`."""
        return any(engine.busy for engine in self.engines)

    def begin(self, steps: Steps = ALL_STEPS) -> None:
        """See `BaseEngine`. All devices work at the same time."""
        for engine in self.engines:
            engine.begin(steps)

    def end(self) -> list[StreamOutput]:
        """See `BaseEngine`."""
        outputs = []
        for engine, numbers, left in zip(self.engines, self._numbers, self._left, strict=True):
            for output in engine.end():
                if output.completion is not None:
                    left[output.request] -= 1
                    if not left[output.request]:
                        del left[output.request]
                outputs.append(output._replace(request=numbers[output.request]))
        self.num_steps = max(engine.num_steps for engine in self.engines)
        return outputs

    def _find(self, number: int) -> list[tuple[Engine, dict[int, int], int]]:
        """The engine that has an unfinished request, its table of them, and its own number."""
        tables = zip(self.engines, self._numbers, self._left, strict=True)
        return [
            (engine, left, own)
            for engine, numbers, left in tables
            for own in left
            if numbers[own] == number
        ]
