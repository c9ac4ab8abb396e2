"""Times as people read them: UTC, to the second, wherever they are told."""

from __future__ import annotations

import time

WIDTH = 19
"""Characters of `column`."""


def utc(at: float) -> str:
    """Return UTC epoch seconds in words, such as "2026-11-26 03:00:00 UTC"."""
    return f"{column(at)} UTC"


def column(at: float | None) -> str:
    """Return UTC epoch seconds for a table whose head says that they are UTC; "-" for a time that is not there."""
    return "-" if at is None else time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at))
