"""Flywheel keeps a reinforcement-learning policy good after it is deployed.

Public names are resolved when they are first used: importing this package loads no Ray and no torch.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Config": "flywheel.config",
    "EdgeCase": "flywheel.task",
    "Flywheel": "flywheel.run",
    "FlywheelError": "flywheel.errors",
    "Limits": "flywheel.task",
    "Observer": "flywheel.observe.observer",
    "Parameter": "flywheel.task",
    "ReplayStore": "flywheel.store.intake:Intake",
    "SafetyGate": "flywheel.gate.judge",
    "Task": "flywheel.task",
    "client": "flywheel",
    "connect": "flywheel.connection",
}

__all__ = [
    "Config",
    "EdgeCase",
    "Flywheel",
    "FlywheelError",
    "Limits",
    "Observer",
    "Parameter",
    "ReplayStore",
    "SafetyGate",
    "Task",
    "client",
    "connect",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'flywheel' has no attribute {name!r}; it has {', '.join(__all__)}")
    if name == "client":
        return importlib.import_module("flywheel.client")
    module, _, other = _PUBLIC[name].partition(":")
    return getattr(importlib.import_module(module), other or name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
