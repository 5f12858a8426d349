"""How many decode steps an engine runs before it delivers tokens and admits requests."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

from jaxs1.decoding.base_engine import BaseEngine, Steps
from jaxs1.decoding.outputs import StreamOutput

#: Weight of the past in the estimates, per run of steps.
MEMORY = 0.95
#: Maximum share of the time of a run that its overhead may take.
OVERHEAD = 0.1


class Pace:
    """Steps an engine: events come every `latency` seconds, and overhead stays below a tenth.

    Seconds of a run are fitted as `overhead + steps x step`, newer runs weighing more.

    Args:
        latency: seconds between two events of a stream, at most
        most: maximum number of steps per run
        on_run: called after each run, in the engine's thread, with its seconds and its outputs
    """

    def __init__(
        self,
        latency: float,
        most: int,
        on_run: Callable[[float, BaseEngine, list[StreamOutput]], None] = lambda *_: None,
    ):
        self.latency, self.most, self._on_run = latency, most, on_run
        self._sums = [0.0] * 5  # weights, steps, seconds, steps^2, steps x seconds
        self._lock = threading.Lock()
        self._started: float | None = None
        self.longest = 0.0

    def step(self, engine: BaseEngine) -> list[StreamOutput]:
        """One run of the engine; for `AsyncEngine`."""
        load = engine.load()
        start = time.monotonic()
        with self._lock:
            self._started = start
        outputs = engine.step(Steps(self.steps(), self.fewest(), eager=load.waiting > 0))
        seconds = time.monotonic() - start
        with self._lock:
            self._started = None
            self.longest = max(self.longest, seconds)
        if not load.waiting:
            self.record(engine.num_steps, seconds)
        self._on_run(seconds, engine, outputs)
        return outputs

    def record(self, steps: int, seconds: float) -> None:
        """Learn from a run."""
        new = (1.0, steps, seconds, steps * steps, steps * seconds)
        if steps:
            self._sums = [MEMORY * s + x for s, x in zip(self._sums, new, strict=True)]

    def estimate(self) -> tuple[float, float]:
        """Overhead of a run and time of a step [s]."""
        n, x, y, xx, xy = self._sums
        if not n:
            return 0.0, 0.0
        spread = n * xx - x * x
        step = (n * xy - x * y) / spread if spread > 1e-9 * xx else y / x
        step = min(max(step, 0.0), y / x)
        return (y - step * x) / n, step

    def steps(self) -> int:
        """Steps of the next run."""
        overhead, step = self.estimate()
        if not step:
            return self.most
        return self._clamp(max(self.latency - overhead, overhead * (1 / OVERHEAD - 1)) / step)

    def fewest(self) -> int:
        """Steps of a run that gives sequences their first tokens."""
        overhead, step = self.estimate()
        return self._clamp(overhead * (1 / OVERHEAD - 1) / step if step else 2)

    def running_for(self) -> float:
        """Seconds since the current run began; 0 if none is running."""
        with self._lock:
            return 0.0 if self._started is None else time.monotonic() - self._started

    def _clamp(self, steps: float) -> int:
        return min(max(math.ceil(steps), 2), self.most)
