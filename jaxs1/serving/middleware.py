"""Around every request, as plain ASGI: key, number of connections, ids, errors, log.

No `BaseHTTPMiddleware`: it hides from a handler that its client has left.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import logging
import re
import time
import uuid
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jaxs1.serving.errors import ApiError, internal_error

#: Paths that need no key.
OPEN_PATHS = ("/health", "/ping", "/live", "/", "/playground.js", "/playground.css")
#: Paths whose requests wait in the queue.
GENERATING_PATHS = ("/v1/chat/completions", "/v1/completions")
#: Maximum number of requests at the same time, the short ones included.
MAX_REQUESTS = 1024
log = logging.getLogger("jaxs1.serve")


class Guard:
    """Checks requests before the application sees them, and makes errors of what it raises.

    Args:
        app: application
        keys: keys that clients may send; empty: none is needed
        check_room: raises `ApiError` if no further request can be accepted
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str], check_room: Callable[[], None]):
        self._app, self._check_room = app, check_room
        self._digests = [_digest(key) for key in keys]
        self._inside = 0
        self._names = (f"{uuid.uuid4().hex[:12]}-{i}" for i in itertools.count(1))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        name = _given_id(scope) or next(self._names)
        begin, status = time.monotonic(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", name.encode())]
            await send(message)

        self._inside += 1
        try:
            self._check(scope)
            if scope["path"] in GENERATING_PATHS and scope["method"] == "POST":
                self._check_room()  # before anything that costs time
            await self._app(scope, receive, send_with_id)
        except ApiError as error:
            await _reply(error, scope, receive, send_with_id, begun=bool(status))
        except Exception:
            log.exception("request %s failed", name)
            await _reply(internal_error(), scope, receive, send_with_id, begun=bool(status))
        finally:
            self._inside -= 1
            seconds = time.monotonic() - begin
            log.debug("%s %s %s %d %.3f s", name, scope["method"], scope["path"], status, seconds)

    def _check(self, scope: Scope) -> None:
        if self._inside > MAX_REQUESTS:
            raise ApiError(503, "too many requests at a time; retry later", "overloaded",
                           retry_after=5)  # fmt: skip
        if not self._digests or scope["path"] in OPEN_PATHS or scope["method"] == "OPTIONS":
            return
        given = _digest(_key(scope))
        if not any([hmac.compare_digest(given, known) for known in self._digests]):  # noqa: C419
            raise ApiError(401, "the API key is missing or wrong; send it as a Bearer token",
                           "invalid_api_key")  # fmt: skip


async def _reply(
    error: ApiError, scope: Scope, receive: Receive, send: Send, *, begun: bool
) -> None:
    if not begun:
        response = JSONResponse(error.body(), error.status, error.headers())
        await response(scope, receive, send)


def _headers(scope: MutableMapping[str, Any]) -> dict[bytes, str]:
    return {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}


def _key(scope: Scope) -> str:
    headers = _headers(scope)
    bearer = headers.get(b"authorization", "")
    if bearer[:7].lower() == "bearer ":
        return bearer[7:].strip()
    return headers.get(b"x-api-key", "")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "replace")).digest()


def _given_id(scope: Scope) -> str | None:
    given = _headers(scope).get(b"x-request-id", "")
    return given if re.fullmatch(r"[\w.-]{1,64}", given) else None
