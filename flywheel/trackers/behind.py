"""A tracker whose calls are made by a thread, so that a service that is slow or away delays nothing."""

from __future__ import annotations

import functools
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any

WAITING = 1_000
"""Calls that wait; further ones are an error, after which the tracker is left out: a service that is away for hours."""
CLOSE_S = 10.0
"""Seconds that the end of a run waits for the last calls."""


class Behind:
    """Passes a tracker's calls on, in their order; what one of them raised is raised by the next one."""

    def __init__(self, tracker: Any) -> None:
        """Begin the thread, which ends with `close`, or with the process."""
        self._tracker = tracker
        self._calls: queue.Queue[Callable[[], None]] = queue.Queue(WAITING)
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._work, daemon=True, name="tracker")
        self._thread.start()

    def round(self, turn: int, steps: int, total: int, numbers: Mapping[str, float], *, is_first: bool) -> None:
        """As the tracker's."""
        self._put(functools.partial(self._tracker.round, turn, steps, total, numbers, is_first=is_first))

    def turn(self, number: int, numbers: Mapping[str, float]) -> None:
        """As the tracker's."""
        self._put(functools.partial(self._tracker.turn, number, numbers))

    def close(self) -> None:
        """Wait for the calls so far, and close the tracker; TimeoutError when that takes too long."""
        self._put(self._tracker.close)
        self._thread.join(CLOSE_S)
        if self._error is not None:
            raise self._error
        if self._thread.is_alive():
            raise TimeoutError(f"it did not take its last {self._calls.qsize() + 1} calls within {CLOSE_S:g} s")

    def _put(self, call: Callable[[], None]) -> None:
        if self._error is not None:
            raise self._error
        self._calls.put_nowait(call)

    def _work(self) -> None:
        while self._error is None:
            call = self._calls.get()
            try:
                call()
            except Exception as error:  # whoever calls next is told
                self._error = error
            if call == self._tracker.close:
                return
