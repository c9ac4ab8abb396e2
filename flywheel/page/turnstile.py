"""Where simulations wait for their turn: the machine may be the one that serves."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

from fastapi import Request

from flywheel.simulate.stop import go_on_or_stop, stopped_by

T = TypeVar("T")
AT_ONCE = 2
"""Simulations that are run at once."""


class Turnstile:
    """Lets in so many simulations at once. The others wait without a thread, and none goes on when its client left."""

    def __init__(self) -> None:
        """Begin with every place free."""
        self._places = asyncio.Semaphore(AT_ONCE)

    async def run(self, request: Request, work: Callable[[], T]) -> T:
        """Return what `work` gives, in a thread once a place is free; raise Stopped where the client left before."""
        await request.body()  # what is received after it is that the client has left
        flag = threading.Event()
        leaving = asyncio.create_task(_set_when_left(request, flag))
        try:
            return await asyncio.shield(asyncio.create_task(self._pass(work, flag)))
        finally:
            flag.set()
            leaving.cancel()

    async def _pass(self, work: Callable[[], T], flag: threading.Event) -> T:
        """Keep a place for as long as the thread runs, whatever becomes of the request."""

        def begin() -> T:
            with stopped_by(flag):
                go_on_or_stop()
                return work()

        async with self._places:
            return await asyncio.to_thread(begin)


async def _set_when_left(request: Request, flag: threading.Event) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    flag.set()
