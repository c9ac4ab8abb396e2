"""Requests without input and output: generators that yield what is to be done and are sent what came of it.

Client and AsyncClient drive the same flows, one with calls that block and one with awaits, as HTTPX does it with its
`auth_flow`: what is repeated, retried and kept is written once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ask:
    """Send this request once."""

    method: str
    path: str
    content: bytes | None
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Pause:
    """Let this time pass."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of an Ask."""

    status: int
    """HTTP status; 0 where there was no answer."""
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    why: str = ""
    """Without an answer: the reason."""


Step = Ask | Pause
Flow = Generator[Step, Reply | None, T]
"""Yields Steps; is sent the Reply to an Ask, and None after a Pause; returns T."""


def drive(flow: Flow[T], perform: Callable[[Step], Reply | None]) -> T:
    """Return what a flow comes to when each of its steps is performed, one after another."""
    reply: Reply | None = None
    while True:
        try:
            step = flow.send(reply)
        except StopIteration as over:
            result: T = over.value
            return result
        reply = perform(step)


async def drive_async(flow: Flow[T], perform: Callable[[Step], Awaitable[Reply | None]]) -> T:
    """As `drive`, awaiting each step."""
    reply: Reply | None = None
    while True:
        try:
            step = flow.send(reply)
        except StopIteration as over:
            result: T = over.value
            return result
        reply = await perform(step)
