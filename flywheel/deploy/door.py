"""The HTTP door: a bare ASGI app that checks token, scope, size and shape before anything else happens."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import msgspec

from flywheel.deploy.service import Service
from flywheel.deploy.traces import Call
from flywheel.deploy.wire import RejectedError, parse, parse_spans
from flywheel.errors import Refused
from flywheel.tokens import Scope as TokenScope

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Handle = Callable[[bytes, Call], Awaitable[tuple[int, Any]]]


class Door:
    """Answers POST /v1/act, /v1/end and /v1/spans, GET /v1/policy and, without a token, GET /v1/health.

    Each route names the scopes one of which a token has to have.
    """

    def __init__(self, service: Service) -> None:
        """Open the door to a service; the service starts and stops with ASGI's lifespan."""
        self._service = service
        self._routes: dict[str, tuple[str, tuple[TokenScope, ...], Handle]] = {
            "/v1/act": ("POST", ("act",), self._act),
            "/v1/end": ("POST", ("act",), self._end),  # who begins an episode has to be able to end it
            "/v1/spans": ("POST", ("ingest", "act"), self._spans),  # a client tells of its own episodes, too
            "/v1/policy": ("GET", ("read", "act"), self._policy),
            "/v1/health": ("GET", (), self._health),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection's request (ASGI 3)."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        if scope["type"] != "http":
            raise ValueError(f"This door speaks HTTP only, not {scope['type']}.")
        call, more = Call(came_at=self._service.clock()), list[tuple[bytes, bytes]]()
        try:
            status, answer = await self._answer(scope, receive, call)
        except RejectedError as error:
            status, answer, call.error = error.status, {"error": error.sentence, "field": error.field}, error.sentence
            if error.status == 401:
                more = [(b"www-authenticate", b"Bearer")]
            if error.wait_s:
                more = [(b"retry-after", str(math.ceil(error.wait_s)).encode())]
        except Refused as error:
            status, answer, call.error = 503, {"error": str(error), "field": ""}, str(error)
        body = msgspec.json.encode(answer)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *more]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
        if self._service.traces is not None and call.path:
            call.answered_at = self._service.clock()
            self._service.traces.answered(call)

    async def _answer(self, scope: Scope, receive: Receive, call: Call) -> tuple[int, Any]:
        path, method = scope["path"].removeprefix(scope.get("root_path", "")), scope["method"]
        if path not in self._routes:
            raise RejectedError(404, f"There is no {path}. Known: {', '.join(self._routes)}.")
        wanted, scopes, handle = self._routes[path]
        if method != wanted:
            raise RejectedError(405, f"{path} takes {wanted}, not {method}.")
        headers = dict(scope["headers"])
        if scopes:
            shown = headers.get(b"authorization", b"").decode("latin-1")
            self._service.rules.check(shown, scopes, call.came_at)
        if path in ("/v1/act", "/v1/end"):
            call.path, call.traceparent = path, headers.get(b"traceparent", b"").decode("latin-1")
        return await handle(await self._body(headers, receive), call)

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        limit = self._service.config.max_body
        too_long = RejectedError(413, f"The body is longer than {limit} bytes. Send fewer rows a request.")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > limit:
            raise too_long
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise RejectedError(400, "The client went away before its body was complete.")
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > limit:
                raise too_long
        return body

    async def _act(self, body: bytes, call: Call) -> tuple[int, Any]:
        call.request = parse(body, self._service.wire.act)
        call.answer = await self._service.act(call.request, call)
        return 200, call.answer

    async def _end(self, body: bytes, call: Call) -> tuple[int, Any]:
        call.request = parse(body, self._service.wire.end)
        call.answer = await self._service.end(call.request, call)
        return 200, call.answer

    async def _spans(self, body: bytes, _: Call) -> tuple[int, Any]:
        if self._service.traces is None:
            raise RejectedError(404, "No spans are kept here.")
        return 200, self._service.traces.tell(parse_spans(body))

    async def _policy(self, _: bytes, __: Call) -> tuple[int, Any]:
        return 200, self._service.status()

    async def _health(self, _: bytes, __: Call) -> tuple[int, Any]:
        digest = self._service.status()["digest"]
        if digest is None:
            raise RejectedError(503, "No policy is in service yet: none has passed the gate.")
        return 200, {"status": "ok", "digest": digest}

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                try:
                    await self._service.start()
                except Exception as error:  # ASGI wants it as a message; the server refuses to start with it
                    await send({"type": "lifespan.startup.failed", "message": f"{type(error).__name__}: {error}"})
                    return
                await send({"type": "lifespan.startup.complete"})
            else:
                await self._service.stop()
                await send({"type": "lifespan.shutdown.complete"})
                return
