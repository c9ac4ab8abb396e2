"""Work behind the program's back: a thread that does one thing again and again, and says what keeps it from it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from flywheel.client.refusal import UnavailableError
from flywheel.errors import FlywheelError

if TYPE_CHECKING:
    from flywheel.client.spool import Spool

_FIRST_PAUSE_S = 0.1
_LEAVE_S = 5.0
"""Seconds that a round under way has to end when the worker is closed."""
log = logging.getLogger(__name__)


class Worker:
    """Calls `work` when it is woken, and else every `pause_s` seconds; after an error sooner, at first."""

    def __init__(self, work: Callable[[], None], pause_s: float, name: str) -> None:
        """Begin the first round at once."""
        self._work, self._pause_s = work, pause_s
        self._changed = threading.Condition()
        self._woken = self._closing = False
        self.trouble: Exception | None = None
        """What the last round raised."""
        self._num_begun = self._num_over = 0
        self._thread = threading.Thread(target=self._rounds, name=name, daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Let the next round begin at once, or right after the one under way."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def wait_for(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Return True as soon as a round leaves the condition true; False when time, or the worker, is over before."""
        with self._changed:
            self._changed.wait_for(lambda: condition() or self._closing, timeout_s)
            return condition()

    def round(self, enough: Callable[[], bool], timeout_s: float) -> bool:
        """Return True when a round that began after this call is over, or one under way leaves `enough` true before.

        False when time, or the worker, is over before: what a round began with may be old news.
        """
        with self._changed:
            begun, self._woken = self._num_begun, True
            self._changed.notify_all()
            return self.wait_for(lambda: enough() or self._num_over > begun, timeout_s)

    def close(self) -> None:
        """Begin no further round; one that hangs in a request is left to end by itself."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(_LEAVE_S)

    def _rounds(self) -> None:
        failing_s = _FIRST_PAUSE_S
        while not self._closing:
            with self._changed:
                self._woken = False
                self._num_begun += 1
            trouble: Exception | None = None
            try:
                self._work()
            except Exception as error:  # the thread has to outlive a full disk as well as a server that is away
                trouble = error
                if not isinstance(error, FlywheelError):
                    log.exception("%s failed, and tries again.", self._thread.name)
            with self._changed:
                self.trouble = trouble
                self._num_over += 1
                self._changed.notify_all()
                pause_s = self._pause_s if trouble is None else min(failing_s, self._pause_s)
                failing_s = _FIRST_PAUSE_S if trouble is None else 2 * failing_s
                self._changed.wait_for(lambda: self._woken or self._closing, pause_s)


def flush(spool: Spool, courier: Worker, timeout_s: float) -> None:
    """Return when nothing waits in a spool that a courier empties; raise UnavailableError when time is over before."""
    courier.wake()
    if not courier.wait_for(lambda: not spool.waiting, timeout_s):
        raise UnavailableError(
            f"{len(spool.waiting)} episodes were not acknowledged in {timeout_s:g} s: "
            f"{courier.trouble or 'they are on their way.'} They stay in the spool."
        )
