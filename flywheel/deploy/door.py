"""The HTTP door: a bare ASGI app that checks token, scope, size and shape before anything else happens."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import parse_qs

from flywheel.deploy import wire
from flywheel.deploy.openapi import document
from flywheel.deploy.requests import Requests
from flywheel.deploy.routes import ROUTES, Route
from flywheel.deploy.service import Service
from flywheel.deploy.traces import Call
from flywheel.deploy.wire import Media, Reading, RejectedError, encode, media_of, parse, parse_spans
from flywheel.errors import Refused
from flywheel.records import Spec

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that was let in."""

    body: bytes
    media: Media
    """How the body is written."""
    call: Call
    name: str
    """What stands in the path in place of a {name}."""
    query: bytes
    root: str
    """Path under which the door is served."""

    def read(self, reading: Reading[T]) -> T:
        """Return the request in the body; raise RejectedError where it is none."""
        return parse(self.body, reading, self.media)


Handle = Callable[[Asked], Awaitable[Any]]


class Door:
    """Answers what the routing table lists."""

    def __init__(self, service: Service, requests: Requests | None = None) -> None:
        """Open the door to a service, which starts and stops with ASGI's lifespan; `requests` takes in each request."""
        self._service, self._requests = service, requests
        self._routes: Mapping[str, tuple[Route, Handle]] = {
            route.path: (route, getattr(self, f"_{route.name}")) for route in ROUTES
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection's request (ASGI 3)."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        if scope["type"] != "http":
            raise ValueError(f"This door speaks HTTP only, not {scope['type']}.")
        call, more = Call(came_at=self._service.clock()), list[tuple[bytes, bytes]]()
        headers, root = dict(scope["headers"]), scope.get("root_path", "")
        path = scope["path"].removeprefix(root)
        try:
            status, answer = 200, await self._answer(scope, path, root, headers, receive, call)
        except RejectedError as error:
            status, answer, call.error = error.status, {"error": error.sentence, "field": error.field}, error.sentence
            if error.status == 401:
                more = [(b"www-authenticate", b"Bearer")]
            if error.wait_s:
                more = [(b"retry-after", str(math.ceil(error.wait_s)).encode())]
        except Refused as error:
            status, answer, call.error = 503, {"error": str(error), "field": ""}, str(error)
        media = media_of(headers.get(b"accept", b""))
        body = encode(answer, media)
        more += [(b"content-type", media.encode()), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": more})
        await send({"type": "http.response.body", "body": body})
        call.answered_at = self._service.clock()
        if self._service.traces is not None and call.path:
            self._service.traces.answered(call)
        if self._requests is not None:
            self._requests.add(path, status, call.answered_at - call.came_at)

    async def _answer(
        self, scope: Scope, path: str, root: str, headers: dict[bytes, bytes], receive: Receive, call: Call
    ) -> Any:
        method = scope["method"]
        route, handle, name = self._find(path)
        if method != route.method:
            raise RejectedError(405, f"{path} takes {route.method}, not {method}.")
        if route.scopes:
            shown = headers.get(b"authorization", b"").decode("latin-1")
            self._service.rules.check(shown, route.scopes, call.came_at)
        if path in ("/v1/act", "/v1/end"):
            call.path, call.traceparent = path, headers.get(b"traceparent", b"").decode("latin-1")
        body = b"" if route.takes is None and method == "GET" else await self._body(headers, receive)
        media = media_of(headers.get(b"content-type", b""))
        return await handle(Asked(body, media, call, name, scope.get("query_string", b""), root))

    def _find(self, path: str) -> tuple[Route, Handle, str]:
        """Return what a path leads to, and what stands in place of a {name} in it."""
        if path in self._routes:
            return *self._routes[path], ""
        head, _, name = path.rpartition("/")
        for route, handle in self._routes.values():
            if name and route.path.endswith("}") and head == route.path.rpartition("/")[0]:
                return route, handle, name
        raise RejectedError(404, f"There is no {path}. Known: {', '.join(self._routes)}.")

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        limit = self._service.config.max_body
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > limit:
            raise _too_long(limit)
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise RejectedError(400, "The client went away before its body was complete.")
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > limit:
                raise _too_long(limit)
        return body

    async def _act(self, asked: Asked) -> wire.ActAnswer:
        call = asked.call
        call.request = asked.read(self._service.wire.act)
        answer = call.answer = await self._service.act(call.request, call)
        return answer

    async def _end(self, asked: Asked) -> wire.EndAnswer:
        call = asked.call
        call.request = asked.read(self._service.wire.end)
        answer = call.answer = await self._service.end(call.request, call)
        return answer

    async def _rewards(self, asked: Asked) -> wire.RewardsAnswer:
        return wire.RewardsAnswer(await self._service.reward(asked.read(wire.REWARDS)))

    async def _leases(self, asked: Asked) -> wire.LeasesAnswer:
        return wire.LeasesAnswer(self._service.lease(asked.read(wire.LEASES).num), self._service.config.max_body)

    async def _episodes(self, asked: Asked) -> wire.EpisodesAnswer:
        return await self._service.upload(asked.read(self._service.wire.episodes))

    async def _spans(self, asked: Asked) -> Any:
        if self._service.traces is None:
            raise RejectedError(404, "No spans are kept here.")
        return self._service.traces.tell(parse_spans(asked.body))

    async def _policy(self, _: Asked) -> wire.StatusAnswer:
        return wire.StatusAnswer(**self._service.status())

    async def _policies(self, asked: Asked) -> wire.PolicyAnswer:
        return await self._service.policy(asked.name)

    async def _key(self, _: Asked) -> wire.KeyAnswer:
        return self._service.key()

    async def _served(self, asked: Asked) -> wire.ServedAnswer:
        given = parse_qs(asked.query.decode("latin-1"), keep_blank_values=True).get("at")
        at = self._service.clock() if given is None else _number(given[-1], "at")
        found = await self._service.served(at)
        return wire.ServedAnswer(**dataclasses.asdict(found))

    async def _rollback(self, asked: Asked) -> wire.RollbackAnswer:
        return await self._service.rollback(asked.read(wire.ROLLBACK))

    async def _health(self, _: Asked) -> wire.HealthAnswer:
        digest = self._service.status()["digest"]
        if digest is None:
            raise RejectedError(503, "No policy is in service yet: none has passed the gate.")
        return wire.HealthAnswer("ok", digest)

    async def _openapi(self, asked: Asked) -> dict[str, Any]:
        return _document(self._service.spec, asked.root)

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


@lru_cache(maxsize=4)  # to make it takes as long as dozens of decisions, and anybody may ask
def _document(spec: Spec | None, root: str) -> dict[str, Any]:
    return document(ROUTES, spec, root)


def _too_long(limit: int) -> RejectedError:
    return RejectedError(413, f"The body is longer than {limit} bytes. Send fewer rows a request.")


def _number(text: str, field: str) -> float:
    """Return a number of a query; raise RejectedError (422) where it is none."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise RejectedError(422, f"{field}: Expected a finite number, got {text[:64]!r}.", field)
    return number
