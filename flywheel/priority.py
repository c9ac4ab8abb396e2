"""Who goes first on a machine: processes that answer clients before those that train and judge."""

from __future__ import annotations

import os

BEHIND = 15
"""Niceness of what can wait: the one that Ray gives all its workers where nothing else is said."""


def let_others_first() -> None:
    """Give this process the niceness of what can wait, if it hasn't more already."""
    os.nice(max(0, BEHIND - os.nice(0)))
