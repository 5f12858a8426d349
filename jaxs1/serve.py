"""Serve a model with OpenAI's API: `python -m jaxs1.serve --model DIR --port 8000`.

The socket is open before the model is loaded; GET /health says when the server is ready. SIGTERM
lets running requests finish; a second one does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any

from jaxs1.config import UserError, parse, run_command
from jaxs1.serving.config import ServeConfig

COMMAND = "python -m jaxs1.serve"
#: Seconds after which a thread lets another one run Python. With the default of 5 ms, the engine's
#: thread and the event loop wait for each other longer than they work.
SWITCH_INTERVAL = 0.0005
#: Connections that the system accepts before we do.
BACKLOG = 2048
LOCAL = ("127.0.0.1", "::1", "localhost")
log = logging.getLogger("jaxs1.serve")


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status: 0 after SIGTERM, 1 if the engine failed."""
    config = parse(ServeConfig, argv, command=COMMAND)
    if not config.model:
        raise UserError("model='': must name the weights; give --model DIR or a hub id")
    try:
        import uvicorn
    except ImportError:
        raise UserError(
            "jaxs1.serve: needs fastapi, uvicorn and prometheus-client; "
            "install jaxs1 with the extra [serve]"
        ) from None
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    log.setLevel(logging.INFO)
    _announce(config)
    sys.setswitchinterval(SWITCH_INTERVAL)
    with _listen(config) as listener, asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_serve(config, listener, uvicorn))


def _loop_factory() -> Any:
    """uvloop's where it is installed, as in uvicorn; None: that of the standard library."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _listen(config: ServeConfig) -> socket.socket:
    """The open socket, before anything that takes time."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        return socket.create_server((config.host, config.port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise UserError(
            f"host={config.host}, port={config.port}: cannot be listened on ({error.strerror}); "
            "give another --port"
        ) from None


async def _serve(config: ServeConfig, listener: socket.socket, uvicorn: Any) -> int:
    from jaxs1.serving.app import make_app
    from jaxs1.serving.service import Service

    service = Service(config)
    settings = uvicorn.Config(
        make_app(service),
        log_level="warning",
        access_log=False,
        lifespan="off",
        backlog=BACKLOG,
        timeout_graceful_shutdown=5,
        h11_max_incomplete_event_size=64 << 10,
    )
    server = _Server(settings, service, listener)
    return await server.run()


def _announce(config: ServeConfig) -> None:
    """Say what was chosen for the user."""
    thinking, ceiling = config.thinking, config.ceiling
    log.info(
        "defaults of a request: thinking.max=%s, thinking.max_answer_tokens=%s, ceiling=%s, "
        "temperature=%g, efforts=%s",
        thinking.max, thinking.max_answer_tokens, "none" if ceiling is None else ceiling,
        config.sampling.temperature, config.efforts,
    )  # fmt: skip
    if config.host not in LOCAL and not config.keys:
        log.warning("warning: host=%s is reachable by others, and no api_key is set", config.host)


class _Server:
    """uvicorn, with signals that drain the service.

    Args:
        settings: uvicorn's
        service: service
        listener: open socket
    """

    def __init__(self, settings: Any, service: Any, listener: socket.socket):
        import uvicorn

        class Quiet(uvicorn.Server):
            """Leaves signals to us: uvicorn's own handlers refuse connections at once."""

            def capture_signals(self) -> Any:
                """Capture none."""
                return contextlib.nullcontext()

        self._server, self._service, self._listener = Quiet(settings), service, listener
        self._drain: asyncio.Task[None] | None = None

    async def run(self) -> int:
        """Serve until a signal or a failure; returns the exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        listening = asyncio.create_task(self._server.serve([self._listener]))
        opening = asyncio.create_task(self._open(listening))
        ended = asyncio.create_task(self._service.finished.wait())
        try:
            await asyncio.wait((listening, opening, ended), return_when=asyncio.FIRST_COMPLETED)
            if opening.done():
                opening.result()  # raises what is wrong with the model
                await asyncio.wait((listening, ended), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._server.should_exit = True
            await asyncio.gather(listening, return_exceptions=True)
            await self._service.close()
        if self._service.state == "failed" or not opening.done():
            os._exit(1 if self._service.state == "failed" else 0)  # a thread may still be busy
        return 0

    async def _open(self, listening: asyncio.Task[None]) -> None:
        while not self._server.started and not listening.done():
            await asyncio.sleep(0.01)
        if listening.done():
            return
        host, port = self._listener.getsockname()[:2]
        log.info("listening on http://%s:%d", host, port)
        await self._service.open()
        # what exists now lives as long as the process; a look through all of it takes 0.2 s
        gc.collect()
        gc.freeze()
        log.info("%s", self._service.description)
        log.info("ready on http://%s:%d", host, port)

    def _signalled(self) -> None:
        if self._drain is not None:
            os._exit(0)
        self._drain = asyncio.create_task(self._service.drain())


if __name__ == "__main__":
    run_command(main)
