"""How many decode steps an engine runs before it delivers tokens and admits requests."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable

from jaxs1.decoding.base_engine import BaseEngine, Steps
from jaxs1.decoding.outputs import StreamOutput

#: Number of runs that the estimates are made from.
MEMORY = 32
#: Maximum share of the time of a run that its overhead may take.
OVERHEAD = 0.1


class Pace:
    """Steps an engine: events come every `latency` seconds, and overhead stays below a tenth.

    The time of a run is taken as `overhead + steps x step`, from the fastest of the shortest and of
    the longest runs: a machine that others use too makes some arbitrarily slow, and none faster.

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
        self._runs: deque[tuple[int, float]] = deque(maxlen=MEMORY)
        self._estimate = (0.0, 0.0)
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
        if engine.num_steps and not engine.num_prefilled:
            self.record(engine.num_steps, seconds)
        self._on_run(seconds, engine, outputs)
        return outputs

    def record(self, steps: int, seconds: float) -> None:
        """Learn from a run."""
        self._runs.append((steps, seconds))
        (few, quick), (many, slow) = (
            min(run for run in self._runs if run[0] == extreme)
            for extreme in (min(self._runs)[0], max(self._runs)[0])
        )
        step = (slow - quick) / (many - few) if many > few else slow / many
        step = min(max(step, 0.0), slow / many)
        self._estimate = (max(0.0, quick - step * few), step)

    def estimate(self) -> tuple[float, float]:
        """Overhead of a run and time of a step [s]; 0 before the first run."""
        return self._estimate

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
