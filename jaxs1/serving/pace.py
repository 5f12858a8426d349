"""How much an engine does before it delivers tokens and admits requests."""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import cache

from jaxs1.decoding.base_engine import BaseEngine, Steps
from jaxs1.decoding.buckets import PrefillShape
from jaxs1.decoding.outputs import StreamOutput
from jaxs1.decoding.prefill_batches import PrefillBudget

#: Number of runs that the estimates are made from.
MEMORY = 32
#: The same of runs with prefills of one size.
PREFILLS = 8
#: Share of `latency` for prefill.
PREFILL = 0.5
#: Number of runs of which most must have become slower to be believed.
NEWEST = 5
#: Maximum share of the time of a run that its overhead may take.
OVERHEAD = 0.1
#: Weight of the past in means of what varies from run to run.
PAST = 0.9


class Pace:
    """Steps an engine: events come every `latency` seconds, and overhead stays below a tenth.

    The time of a run is taken as `overhead + steps x step`, from the fastest of the shortest and of
    the longest runs: a machine that others use too makes some arbitrarily slow, and none faster.
    Prefill takes at most half of `latency` of a run, which bounds the pause of the streams.

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
        #: Processor time of this thread per run [s]: its overhead with admissions.
        self._host = 0.0
        #: Seconds of the newest prefills of each size.
        self._prefills: dict[PrefillShape, deque[float]] = {}
        #: Moving means of the steps and of the ends of sequences in a run.
        self._steps, self._ends = 0.0, 0.0
        self._lock = threading.Lock()
        self._started: float | None = None
        self.longest = 0.0

    def step(self, engine: BaseEngine, meanwhile: Callable[[], None]) -> list[StreamOutput]:
        """One run of the engine; for `AsyncEngine`."""
        steps = self.next(is_waiting=engine.load().waiting > 0)
        start, host = time.monotonic(), time.thread_time()
        with self._lock:
            self._started = start
        outputs = engine.step(steps, meanwhile)
        seconds = time.monotonic() - start
        with self._lock:
            self._started = None
            self.longest = max(self.longest, seconds)
        self._host = _mean(self._host, time.thread_time() - host)
        ends = sum(output.completion is not None for output in outputs)
        self.record(engine.num_steps, seconds - engine.prefill_seconds, ends=ends)
        self.record_prefill(engine.prefilled, engine.prefill_seconds)
        self._on_run(seconds, engine, outputs)
        return outputs

    def record(self, steps: int, seconds: float, *, ends: int = 0) -> None:
        """Learn from the decode steps of a run."""
        self._steps = _mean(self._steps, steps)
        self._ends = _mean(self._ends, ends)
        if steps:
            self._learn(steps, seconds)

    def record_prefill(self, shapes: Sequence[PrefillShape], seconds: float) -> None:
        """Learn from the prefills of a run, if all have one size."""
        if len(set(shapes)) == 1:
            known = self._prefills.setdefault(shapes[0], deque(maxlen=PREFILLS))
            known.append(seconds / len(shapes))

    def next(self, *, is_waiting: bool) -> Steps:
        """What the next run does.

        Args:
            is_waiting: whether sequences wait for rows or pages
        """
        steps = self.steps()
        return Steps(
            steps, min(self.fewest(), steps), self.eager() and is_waiting,
            PrefillBudget(PREFILL * self.latency, cache(self.prefill_cost)),
        )  # fmt: skip

    def estimate(self) -> tuple[float, float]:
        """Overhead of a run and time of a step [s]; 0 before the first run."""
        return self._estimate

    def steps(self) -> int:
        """Steps of the next run."""
        overhead, step = self.estimate()
        if not step:
            return self.most
        # a step with longer sequences takes longer at once
        newest = [(seconds - overhead) / steps for steps, seconds in list(self._runs)[-NEWEST:]]
        step = max(step, statistics.median(newest))
        return self._clamp(max(self.latency - overhead, overhead * (1 / OVERHEAD - 1)) / step)

    def fewest(self) -> int:
        """Steps of a run with prefill, or with first tokens of sequences."""
        overhead, step = self.estimate()
        overhead = max(overhead, self._host)
        return self._clamp(overhead * (1 / OVERHEAD - 1) / step if step else 2)

    def prefill_cost(self, shape: PrefillShape) -> float:
        """Seconds that a prefill takes, at most; infinite as long as nothing is known.

        A size that has never been seen takes at most as much more than a smaller one as it has more
        tokens, times its ratio of pages; so sizes grow step by step, from the smallest one.
        """
        return min(
            (
                min(seconds)
                * max(1.0, shape.tokens / known.tokens)
                * max(1.0, shape.pages / known.pages)
                for known, seconds in self._prefills.items()
                if known.scored == shape.scored
            ),
            default=math.inf,
        )

    def eager(self) -> bool:
        """Whether runs may stop where a sequence ends, to admit another one.

        Only if runs from one end to the next are long compared with their overhead: short
        completions in many rows end all the time.
        """
        _, step = self.estimate()
        return self._steps * step >= self._ends * self._host * (1 / OVERHEAD - 1)

    def running_for(self) -> float:
        """Seconds since the current run began; 0 if none is running."""
        with self._lock:
            return 0.0 if self._started is None else time.monotonic() - self._started

    def _learn(self, steps: int, seconds: float) -> None:
        """Tell overhead and steps of runs without prefill apart."""
        self._runs.append((steps, seconds))
        (few, quick), (many, slow) = (
            min(run for run in self._runs if run[0] == extreme)
            for extreme in (min(self._runs)[0], max(self._runs)[0])
        )
        step = (slow - quick) / (many - few) if many > few else slow / many
        step = min(max(step, 0.0), slow / many)
        self._estimate = (max(0.0, quick - step * few), step)

    def _clamp(self, steps: float) -> int:
        return min(max(math.ceil(steps), 2), self.most)


def _mean(past: float, new: float) -> float:
    """A moving mean."""
    return PAST * past + (1 - PAST) * new
