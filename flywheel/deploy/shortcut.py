"""The short way from Serve's HTTP server in a replica to the replica's own door.

On Serve's way each request is wrapped in two tasks that watch for a client that goes away, a semaphore, contexts and
metrics of Serve's own: they take several times what a decision takes (`python -m experiments.bench_serve`). A decision
is over before anybody could cancel it, quotas bound the load, and the door has metrics of its own. So the outermost
middleware of Serve's server, which Serve lets one name (RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH), hands requests of
the API to the door directly; everything else, and all of it where the variable isn't set, goes Serve's way.

The first request goes Serve's way, too: it shows under which path Serve has the application.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from starlette.middleware import Middleware

if TYPE_CHECKING:  # Serve's proxies import this, too, and have no use for NumPy
    from flywheel.deploy.door import Door, Receive, Scope, Send

_API = "/v1/"
_doors: dict[asyncio.AbstractEventLoop, _Opened] = {}
"""A policy's replica's door by the loop that its service runs on; whatever else Serve runs has none."""


class _Opened:
    """A door, and the path under which Serve has it, None until a request came by."""

    def __init__(self, door: Door) -> None:
        self.door = door
        self.root: str | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that came Serve's way."""
        if scope["type"] == "http":
            self.root = scope.get("root_path", "")
        await self.door(scope, receive, send)


def open_to(door: Door) -> _Opened:
    """Let requests that reach Serve's server on the running loop go to a door from now on; return Serve's way to it."""
    opened = _doors[asyncio.get_running_loop()] = _Opened(door)
    return opened


def middlewares() -> list[Middleware]:
    """Return what Serve's HTTP servers are wrapped in; Serve calls this in each process that has one."""
    return [Middleware(_Shortcut)]


class _Shortcut:
    """The middleware."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        opened = _doors.get(asyncio.get_running_loop()) if scope["type"] == "http" else None
        if opened is None or opened.root is None or not scope["path"].startswith(opened.root + _API):
            await self._app(scope, receive, send)
        else:
            scope["root_path"] = opened.root
            await opened.door(scope, receive, send)
