"""The outermost layer: who may come in, how much they may send, and what every answer carries."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import msgspec
from starlette.exceptions import HTTPException

from flywheel.errors import FlywheelError
from flywheel.page.access import Access, role_of, same_origin
from flywheel.tokens import Scope as TokenScope
from flywheel.trace.row import MAX_BODY

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

POLICY = "; ".join(
    (
        "default-src 'self'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "object-src 'none'",
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
API = "/api/"
SPANS = "/api/v1/travel/spans"
"""Where programs tell their spans: bodies as large as the policy's own door takes them."""
SESSION = "/api/v1/session"
"""Where a token is handed in: open to everybody, or nobody could."""


class Guard:
    """Refuses before anything is read: a strange Host or Origin, no token that may read, a large or unnamed body."""

    def __init__(self, app: App, access: Access, max_body: int, leave: Callable[[], None]) -> None:
        """Stand before an ASGI app; `leave` lets go of what it holds open, before its server ends."""
        self.leave = leave
        self._app, self._access, self._max_body = app, access, max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        path = scope["path"].removeprefix(scope.get("root_path", "").rstrip("/"))
        sender = _Sender(send, is_api=path.startswith(API))
        try:
            scopes = self._access.scopes(headers)
        except FlywheelError as error:  # the file that holds the tokens is damaged
            await sender.refuse(409, str(error))
            return
        scope.setdefault("state", {})["role"] = role_of(scopes)
        refusal = self._refusal(scope["method"], path, headers, scopes)
        if refusal is not None:
            await sender.refuse(*refusal)
            return
        await self._app(scope, self._counted(receive, self._most(path)), sender)

    def _refusal(
        self, method: str, path: str, headers: dict[str, str], scopes: tuple[TokenScope, ...]
    ) -> tuple[int, str] | None:
        if not self._access.is_named(headers.get("host", "")):
            return 421, "This page is for this machine alone: open it at 127.0.0.1 or localhost."
        if path.startswith(API) and path != SESSION and "read" not in scopes:
            if not scopes:
                return 401, "The page needs a token: paste the one in keys/page.token of the run directory."
            return 403, f"This token has the scope {' and '.join(scopes)}: the page takes one with the scope read."
        reads = method in ("GET", "HEAD")
        if not (same_origin(headers) or (reads and not path.startswith(API))):
            return 403, "Another page asked for this: only the page itself, or a program, may."
        if reads:
            return None
        if headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            return 415, "The body is no JSON: send it with Content-Type: application/json."
        length = headers.get("content-length", "0")
        if not re.fullmatch("[0-9]{1,18}", length) or int(length) > self._most(path):
            return 413, _too_large(self._most(path))
        return None

    def _most(self, path: str) -> int:
        return MAX_BODY if path == SPANS else self._max_body

    def _counted(self, receive: Receive, most: int) -> Receive:
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > most:
                raise HTTPException(413, _too_large(most))
            return message

        return counted


def _too_large(most: int) -> str:
    return f"The body is larger than the {most:,} bytes that the page takes."


class _Sender:
    """Puts the headers on whatever is answered."""

    def __init__(self, send: Send, is_api: bool) -> None:
        self._send, self._is_api = send, is_api

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            given = {name.lower() for name, _ in message["headers"]}
            extra = HEADERS | {"cache-control": "no-store" if self._is_api else "no-cache"}
            message["headers"] = [
                *message["headers"],
                *((k.encode(), v.encode()) for k, v in extra.items() if k.encode() not in given),
            ]
        await self._send(message)

    async def refuse(self, status: int, sentence: str) -> None:
        body = msgspec.json.encode({"error": sentence})
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await self({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})
