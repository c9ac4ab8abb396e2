"""How whoever asked for a simulation ends it from another thread: worlds look here before each of their steps."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from flywheel.errors import FlywheelError

_FLAG: ContextVar[threading.Event | None] = ContextVar("flywheel.stop", default=None)


class Stopped(FlywheelError):
    """A simulation that nobody waits for any more."""


@contextmanager
def stopped_by(flag: threading.Event) -> Iterator[None]:
    """Let whatever this thread simulates in the block raise Stopped at its next step, once the flag is set."""
    token = _FLAG.set(flag)
    try:
        yield
    finally:
        _FLAG.reset(token)


def go_on_or_stop() -> None:
    """Raise Stopped where the flag of this thread's simulation is set."""
    flag = _FLAG.get()
    if flag is not None and flag.is_set():
        raise Stopped("Nobody waits for this simulation any more, so it was ended: ask for it again.")
