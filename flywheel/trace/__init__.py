"""Trace tells what happened and what would have happened: spans of it all, and time travel in its episodes.

Spans, in: what clients, replicas, the observer and the loop did. Out: spans by episode, step, trace or turn.
Time travel, in: Episodes, the policies that acted in them, the task. Out: Differences, and forks that are run again.
Never: delays an answer, fails a request, or guesses: the truth is the acknowledged episode, and what can't be run again
raises NotReproducible with the reason. Never torch, and Ray in on_ray.py only.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flywheel.trace.diverge import against_policy, first_difference, recheck
    from flywheel.trace.fork import Fork
    from flywheel.trace.residuals import against_simulator, noise_of
    from flywheel.trace.result import Result
    from flywheel.trace.snapshots import NotReproducible

__all__ = [
    "Fork",
    "NotReproducible",
    "Result",
    "against_policy",
    "against_simulator",
    "first_difference",
    "noise_of",
    "recheck",
]
_FROM = {
    "Fork": "fork",
    "NotReproducible": "snapshots",
    "Result": "result",
    "against_policy": "diverge",
    "against_simulator": "residuals",
    "first_difference": "diverge",
    "noise_of": "residuals",
    "recheck": "diverge",
}


def __getattr__(name: str) -> Any:
    """Load what is asked for, and no more: a client that only traces needs no simulator."""
    if name not in _FROM:
        raise AttributeError(f"module 'flywheel.trace' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"flywheel.trace.{_FROM[name]}"), name)
