"""Where simulations wait for their turn: the machine may be the one that serves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from fastapi import Request

T = TypeVar("T")
AT_ONCE = 2
"""Simulations that are run at once."""


class Turnstile:
    """Lets in so many simulations at once. The others wait without a thread."""

    def __init__(self) -> None:
        """Begin with every place free."""
        self._places = asyncio.Semaphore(AT_ONCE)

    async def run(self, request: Request, work: Callable[[], T]) -> T:
        """Return what `work` gives, in a thread once a place is free."""
        async with self._places:
            return await asyncio.to_thread(work)
