"""A server as a process on this machine, and a plain asyncio client of it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxs1.decoding.scheduler import Limits

CHAT = "/v1/chat/completions"
ROWS, WAITING, CONTEXT = 16, 64, 512
LIMITS = Limits(max_num_seqs=ROWS, max_seq_len=CONTEXT)


@dataclass
class Seen:
    """What a client saw of one request.

    Args:
        status: HTTP status
        seconds: from the request to the end of the reply
        first: to the first text; None: there was none
        gaps: between two events [s]
        thinking: summary of each choice that is complete
        usage: of the reply
        headers: of the reply
        data: body that is no stream, and the error of one that is
        answered: from the request's last byte to the reply's first line [s]
    """

    status: int = 0
    seconds: float = 0.0
    first: float | None = None
    gaps: list[float] = field(default_factory=list)
    thinking: list[dict[str, Any]] = field(default_factory=list)
    content: str = ""
    usage: dict[str, Any] = field(default_factory=dict)
    headers: str = ""
    data: bytes = b""
    answered: float = 0.0
    done: bool = False

    @property
    def retry_after(self) -> int:
        """Seconds after which the server wants a retry; 0: it does not say."""
        found = re.search(r"retry-after: (\d+)", self.headers)
        return int(found[1]) if found else 0


class Server:
    """A server process.

    Args:
        model: folder
        options: of the command
        context: maximum length of a sequence
        before: Python that its process runs first
    """

    def __init__(self, model: str, *options: str, context: int = CONTEXT, before: str = ""):
        limits = ("--limits.max_num_seqs", str(ROWS), "--limits.max_seq_len", str(context))
        code = f"{before}\nimport sys\nfrom jaxs1.serve import main\nsys.exit(main(sys.argv[1:]))"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, "--model", model, "--port", "0", *limits, *options],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if line.startswith("listening on "):
                self.port = int(line.rsplit(":", 1)[1])
            if line.startswith("ready on "):
                break
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    async def ask(
        self,
        body: dict[str, Any] | bytes,
        *,
        path: str = CHAT,
        leave_after: int | None = None,
    ) -> Seen:
        """Send a request and read its reply, an event at a time.

        Args:
            body: JSON object or bytes
            path: route
            leave_after: close the connection after this number of events
        """
        seen, begin = Seen(), time.monotonic()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 22)
        try:
            writer.write(_http(body, path))
            await writer.drain()
            sent = time.monotonic()
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            seen.answered = time.monotonic() - sent
            seen.status, seen.headers = int(head.split()[1]), head
            if "text/event-stream" not in head:
                seen.data = await reader.read()
            else:
                await _read_events(reader, seen, begin, leave_after)
        finally:
            writer.close()
        seen.seconds = time.monotonic() - begin
        return seen

    async def hold(self, body: dict[str, Any], release: asyncio.Event) -> bool:
        """Request a stream and read nothing of it before `release`; whether it is complete."""
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(connection, ("127.0.0.1", self.port))
        await loop.sock_sendall(connection, _http(body, CHAT))
        await release.wait()
        data = bytearray()
        while part := await loop.sock_recv(connection, 1 << 16):
            data += part
        connection.close()
        return b"data: [DONE]" in data

    async def trickle(self) -> int:
        """Send a body a byte at a time; the status of the reply."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(_http(b" " * 1000, CHAT).removesuffix(b" " * 1000))
        head = asyncio.create_task(reader.readline())
        while not head.done():
            writer.write(b" ")
            await asyncio.wait((head,), timeout=0.5)
        writer.close()
        return int((await head).split()[1])

    async def metric(self, name: str) -> float:
        """The value of a metric, 0 if there is none yet."""
        seen = await self.ask(b"", path="/metrics")
        lines = seen.data.decode().splitlines()
        return sum(float(x.rsplit(" ", 1)[1]) for x in lines if x.startswith(name))

    def memory(self) -> float:
        """Resident memory [MB]."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def cpu(self) -> float:
        """Time that all cores have spent on the process [s]."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self) -> int:
        """SIGTERM; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def _http(body: dict[str, Any] | bytes, path: str) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    method = "POST" if data or path == CHAT else "GET"
    head = (
        f"{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
        f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


async def _read_events(
    reader: asyncio.StreamReader, seen: Seen, begin: float, leave_after: int | None
) -> None:
    newest, count = begin, 0
    while line := await reader.readline():
        if not line.startswith(b"data: "):
            continue
        if line.startswith(b"data: [DONE]"):
            seen.done = True
            return
        event, now = json.loads(line[6:]), time.monotonic()
        if "error" in event:
            seen.data = line
        count += 1
        if leave_after is not None and count > leave_after:
            return
        seen.usage = event.get("usage") or seen.usage
        for choice in event.get("choices", ()):
            delta = choice["delta"]
            seen.content += delta.get("content") or ""
            if delta.get("reasoning") or delta.get("content"):
                if seen.first is None:
                    seen.first = now - begin
                else:
                    seen.gaps.append(now - newest)
                newest = now
            if choice["finish_reason"]:
                seen.thinking.append(choice["thinking"])


async def clients(server: Server, count: int, each: int, make: Callable[[int], Any]) -> list[Seen]:
    """The replies to `count` clients that send `each` requests one after the other."""

    async def one(client: int) -> list[Seen]:
        return [await server.ask(make(client * each + i)) for i in range(each)]

    return [seen for some in await asyncio.gather(*map(one, range(count))) for seen in some]
