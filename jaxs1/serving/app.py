"""Routes of the API."""

from __future__ import annotations

import asyncio
import importlib.metadata
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, PlainTextResponse, Response

from jaxs1.serving import protocol, requests
from jaxs1.serving.bodies import read_body
from jaxs1.serving.config import ServeConfig
from jaxs1.serving.errors import ApiError, bad_request, internal_error
from jaxs1.serving.middleware import Guard
from jaxs1.serving.requests import Job
from jaxs1.serving.running import Running
from jaxs1.serving.service import Service
from jaxs1.serving.streaming import EventStream, header_value, while_connected

#: Status in the log for a client that has left: nginx's.
CLIENT_LEFT = 499
VERSION = importlib.metadata.version("jaxs1")
PLAYGROUND = Path(__file__).parent / "playground"
#: Path -> file and type; no path of a request is ever joined to a folder.
FILES = {
    "/": ("index.html", "text/html"),
    "/playground.js": ("playground.js", "text/javascript"),
    "/playground.css": ("playground.css", "text/css"),
}
PAGE_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
STATUSES = {
    400: "the request is wrong",
    401: "the key is missing or wrong",
    404: "there is no such model",
    405: "the method is not allowed",
    408: "the body took too long to arrive",
    413: "the body is too large",
    415: "the body is not JSON",
    429: "the queue is full",
    500: "the server failed",
    503: "the server is not ready",
    504: "the request took too long",
}
BODIES = {
    "/v1/chat/completions": protocol.ChatBody,
    "/v1/completions": protocol.CompletionBody,
    "/v1/chat/completions/control": protocol.ControlBody,
    "/tokenize": protocol.TokenizeBody,
    "/detokenize": protocol.DetokenizeBody,
}


def make_app(service: Service) -> Any:
    """The ASGI application of a service."""
    app: Any = FastAPI(
        title="jaxs1", version=VERSION, docs_url=None, redoc_url=None,
        responses={status: _described(text) for status, text in STATUSES.items()},
    )  # fmt: skip
    api = _Api(service)
    for path, body in BODIES.items():
        app.add_api_route(
            path, api.handlers[path], methods=["POST"], openapi_extra=_body_schema(body)
        )
    for path in ("/v1/models", "/v1/models/{name}", "/tokenizer_info", "/version", "/live"):
        app.add_api_route(path, api.handlers[path], methods=["GET"])
    for path in ("/health", "/ping"):
        app.add_api_route(path, api.health, methods=["GET"])
    if service.config.metrics:
        app.add_api_route(
            "/metrics", api.metrics, methods=["GET"], response_class=PlainTextResponse
        )
    if service.config.playground:
        for path in FILES:
            app.add_api_route(path, _file(path), methods=["GET"], include_in_schema=False)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _internal_error)
    app.openapi = lambda: _openapi(app)
    wrapped: Any = Guard(app, service.config.keys, service.check_room)
    if service.config.cors:
        wrapped = CORSMiddleware(
            wrapped,
            allow_origins=service.config.cors,
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type", "x-api-key", "x-request-id"],
        )
    return wrapped


class _Api:
    """Handlers of all routes."""

    def __init__(self, service: Service):
        self.service, self.config = service, service.config
        self.handlers: dict[str, Any] = {
            "/v1/chat/completions": self.chat,
            "/v1/completions": self.complete,
            "/v1/chat/completions/control": self.control,
            "/tokenize": self.tokenize,
            "/detokenize": self.detokenize,
            "/tokenizer_info": self.tokenizer_info,
            "/v1/models": self.models,
            "/v1/models/{name}": self.model,
            "/version": self.version,
            "/live": self.live,
        }

    async def chat(self, request: Request) -> Response:
        return await self._answer(request, requests.chat_job)

    async def complete(self, request: Request) -> Response:
        return await self._answer(request, requests.completion_job)

    async def control(self, request: Request) -> Response:
        body = protocol.check(protocol.ControlBody, await self._body(request))
        running = self.service.running.get(body.id)
        if running is None:
            return _control(False, f"id={body.id[:100]!r}: no such request is running")
        if body.action == "reasoning_end":
            ended = await running.stream.end_thinking()
            return _control(ended, "the thought was closed" if ended else "it was not thinking")
        if body.action == "cancel":
            running.stream.fail(ApiError(400, "the request was cancelled", "cancelled"))
            return _control(True, "the request was cancelled")
        raise bad_request(f"action={body.action[:40]!r}: must be reasoning_end or cancel", "action")

    async def tokenize(self, request: Request) -> Response:
        self.service.check_ready()
        raw = await self._body(request)
        body = protocol.check(protocol.TokenizeBody, raw)
        if (body.prompt is None) == (body.messages is None):
            raise bad_request("prompt: give either prompt or messages", "prompt")
        make = partial(requests.token_ids, body, raw, self.config, self._engine)
        ids = await self.service.render(make)
        context = self._engine.context
        return JSONResponse({"tokens": ids, "count": len(ids), "max_model_len": context})

    async def detokenize(self, request: Request) -> Response:
        self.service.check_ready()
        body = protocol.check(protocol.DetokenizeBody, await self._body(request))
        size = len(self._engine.tokenizer)
        if wrong := [i for i in body.tokens if i >= size]:
            raise bad_request(f"tokens: {wrong[0]} is not below {size}", "tokens")
        text = await asyncio.to_thread(self._engine.tokenizer.decode, body.tokens)
        return JSONResponse({"prompt": text})

    async def tokenizer_info(self) -> Response:
        self.service.check_ready()
        tokenizer = self._engine.tokenizer
        names = ("bos_token", "eos_token", "pad_token", "unk_token", "chat_template")
        info = {name: getattr(tokenizer, name, None) for name in names}
        return JSONResponse({"tokenizer_class": type(tokenizer).__name__, **info})

    async def models(self) -> Response:
        data = [self._describe(name) for name in self.config.names]
        return JSONResponse({"object": "list", "data": data})

    async def model(self, name: str) -> Response:
        return JSONResponse(self._describe(protocol.check_model(name, self.config.names)))

    async def version(self) -> Response:
        return JSONResponse({"version": VERSION, "system_fingerprint": self.service.fingerprint})

    async def live(self) -> Response:
        return JSONResponse({"status": self.service.state})

    async def health(self) -> Response:
        status = 200 if self.service.state == "ready" else 503
        return JSONResponse({"status": self.service.state}, status)

    async def metrics(self) -> Response:
        text = await asyncio.to_thread(self.service.metrics.text)
        return Response(text, media_type="text/plain; version=0.0.4")

    @property
    def _engine(self) -> Any:
        return self.service.engine

    async def _body(self, request: Request) -> dict[str, Any]:
        return await read_body(request, self.config)

    async def _answer(
        self, request: Request, make: Callable[[Mapping[str, Any], ServeConfig, Any], Job]
    ) -> Response:
        """Answer a request that generates."""
        raw = await self._body(request)
        running = await self.service.start(partial(make, raw, self.config, self._engine))
        job = running.reply.job
        ignored = header_value(",".join(job.ignored)[:500])
        headers = {"x-ignored-fields": ignored} if ignored else {}
        if job.stream:
            return EventStream(running, headers)
        try:
            if not await while_connected(_collect(running), request.receive):
                return Response(status_code=CLIENT_LEFT)
            return JSONResponse(running.reply.whole(), headers=headers)
        finally:
            running.close()

    def _describe(self, name: str) -> dict[str, Any]:
        config = self.config
        loaded = self.service.state in ("ready", "draining")
        return {
            "id": name,
            "object": "model",
            "created": 0,
            "owned_by": "jaxs1",
            "max_model_len": self._engine.context if loaded else None,
            "thinking": {
                "default": config.thinking.max,
                "ceiling": config.ceiling,
                "efforts": config.efforts,
                "preset": config.thinking.preset,
            },
        }


async def _collect(running: Running) -> None:
    async for _ in running.parts():
        pass


def _control(success: bool, message: str) -> Response:
    return JSONResponse({"success": success, "message": message})


def _file(path: str) -> Callable[..., Any]:
    name, kind = FILES[path]

    async def read() -> Response:
        return Response((PLAYGROUND / name).read_bytes(), media_type=kind, headers=PAGE_HEADERS)

    return read


async def _api_error(_: Request, error: Any) -> Response:
    return JSONResponse(error.body(), error.status, error.headers())


async def _internal_error(_: Request, __: Exception) -> Response:
    """In place of Starlette's plain text; `Guard` writes the log."""
    error = internal_error()
    return JSONResponse(error.body(), error.status)


async def _http_error(request: Request, error: Any) -> Response:
    method, path = request.method, request.url.path[:100]
    text = {404: f"{path}: no such route", 405: f"{method} {path}: method not allowed"}
    message = text.get(error.status_code, str(error.detail))
    code = "not_found" if error.status_code == 404 else "invalid_request_error"
    body = ApiError(error.status_code, message, code).body()
    return JSONResponse(body, error.status_code, error.headers)  # Allow, for 405


def _described(text: str) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": ERROR_SCHEMA}}}


def _body_schema(body: type) -> dict[str, Any]:
    reference = {"$ref": f"#/components/schemas/{body.__name__}"}
    content = {"application/json": {"schema": reference}}
    return {"requestBody": {"required": True, "content": content}}


def _openapi(app: FastAPI) -> dict[str, Any]:
    """The description of the API, with the schemas of all bodies."""
    description = get_openapi(title=app.title, version=app.version, routes=app.routes)
    models: Any = [(body, "validation") for body in BODIES.values()]
    _, schemas = models_json_schema(models, ref_template="#/components/schemas/{model}")
    description.setdefault("components", {}).setdefault("schemas", {}).update(schemas["$defs"])
    for operations in description["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
    return description
