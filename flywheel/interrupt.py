"""Ctrl-C and SIGTERM that can't get lost: Python swallows what is raised in a fork's hooks, or in a destructor."""

from __future__ import annotations

import signal
import sys
from types import FrameType

AGAIN_S = 0.5
"""Seconds after which an interrupt that nobody has handled, and that isn't on its way to somebody, is raised again."""


def arm() -> None:
    """Let SIGINT and SIGTERM raise KeyboardInterrupt in the main thread, again and again until it is `handled`."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _raise)
    signal.signal(signal.SIGALRM, _raise_again)
    sys.unraisablehook = _tell


def handled() -> None:
    """Say that a KeyboardInterrupt has come to where it is handled."""
    signal.setitimer(signal.ITIMER_REAL, 0.0)


def _tell(swallowed: sys.UnraisableHookArgs) -> None:
    """Print what Python swallows, as it does; an interrupt comes again, so that its traceback would tell nobody."""
    if not issubclass(swallowed.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(swallowed)


def _raise(number: int, frame: FrameType | None) -> None:
    signal.setitimer(signal.ITIMER_REAL, AGAIN_S)
    raise KeyboardInterrupt


def _raise_again(number: int, frame: FrameType | None) -> None:
    if not isinstance(sys.exc_info()[1], KeyboardInterrupt):  # else things are being closed on its way
        _raise(number, frame)
