"""Stop working for a client that has left, however it is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from jaxs1.serving.running import Running

EVENT_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}


class EventStream(Response):
    """Sends the events of a request, and closes it when they end or the client leaves.

    Args:
        running: request
        headers: additional headers
    """

    def __init__(self, running: Running, headers: Mapping[str, str]):
        super().__init__(status_code=200)
        self.running = running
        del self.headers["content-length"]
        for name, value in {**EVENT_HEADERS, **headers}.items():
            self.headers[name] = value

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        try:
            head = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
            await send(head)
            await while_connected(self._send_events(send), receive)
        finally:
            self.running.close()

    async def _send_events(self, send: Send) -> None:
        async for data in self.running.events():
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def header_value(text: str) -> str:
    """A text without characters that a header must not have."""
    return "".join(c if " " <= c <= "~" else "?" for c in text)


async def while_connected(work: Coroutine[Any, Any, None], receive: Receive) -> bool:
    """Await some work; cancel it if the client leaves. Whether the work was done."""
    task, left = asyncio.create_task(work), asyncio.create_task(_disconnect(receive))
    try:
        await asyncio.wait((task, left), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            return False
        task.result()
        return True
    finally:
        task.cancel()
        left.cancel()
        await asyncio.gather(task, left, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
