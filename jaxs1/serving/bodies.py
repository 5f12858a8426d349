"""Read the body of a request: in bounded time and memory."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import Request

from jaxs1.serving.config import ServeConfig
from jaxs1.serving.errors import ApiError
from jaxs1.serving.protocol import parse_json


async def read_body(request: Request, config: ServeConfig) -> dict[str, Any]:
    """The JSON object of a request.

    Raises:
        ApiError: not JSON, too large, or too slow
    """
    kind = request.headers.get("content-type", "application/json").split(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(
            415, f"content-type={kind[:100]}: must be application/json", "unsupported_media_type"
        )
    try:
        async with asyncio.timeout(config.body_timeout):
            data = await _read(request, config.max_body)
    except TimeoutError:
        raise ApiError(
            408, f"body: did not arrive within {config.body_timeout:g} s", "body_timeout"
        ) from None
    return parse_json(data)


async def _read(request: Request, most: int) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise ApiError(413, f"body: must be at most {most} bytes", "body_too_large")
        parts.append(part)
    return b"".join(parts)
