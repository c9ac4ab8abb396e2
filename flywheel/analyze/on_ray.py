"""The analysis' body on the cluster: a fit is one task, and a heavy simulator's steps and episodes are tasks of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from flywheel.analyze import diagnose as pure
from flywheel.analyze.diagnose import Diagnosis
from flywheel.config import AnalyzeConfig
from flywheel.policy import Bundle
from flywheel.records import Correction, Episode, Parameters, Signal
from flywheel.simulate.stop import go_on_or_stop
from flywheel.task import Task

_LOOK_S = 1.0  # seconds between two looks whether anybody still waits


def diagnose(
    task: Task,
    episodes: Sequence[Episode],
    signals: Sequence[Signal],
    config: AnalyzeConfig,
    served: Bundle | None = None,
    seed: int = 0,
    is_quiet: bool = False,
    parameters: Parameters | None = None,
    present: Correction | None = None,
) -> Diagnosis:
    """As analyze.diagnose.diagnose, over all nodes that have what this task claims."""
    return pure.diagnose(
        task, episodes, signals, config, served, seed, map=spread, is_quiet=is_quiet, parameters=parameters,
        present=present,
    )  # fmt: skip


def spread(function: Callable[[Any], Any], parts: Sequence[Any]) -> list[Any]:
    """Return a function of every part, each in a task of its own; Ray asks again where one is lost with its node."""
    import ray

    held = ray.get_runtime_context().get_assigned_resources()
    claims = {name: share for name, share in held.items() if name not in ("CPU", "GPU", "memory")}
    task = ray.remote(function).options(num_cpus=0, resources=claims, scheduling_strategy="SPREAD")
    asked = [task.remote(part) for part in parts]
    while len(ray.wait(asked, num_returns=len(asked), timeout=_LOOK_S)[0]) < len(asked):
        go_on_or_stop()
    found: list[Any] = ray.get(asked)
    return found
