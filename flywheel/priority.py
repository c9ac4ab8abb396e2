"""Who goes first on a machine: processes that answer clients before those that train and judge."""

from __future__ import annotations

import os
import sys

BEHIND = 15
"""Niceness of what can wait: the one that Ray gives all its workers where nothing else is said."""


def let_others_first() -> None:
    """Give this actor's process the niceness of what can wait; do nothing to a program that uses a room by itself."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None:
        os.nice(max(0, BEHIND - os.nice(0)))
