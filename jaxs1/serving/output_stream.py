"""Outputs of the engine's thread as an asynchronous stream in the server's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from jaxs1.decoding.async_engine import AsyncEngine
from jaxs1.decoding.outputs import StreamOutput, TokenLog
from jaxs1.decoding.params import Request


class Mailbox:
    """Calls from other threads into the event loop; one wake-up for all that come meanwhile."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._calls: list[Callable[[], object]] = []

    def put(self, call: Callable[[], object]) -> None:
        """Let the loop call a function soon; from any thread."""
        with self._lock:
            self._calls.append(call)
            is_first = len(self._calls) == 1
        if is_first:
            with contextlib.suppress(RuntimeError):  # the loop has been closed
                self._loop.call_soon_threadsafe(self._empty)

    def _empty(self) -> None:
        with self._lock:
            calls, self._calls = self._calls, []
        for call in calls:
            call()


class OutputStream:
    """The outputs of some requests that are answered together.

    What has not been read yet is merged, so a slow reader costs no more memory than the tokens of
    its completions, and the engine never waits for a reader.

    Args:
        engine: engine that completes the requests
        requests: requests
        mailbox: of the event loop
    """

    def __init__(self, engine: AsyncEngine, requests: Sequence[Request], mailbox: Mailbox):
        self._engine, self._mailbox = engine, mailbox
        self._new = asyncio.Event()
        self._error: Exception | None = None
        self._unread: dict[tuple[int, int], StreamOutput] = {}
        self._futures: list[Future[Any]] = []
        for i, request in enumerate(requests):
            future = engine.submit(request, partial(self._receive, i))
            future.add_done_callback(self._wake)
            self._futures.append(future)

    async def get(self, timeout: float) -> dict[tuple[int, int], StreamOutput]:
        """New outputs by request and sample; empty after `timeout` seconds without any.

        Raises:
            Exception: what the engine failed with, or the error of `fail`
        """
        if not self._new.is_set():
            timer = asyncio.get_running_loop().call_later(timeout, self._new.set)
            try:
                await self._new.wait()
            finally:
                timer.cancel()
        self._new.clear()
        if self._error is not None:
            raise self._error
        unread, self._unread = self._unread, {}
        if not unread:
            for future in self._futures:
                if future.done() and not future.cancelled() and (error := future.exception()):
                    raise error
        return unread

    async def end_thinking(self) -> bool:
        """Close the thoughts; whether any was still open."""
        ends = [asyncio.wrap_future(self._engine.end_thinking(f)) for f in self._futures]
        return any(await asyncio.gather(*ends))

    def fail(self, error: Exception) -> None:
        """Let the reader's next `get` raise an error."""
        self._error = error
        self._new.set()

    def close(self) -> None:
        """Cancel what is not complete."""
        for future in self._futures:
            future.cancel()

    def _receive(self, request: int, output: StreamOutput) -> None:
        """Called in the engine's thread."""
        self._mailbox.put(partial(self._merge, request, output))

    def _wake(self, _: object) -> None:
        self._mailbox.put(self._new.set)

    def _merge(self, request: int, output: StreamOutput) -> None:
        key = (request, output.sample)
        if key in self._unread:
            log = TokenLog()
            log.extend(self._unread[key].new_tokens)
            log.extend(output.new_tokens)
            output = output._replace(new_tokens=log)
        self._unread[key] = output
        self._new.set()
