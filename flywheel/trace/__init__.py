"""Trace shows what happened, and what would have happened: spans of all that was done, and time travel of episodes.

Spans (`spans`, `context`, `spanstore`) belong to the episode, step, policy, verdict and turn that they are of.
Time travel (`diverge`, `fork`) finds the step where two courses part, and runs the rest again with something edited.
In: what clients, replicas, the observer and the loop did; Episodes and the policies that acted in them.
Out: spans by episode, step, trace or turn; Differences; forks of episodes.
Never: delays an answer, fails a request, or guesses: what can't be run again raises NotReproducible with the reason.
"""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {
    "Fork": "flywheel.trace.fork",
    "NotReproducible": "flywheel.trace.snapshots",
    "Result": "flywheel.trace.result",
    "Span": "flywheel.trace.spans",
    "Tracer": "flywheel.trace.spans",
    "against_policy": "flywheel.trace.diverge",
    "against_simulator": "flywheel.trace.residuals",
    "first_difference": "flywheel.trace.diverge",
    "noise_of": "flywheel.trace.residuals",
    "recheck": "flywheel.trace.diverge",
}
__all__ = sorted(_PUBLIC)  # resolved when asked for: clients import the context of spans and no more


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'flywheel.trace' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
