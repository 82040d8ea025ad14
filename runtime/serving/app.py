"""The endpoint: paths, and what becomes of a call to them.

    POST /v1/completions           GET /v1/models      GET /health     GET /openapi.json
    POST /v1/chat/completions                          GET /metrics

Only the paths under /v1 ask for a key. Errors have OpenAI's shape everywhere.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import uuid4

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from parctl.runtime.inference.chat import TemplateError
from parctl.runtime.serving.answers import DONE, Envelope, error_body, event, to_bytes
from parctl.runtime.serving.ask import Ask, BadRequestError, Limits, Reader
from parctl.runtime.serving.bodies import (
    Body,
    ChatBody,
    CompletionBody,
    SamplingBody,
    first_fault,
)
from parctl.runtime.serving.calls import calling
from parctl.runtime.serving.guard import JSON, Gate, HttpError, Keys, read_body
from parctl.runtime.serving.hub import Hub, RefusedError, ReplicaLostError
from parctl.runtime.serving.metrics import Metrics
from parctl.runtime.serving.openapi import openapi_document

STALL_S = 30.0  # that a client may leave its events unread
T = TypeVar("T")
BodyType = TypeVar("BodyType", bound=Body)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """All that calls share."""

    hub: Hub
    reader: Reader
    keys: Keys
    gate: Gate
    metrics: Metrics
    model_name: str
    max_body_bytes: int
    max_samples: int
    created: int

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/completions", self.completions, methods=["POST"]),
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Route("/v1/models", self.models, methods=["GET"]),
                Route("/v1/models/{name:path}", self.model, methods=["GET"]),
                Route("/health", self.health, methods=["GET"]),
                Route("/metrics", self.show_metrics, methods=["GET"]),
                Route("/openapi.json", self.openapi, methods=["GET"]),
            ],
            exception_handlers={
                HttpError: self._tell,
                HTTPException: self._tell_http,
                Exception: self._tell_fault,
            },
        )

    async def completions(self, request: Request) -> Response:
        return await self._answer(request, CompletionBody, self.reader.completion)

    async def chat(self, request: Request) -> Response:
        return await self._answer(request, ChatBody, self.reader.chat)

    async def models(self, request: Request) -> Response:
        self.keys.client(request)
        return self._json(request, 200, {"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        self.keys.client(request)
        self._refuse_model(request.path_params["name"])
        return self._json(request, 200, self._model())

    async def health(self, request: Request) -> Response:
        status = "ready" if self.hub.ready else "starting"
        status = "draining" if self.gate.closed else status
        return self._json(request, 200 if status == "ready" else 503, {"status": status})

    async def show_metrics(self, request: Request) -> Response:
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def openapi(self, request: Request) -> Response:
        limits = self.hub.limits
        vocab_size = None if limits is None else limits.vocab_size
        document = openapi_document(
            self.model_name, keyed=bool(self.keys.digests), vocab_size=vocab_size
        )
        return Response(to_bytes(document), media_type=JSON)

    async def _answer(
        self,
        request: Request,
        kind: type[BodyType],
        read: Callable[[BodyType, Limits], Ask],
    ) -> Response:
        client = self.keys.client(request)
        self.gate.enter()
        inside = True
        try:
            body = parse(kind, await read_body(request, self.max_body_bytes))
            assert isinstance(body, SamplingBody)
            self._refuse_model(body.model)
            # in a thread: a long prompt, or a hostile schema, must not stop everybody's events
            ask = await asyncio.to_thread(read, body, self._limits())
            envelope = Envelope(
                id=f"{'chatcmpl' if ask.chat else 'cmpl'}-{uuid4().hex}",
                created=int(time.time()),
                model=self.model_name,
                ask=ask,
            )
            if ask.stream:
                inside = False  # it leaves when it ends
                return self._count(request, Stream(self, envelope, client))
            return self._json(request, 200, await self._whole(request, envelope, client))
        except (BadRequestError, TemplateError) as error:
            param, code = getattr(error, "param", None), getattr(error, "code", None)
            raise HttpError(400, error.message, param=param, code=code) from error
        except RefusedError as error:
            raise HttpError(400, error.message) from error
        except ReplicaLostError as error:
            raise lost(error) from error
        except ClientDisconnect as error:
            raise HttpError(499, "the client is gone") from error
        finally:
            if inside:
                self.gate.leave()

    async def _whole(self, request: Request, envelope: Envelope, client: str) -> dict[str, Any]:
        with calling(self.hub, envelope.ask, self.reader.tokenizer, client=client) as call:
            answers = await unless_gone(call.finish(self.metrics), request.receive)
            return envelope.whole(answers)

    def _limits(self) -> Limits:
        hello = self.hub.limits
        if hello is None:
            raise HttpError(
                503, "the engine is starting", "server_error", code="starting",
                headers={"retry-after": "2"},
            )  # fmt: skip
        return Limits(
            vocab_size=hello.vocab_size,
            max_context=hello.max_context,
            max_sequences=hello.max_sequences,
            max_samples=self.max_samples,
        )

    def _refuse_model(self, name: str) -> None:
        if name != self.model_name:
            raise HttpError(
                404,
                f"there is no model `{name[:100]}`, only `{self.model_name}`",
                param="model",
                code="model_not_found",
            )

    def _model(self) -> dict[str, Any]:
        return {
            "id": self.model_name,
            "object": "model",
            "created": self.created,
            "owned_by": "parctl",
        }

    def _json(
        self, request: Request, status: int, content: Any, headers: dict[str, str] | None = None
    ) -> Response:
        response = Response(to_bytes(content), status, headers=headers, media_type=JSON)
        return self._count(request, response)

    def _count(self, request: Request, response: T, status: int = 200) -> T:
        status = response.status_code if isinstance(response, Response) else status
        # by route: a path of the client's own would make a new series each time
        route = request.scope.get("route")
        path = getattr(route, "path", "other")
        self.metrics.calls.labels(path, status).inc()
        return response

    async def _tell(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HttpError)
        body = error_body(error.message, error.kind, param=error.param, code=error.code)
        return self._json(request, error.status, body, error.headers)

    async def _tell_http(self, request: Request, error: Exception) -> Response:
        """Answer unknown paths and methods, which Starlette itself refuses."""
        assert isinstance(error, HTTPException)
        message = f"{error.detail}: {request.method} {request.url.path[:200]}"
        body = error_body(message, "invalid_request_error")
        return self._json(request, error.status_code, body, dict(error.headers or {}))

    async def _tell_fault(self, request: Request, error: Exception) -> Response:
        body = error_body("a fault of the server, written to its log", "server_error")
        return self._json(request, 500, body)


class Stream(Response):
    """Answers as server-sent events, as they are made. It is inside the gate from the start."""

    def __init__(self, endpoint: Endpoint, envelope: Envelope, client: str) -> None:
        super().__init__()
        self._endpoint, self._envelope, self._client = endpoint, envelope, client

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint, envelope = self._endpoint, self._envelope
        try:
            with calling(
                endpoint.hub, envelope.ask, endpoint.reader.tokenizer, client=self._client
            ) as call:
                headers = [
                    (b"content-type", b"text/event-stream; charset=utf-8"),
                    (b"cache-control", b"no-cache"),
                    (b"x-accel-buffering", b"no"),
                ]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                with suppress(ClientDisconnect, OSError, TimeoutError):
                    await unless_gone(self._send_events(call, send), receive)
        except ReplicaLostError as error:
            await tell_lost(error, send)
        finally:
            endpoint.gate.leave()

    async def _send_events(self, call: Any, send: Send) -> None:
        envelope = self._envelope

        async def give(content: bytes, *, more: bool = True) -> None:
            message = {"type": "http.response.body", "body": content, "more_body": more}
            async with asyncio.timeout(STALL_S):
                await send(message)

        for first in envelope.first_events(len(call.answers)):
            await give(event(first))
        try:
            async for index, part, offset in call.parts(self._endpoint.metrics):
                content = envelope.part_event(index, part, offset)
                if content is not None:
                    await give(event(content))
        except (ReplicaLostError, RefusedError) as error:
            await give(event(error_body(error.message, "server_error")), more=False)
            return
        if envelope.ask.include_usage:
            await give(event(envelope.usage_event(call.answers)))
        await give(DONE, more=False)


async def tell_lost(error: ReplicaLostError, send: Send) -> None:
    """Answer a stream that could not begin."""
    content = to_bytes(error_body(error.message, "server_error", code="engine_lost"))
    headers = [(b"content-type", JSON.encode()), (b"retry-after", b"5")]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": content})


def lost(error: ReplicaLostError) -> HttpError:
    return HttpError(
        503, error.message, "server_error", code="engine_lost", headers={"retry-after": "5"}
    )


async def unless_gone(work: Awaitable[T], receive: Receive) -> T:
    """Await `work`, and give it up with ClientDisconnect when the client goes."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(gone())
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


def parse(kind: type[BodyType], content: bytes) -> BodyType:
    """Check a body. Raises HttpError that names the first field at fault."""
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        message, param = first_fault(error)
        raise HttpError(400, message, param=param) from error
