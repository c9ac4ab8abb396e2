"""Whatever goes wrong with a process of the run is a sentence for whoever asked it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import ray

from flywheel import cluster
from flywheel.errors import FlywheelError


@pytest.mark.parametrize(
    "error", [ray.exceptions.WorkerCrashedError(), ray.exceptions.OutOfMemoryError("Task was killed, as memory is low")]
)
def test_a_task_whose_worker_was_killed_is_told_of(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def lost(_: Any) -> Any:
        raise error

    monkeypatch.setattr(cluster.ray, "get", lost)
    with pytest.raises(FlywheelError, match=r"was lost: .*The same --run-dir goes on"):
        cluster.ask(SimpleNamespace(remote=lambda: None))
