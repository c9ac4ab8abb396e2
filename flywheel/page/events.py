"""Server-sent events: what the wheel says, and that something has changed; a reader goes on where it was cut off."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from flywheel.config import PageConfig
from flywheel.page import shapes
from flywheel.page.source import Source

WATCHED = ("production", "policies", "turns", "living")
"""Marks of a Source that readers are told of."""


class Streams:
    """The open streams of a page: at most so many, each for at most so long."""

    def __init__(self, source: Source, config: PageConfig) -> None:
        """Begin with none."""
        self._source, self._config = source, config
        self.num_open = 0
        self._is_leaving = False

    @property
    def is_full(self) -> bool:
        """Whether one more would be one too many."""
        return self.num_open >= self._config.max_streams

    def leave(self) -> None:
        """Let every stream end at its next look: the server is about to."""
        self._is_leaving = True

    async def stream(self, begin: int) -> AsyncIterator[bytes]:
        """Yield what is told from byte `begin` of the story on, and which of the marks changed."""
        if self.is_full:  # others that were let in at the same moment began before
            yield b"retry: 10000\n\n"
            return
        self.num_open += 1
        try:
            yield b"retry: 1000\n\n"
            async for chunk in self._follow(begin):
                yield chunk
        finally:
            self.num_open -= 1

    async def _follow(self, begin: int) -> AsyncIterator[bytes]:
        until = time.monotonic() + self._config.stream_s
        known = await asyncio.to_thread(self._source.marks)
        yield _event("changed", {name: known[name] for name in WATCHED})
        story, quiet_since = -1, time.monotonic()
        while time.monotonic() < until and not self._is_leaving:
            now = await asyncio.to_thread(self._source.marks)
            if now["story"] != story:
                story = now["story"]
                for end, told in await asyncio.to_thread(self._source.told, begin):
                    begin, quiet_since = end, time.monotonic()
                    yield _event("told", shapes.story_line(end, told), end)
            if any(now[name] != known[name] for name in WATCHED):
                quiet_since = time.monotonic()
                yield _event("changed", {name: now[name] for name in WATCHED})
            known = now
            if time.monotonic() - quiet_since > self._config.heartbeat_s:
                quiet_since = time.monotonic()
                yield b": still here\n\n"
            await asyncio.sleep(self._config.look_s)  # files tell nobody when they change


def _event(name: str, data: dict[str, Any], id_: int | None = None) -> bytes:
    head = f"event: {name}\n" + ("" if id_ is None else f"id: {id_}\n")
    return head.encode() + b"data: " + msgspec.json.encode(data) + b"\n\n"
