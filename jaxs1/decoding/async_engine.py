"""An engine that serves many threads: one thread owns it and steps, others submit and wait.

engine = AsyncEngine(lambda: load_engine(config).engine)
completions = engine.submit(lambda tokenizer: Request(...)).result()
engine.close()
"""

from __future__ import annotations

import contextlib
import queue
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any

from jaxs1.decoding.base_engine import BaseEngine
from jaxs1.decoding.outputs import Completion, StreamOutput
from jaxs1.decoding.params import Request

#: A request, or how to make it once there is a tokenizer; runs in the engine's thread.
RequestSource = Request | Callable[[Any], Request]


class EngineClosed(RuntimeError):
    """The engine was closed before a request was complete."""


@dataclass(eq=False)
class _Ticket:
    """A submitted request.

    Args:
        source: request
        on_output: called with every output; None: not called
        future: receives the completions
        completions: those that are complete
        n: how many there will be
    """

    source: RequestSource
    on_output: Callable[[StreamOutput], None] | None
    future: Future[list[Completion]] = field(default_factory=Future)
    completions: list[Completion] = field(default_factory=list)
    n: int = 1

    def receive(self, output: StreamOutput) -> bool:
        """Pass an output on; whether it was the last one."""
        if self.on_output is not None:
            self.on_output(output)
        if output.completion is not None:
            self.completions.append(output.completion)
        if len(self.completions) < self.n:
            return False
        with contextlib.suppress(InvalidStateError):  # cancelled in the meantime
            self.future.set_result(sorted(self.completions, key=lambda c: c.index))
        return True

    def start(self, engine: BaseEngine, tickets: dict[int, _Ticket]) -> None:
        """Submit the request."""
        try:
            request = (
                self.source if isinstance(self.source, Request) else self.source(engine.tokenizer)
            )
        except Exception as error:
            _fail(self.future, error)
            return
        self.n = request.n
        tickets[engine.submit(request)] = self


@dataclass(eq=False)
class _Call:
    """A function that runs between two steps.

    Args:
        function: called with the engine and the numbers of unfinished requests
        future: receives its result
    """

    function: Callable[[BaseEngine, dict[int, _Ticket]], Any]
    future: Future[Any] = field(default_factory=Future)

    def start(self, engine: BaseEngine, tickets: dict[int, _Ticket]) -> None:
        """Call the function."""
        try:
            self.future.set_result(self.function(engine, tickets))
        except Exception as error:
            _fail(self.future, error)


def _fail(future: Future[Any], error: BaseException) -> None:
    with contextlib.suppress(InvalidStateError):
        future.set_exception(error)


class AsyncEngine:
    """Completes requests from any number of threads.

    Args:
        load: makes the engine; called in the engine's thread, with the first request
        step: runs the engine for some steps and returns their outputs; calls its second argument
            once the device is busy, which passes on the outputs of the previous steps
    """

    def __init__(
        self,
        load: Callable[[], BaseEngine],
        step: Callable[[BaseEngine, Callable[[], None]], list[StreamOutput]] = (
            lambda engine, meanwhile: engine.step(meanwhile=meanwhile)
        ),
    ):
        self._load, self._run_steps = load, step
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._inbox: queue.SimpleQueue[_Ticket | _Call | None] = queue.SimpleQueue()
        self._error: BaseException | None = None

    @property
    def error(self) -> BaseException | None:
        """Why the engine accepts no requests any more; None: it does."""
        return self._error

    def submit(
        self, request: RequestSource, on_output: Callable[[StreamOutput], None] | None = None
    ) -> Future[list[Completion]]:
        """Queue a request.

        Args:
            request: prompt and parameters, or a function that makes them from the tokenizer
            on_output: called in the engine's thread with every output; must return soon and not
                raise

        Returns:
            the n completions. Fails with what `request` or the engine raised, or with
            `EngineClosed`. Cancelling it cancels the request.
        """
        ticket = _Ticket(request, on_output)

        def cancel(engine: BaseEngine, tickets: dict[int, _Ticket]) -> None:
            for number in [n for n, other in tickets.items() if other is ticket]:
                engine.cancel(number)
                del tickets[number]

        future = self._put(ticket)
        future.add_done_callback(lambda done: done.cancelled() and self._put(_Call(cancel)))
        return future

    def call(self, function: Callable[[BaseEngine], Any]) -> Future[Any]:
        """Run a function between two steps, in the engine's thread; returns its result."""
        return self._put(_Call(lambda engine, _: function(engine)))

    def end_thinking(self, future: Future[list[Completion]]) -> Future[bool]:
        """Close the thought of a request, given by `submit`'s future; whether it was thinking."""

        def end(engine: BaseEngine, tickets: dict[int, _Ticket]) -> bool:
            numbers = [n for n, ticket in tickets.items() if ticket.future is future]
            return any(engine.end_thinking(number) for number in numbers)

        return self._put(_Call(end))

    def stream(self, request: RequestSource) -> Iterator[StreamOutput]:
        """Yield the outputs of one request as they come; raises what `submit`'s future would."""
        outputs: queue.SimpleQueue[StreamOutput | None] = queue.SimpleQueue()
        future = self.submit(request, outputs.put)
        future.add_done_callback(lambda _: outputs.put(None))
        try:
            while (output := outputs.get()) is not None:
                yield output
            future.result()
        finally:
            future.cancel()  # without effect once it is done

    def _put(self, new: _Ticket | _Call) -> Future[Any]:
        with self._lock:
            if self._error is not None:
                _fail(new.future, self._error)
                return new.future
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, daemon=True)
                self._thread.start()
            self._inbox.put(new)
        return new.future

    def close(self) -> None:
        """Stop the engine and wait for its thread; unfinished requests get `EngineClosed`."""
        with self._lock:
            self._error = self._error or EngineClosed("the engine was closed")
            thread, self._thread = self._thread, None
            self._inbox.put(None)
        if thread is not None:
            thread.join()

    def _serve(self) -> None:
        """Run the engine until `close`; a failure is the answer to all who wait, then and later."""
        tickets: dict[int, _Ticket] = {}
        try:
            self._step(tickets)
        except BaseException as error:
            traceback.clear_frames(error.__traceback__)  # which hold the engine and its memory
            with self._lock:
                self._error = error
        assert self._error is not None  # `close` has set it
        for ticket in (*tickets.values(), *self._left()):
            _fail(ticket.future, self._error)

    def _step(self, tickets: dict[int, _Ticket]) -> None:
        """Load the engine and step until `close`.

        Outputs are passed on while the device runs the next steps: whoever gets them needs the
        interpreter, and so does the preparation of a run.
        """
        engine = self._load()
        outputs: list[StreamOutput] = []

        def pass_on() -> None:
            for output in outputs:
                if output.request in tickets and tickets[output.request].receive(output):
                    del tickets[output.request]
            outputs.clear()

        while True:
            if not engine.busy:
                pass_on()
            if not self._take(engine, tickets):
                return
            outputs += self._run_steps(engine, pass_on)

    def _take(self, engine: BaseEngine, tickets: dict[int, _Ticket]) -> bool:
        """Submit what has come in, or wait while there is nothing to do; False: closed."""
        while True:
            try:
                new = self._inbox.get(block=not engine.busy)
            except queue.Empty:
                return True
            if new is None:
                return False
            if not new.future.cancelled():
                new.start(engine, tickets)

    def _left(self) -> Iterator[_Ticket | _Call]:
        """Requests and calls that nothing will take any more."""
        with contextlib.suppress(queue.Empty):
            while True:
                if (ticket := self._inbox.get_nowait()) is not None:
                    yield ticket
