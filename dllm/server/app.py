"""The ASGI application: who may ask, how much and how many at once. What is answered is in `dllm.server.endpoints`."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from typing import Any, TypeAlias, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from dllm.codec import Codec
from dllm.runner import EngineRunner
from dllm.server import build
from dllm.server.conversations import Conversation
from dllm.server.endpoints import Result, Service
from dllm.server.fields import Fields, load_json
from dllm.server.guard import AccessRules, Guard
from dllm.server.meters import Endpoint, Outcome, RequestMeter, outcome_of
from dllm.server.parse import parse_chat, parse_completion, parse_edit, parse_fim, unknown_model
from dllm.server.problems import ApiError, from_exception
from dllm.server.settings import ServerSettings
from dllm.spec import ModelSpec
from webserving.metrics import CONTENT_TYPE

log = logging.getLogger(__name__)

T = TypeVar("T")
Answering: TypeAlias = Callable[[Request, Fields, str, RequestMeter], Coroutine[Any, Any, Result]]
"""Answers a request with its body and its id; what goes wrong before a stream's first chunk is raised."""

CONVERSATION = "x-conversation"
"""Names a conversation, so that the prefix cache keeps it together. The request's `user` does as well."""


def create_app(
    runner: EngineRunner[Any],
    codec: Codec,
    spec: ModelSpec,
    settings: ServerSettings | None = None,
    *,
    clock: Callable[[], float] = time.monotonic,
    wall_clock: Callable[[], float] = time.time,
) -> Starlette:
    """The application over a running engine. It does not close the runner. Its `state.service` is told when the server is to stop.

    Args:
        clock: The engine's clock.
        wall_clock: Unix time, for the `created` of answers.
    """
    settings = settings or ServerSettings()
    service = Service(runner, codec, spec, settings, clock, wall_clock)
    door = _Door(service, settings, int(wall_clock()))
    routes = [
        Route("/healthz", door.health, methods=["GET"]),
        Route("/metrics", door.guarded(door.metrics), methods=["GET"]),
        Route("/v1/models", door.guarded(door.models), methods=["GET"]),
        Route("/v1/models/{name:path}", door.guarded(door.one_model), methods=["GET"]),
        Route(build.PATHS["chat"], door.answering(door.chat, "chat", "messages"), methods=["POST"]),
        Route(build.PATHS["text"], door.answering(door.completion, "text", "prompt"), methods=["POST"]),
        Route(build.PATHS["fim"], door.answering(door.fim, "fim", "prompt"), methods=["POST"]),
        Route(build.PATHS["edit"], door.answering(door.edit, "edit", "messages"), methods=["POST"]),
        Route(build.PATHS["apply"], door.answering(door.apply, "apply", "messages"), methods=["POST"]),
        *[Route(f"{path}/models", door.guarded(door.models), methods=["GET"]) for path in build.PATHS.values()],
    ]
    rules = AccessRules(settings.host, bool(settings.api_keys), settings.cors_origins)
    middleware = [Middleware(Guard, rules=rules, tell=service.meters.refused)]
    if settings.cors_origins:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(settings.cors_origins),
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                expose_headers=["x-request-id", "retry-after"],
            )
        )
    handlers: dict[Any, Any] = {HTTPException: _http_problem}
    app = Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)
    app.state.service = service
    return app


async def _http_problem(request: Request, error: HTTPException) -> Response:
    """Unknown paths and methods, in the same shape as every other error."""
    code = "not_found" if error.status_code == 404 else "method_not_allowed" if error.status_code == 405 else None
    problem = ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}", code=code)
    return JSONResponse(problem.body(), error.status_code, headers=error.headers)


class EventStream(Response):
    """Server-sent events; the client's going ends the work behind them, and an error is the last of them."""

    media_type = "text/event-stream"

    def __init__(self, chunks: AsyncGenerator[bytes, None], meter: RequestMeter) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._chunks, self._meter = chunks, meter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_gone(receive, self._send(send))
        except (ClientDisconnect, OSError):
            log.debug("a client left its stream")

    async def _send(self, send: Send) -> None:
        outcome: Outcome | None = None
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            while outcome is None:
                try:
                    chunk = await anext(self._chunks)
                except StopAsyncIteration:
                    chunk, outcome = b"", "completed"
                except Exception as error:
                    chunk, outcome = _problem(error), outcome_of(error)
                await send({"type": "http.response.body", "body": chunk, "more_body": outcome is None})
        finally:
            self._meter.over(outcome or "cancelled")
            await self._chunks.aclose()


def _problem(error: Exception) -> bytes:
    problem = from_exception(error, "prompt")
    if problem.status >= 500:
        log.error("a stream failed", exc_info=error)
    return build.sse(problem.body())


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Do the work; cancel it when the client goes away first. The request's body must have been read.

    Raises:
        ClientDisconnect: If the client went away.
    """

    async def until_gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, going = asyncio.ensure_future(work), asyncio.ensure_future(until_gone())
    try:
        await asyncio.wait((working, going), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect()
        return working.result()
    finally:
        for task in (working, going):
            task.cancel()
        await asyncio.gather(working, going, return_exceptions=True)


class _Door:
    """Checks what all requests have in common."""

    def __init__(self, service: Service, settings: ServerSettings, created: int) -> None:
        self._service, self._settings, self._created = service, settings, created

    # --- guards -------------------------------------------------------------------------------------------------------

    def guarded(
        self, answer: Callable[[Request, str], Awaitable[Response]], field: str = "model"
    ) -> Callable[[Request], Awaitable[Response]]:
        """An endpoint behind the key, with a request id and errors in OpenAI's shape.

        Args:
            field: What a caller would shorten if it is too long.
        """

        async def endpoint(request: Request) -> Response:
            request_id = f"req_{uuid.uuid4().hex}"
            try:
                self._check_key(request)
                response = await answer(request, request_id)
            except ClientDisconnect:
                return Response(status_code=499)  # nobody reads it
            except Exception as error:
                problem = from_exception(error, field)
                self._service.meters.refused(problem)
                if problem.status >= 500:
                    log.error("%s %s failed", request_id, request.url.path, exc_info=error)
                response = JSONResponse(problem.body(), problem.status, headers=problem.headers)
            response.headers["x-request-id"] = request_id
            return response

        return endpoint

    def answering(self, answer: Answering, endpoint: Endpoint, field: str) -> Callable[[Request], Awaitable[Response]]:
        """An endpoint that reads a JSON object and answers with one, or with server-sent events."""

        async def read(request: Request, request_id: str) -> Response:
            meter = self._service.meters.request(endpoint)
            with meter.failing():
                asked = load_json(await self._body(request))
                result = await unless_gone(request.receive, answer(request, asked, request_id, meter))
            if not isinstance(result, dict):
                return EventStream(result, meter)
            meter.over("completed")
            return JSONResponse(result)

        return self.guarded(read, field)

    def _check_key(self, request: Request) -> None:
        if not self._settings.api_keys:
            return
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        # Every key is compared, and in constant time: how long a refusal takes tells nothing.
        matches = [hmac.compare_digest(key.strip().encode(), known.encode()) for known in self._settings.api_keys]
        if scheme.lower() != "bearer" or not any(matches):
            raise ApiError(
                401,
                "Expected an API key: Authorization: Bearer KEY",
                kind="authentication_error",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )

    async def _body(self, request: Request) -> bytes:
        most = self._settings.max_body_bytes
        chunks, size = [], 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > most:
                raise ApiError(
                    413,
                    f"the body is larger than {most} bytes",
                    code="request_too_large",
                    headers={"connection": "close"},
                )
            chunks.append(chunk)
        return b"".join(chunks)

    # --- endpoints ----------------------------------------------------------------------------------------------------

    async def health(self, request: Request) -> Response:
        return self._service.health()

    async def metrics(self, request: Request, request_id: str) -> Response:
        return Response(self._service.meters.exposition(), media_type=CONTENT_TYPE)

    async def models(self, request: Request, request_id: str) -> Response:
        names = self._settings.names
        data = [build.model_body(name, self._created, self._service.spec, self._settings) for name in names]
        return JSONResponse({"object": "list", "data": data})

    async def one_model(self, request: Request, request_id: str) -> Response:
        name = request.path_params["name"]
        if name not in self._settings.names:
            raise unknown_model(name, self._settings)
        return JSONResponse(build.model_body(name, self._created, self._service.spec, self._settings))

    async def chat(self, request: Request, body: Fields, request_id: str, meter: RequestMeter) -> Result:
        asked = parse_chat(body, self._settings)
        return await self._service.chat(asked, _conversation(request, asked.user, request_id), meter)

    async def edit(self, request: Request, body: Fields, request_id: str, meter: RequestMeter) -> Result:
        asked = parse_edit(body, self._settings)
        conversation = _conversation(request, asked.user, request_id)
        return await self._service.chat(asked, conversation, meter, kind="edit.completion")

    async def apply(self, request: Request, body: Fields, request_id: str, meter: RequestMeter) -> Result:
        asked = parse_edit(body, self._settings, "apply")
        conversation = _conversation(request, asked.user, request_id)
        return await self._service.chat(asked, conversation, meter, kind="apply.completion")

    async def completion(self, request: Request, body: Fields, request_id: str, meter: RequestMeter) -> Result:
        asked = parse_completion(body, self._settings)
        return await self._service.complete(asked, _conversation(request, asked.user, request_id), meter)

    async def fim(self, request: Request, body: Fields, request_id: str, meter: RequestMeter) -> Result:
        asked = parse_fim(body, self._settings)
        return await self._service.complete(asked, _conversation(request, asked.user, request_id), meter)


def _conversation(request: Request, user: str | None, request_id: str) -> Conversation:
    """The prefix cache's name for what belongs together: the header's, the request's user, or the request itself."""
    header = request.headers.get(CONVERSATION)
    if header:
        return Conversation(f"conversation {header[:256]}", is_named=True)
    return Conversation(f"user {user[:256]}", is_named=True) if user else Conversation(request_id, is_named=False)
