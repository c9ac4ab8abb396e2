"""What stands between clients and the door in tests."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from flywheel.deploy.door import Door, Receive, Scope, Send


class Network:
    """Counts requests, and can be told to spoil the answers to some."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._changed = threading.Condition()
        self.asked: list[str] = []
        """Path of each request that was answered."""
        self.spoil: dict[str, Callable[[int, bytes], tuple[int, bytes]]] = {}
        """By path, what becomes of status and body of its answers, which are msgpack or JSON as the client asked."""

    def wait_for(self, path: str) -> None:
        """Return when a request to a path was answered."""
        with self._changed:
            assert self._changed.wait_for(lambda: path in self.asked, 30), self.asked

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._door(scope, receive, send)
            return
        sent: list[Any] = []

        async def keep(message: Any) -> None:
            sent.append(message)

        await self._door(scope, receive, keep)
        start, body = sent
        if scope["path"] in self.spoil:
            start["status"], body["body"] = self.spoil[scope["path"]](start["status"], body["body"])
            start["headers"] = [pair for pair in start["headers"] if pair[0] != b"content-length"]
        with self._changed:
            self.asked.append(scope["path"])
            self._changed.notify_all()
        await send(start)
        await send(body)
