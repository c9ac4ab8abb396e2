"""Spans on their way to where they are kept: bounded, never waited for, and counted one by one when they are lost."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from flywheel.trace.row import MAX_ROWS, AwayError, Row

T = TypeVar("T")
Sink = Callable[[Sequence[Row]], int]
"""Hands over at most MAX_ROWS spans and returns how many of them were taken; raises AwayError, having taken none."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 2.0
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of the spans that were put into an outlet: made = sent + lost + waiting, at any time."""

    made: int
    sent: int
    lost: int
    waiting: int


class Outlet(Generic[T]):
    """Hands spans, in any form, to a sink from a thread of its own, which begins with the first span."""

    def __init__(self, sink: Callable[[Sequence[T]], int], *, max_waiting: int, flush_s: float) -> None:
        """Begin empty.

        Args:
            sink: where they go.
            max_waiting: spans that wait at most; further ones are lost.
            flush_s: seconds over which spans share one message.
        """
        self._sink, self._max_waiting, self._flush_s = sink, max_waiting, flush_s
        self._rows: list[T] = []
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._thread: threading.Thread | None = None
        self._accepted = self._refused = self._sent = self._dropped = 0
        self._hurried = self._closed = False

    def put(self, rows: Sequence[T]) -> int:
        """Take spans over at once, without waiting for anything, and return how many there was room for."""
        with self._lock:
            waiting = self._accepted - self._sent - self._dropped
            room = 0 if self._closed else max(0, min(len(rows), self._max_waiting - waiting))
            self._accepted += room
            self._refused += len(rows) - room
            if room:
                wakes = not self._rows
                self._rows.extend(rows if room == len(rows) else rows[:room])
                if wakes:
                    self._wake()
        return room

    def counts(self) -> Counts:
        """Return what became of every span so far."""
        with self._lock:
            lost, waiting = self._refused + self._dropped, self._accepted - self._sent - self._dropped
            return Counts(self._accepted + self._refused, self._sent, lost, waiting)

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Return True once every span that was put before was handed over or lost, False when time is over."""
        with self._changed:
            wanted, self._hurried = self._accepted, True
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self._sent + self._dropped >= wanted, timeout_s)

    def close(self, timeout_s: float = 5.0) -> None:
        """Hand over what can be handed over within the time; the rest, and what comes later, is lost."""
        self.flush(timeout_s)
        with self._changed:
            self._closed = True
            self._dropped += len(self._rows)
            self._rows = []
            self._changed.notify_all()

    def _wake(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True, name="spans")
            self._thread.start()
        self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._rows or self._closed)
                self._changed.wait_for(lambda: self._hurried or self._closed, self._flush_s)
                rows, self._rows, self._hurried = self._rows, [], False
                if self._closed:
                    return
            for start in range(0, len(rows), MAX_ROWS):
                self._hand_over(rows[start : start + MAX_ROWS])

    def _hand_over(self, rows: Sequence[T]) -> None:
        """Try until it is done, or the outlet is closed."""
        pause, taken = _FIRST_PAUSE_S, 0
        while not self._closed:
            try:
                taken = self._sink(rows)
                break
            except AwayError as error:
                log.debug("%d spans wait: %s", len(rows), error)
            except Exception:  # what can't be handed over at all mustn't hold up the others
                log.exception("%d spans were lost.", len(rows))
                break
            with self._changed:
                self._changed.wait_for(lambda: self._closed, pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)
        with self._changed:
            self._sent += taken
            self._dropped += len(rows) - taken
            self._changed.notify_all()
