"""MLflow and Weights & Biases, where they are installed: one of their runs for each start of a run directory.

Where MLflow's server is, and whether W&B writes to its cloud or to the disk, say their own settings
(MLFLOW_TRACKING_URI, WANDB_MODE and others); without one MLflow writes to `mlruns/` in the run directory.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

PROJECT = "flywheel"
_MOST_PARAMS = 100  # MLflow takes so many in one call


class MLflow:
    """Writes to a run of MLflow's, in the experiment `flywheel`."""

    def __init__(
        self, run_dir: Path, wheel: str, settings: Mapping[str, Any], clock: Callable[[], float] = time.time
    ) -> None:
        """Begin a run of MLflow's, with the settings as its parameters."""
        mlflow = importlib.import_module("mlflow")
        self._entities, self._clock = importlib.import_module("mlflow.entities"), clock
        uri = None
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            uri = (run_dir / "mlruns").as_uri()
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # it asks for a database otherwise
        self._client = mlflow.MlflowClient(tracking_uri=uri)
        found = self._client.get_experiment_by_name(PROJECT)
        experiment = self._client.create_experiment(PROJECT) if found is None else found.experiment_id
        tags = {"flywheel.run_dir": str(run_dir)}
        self._id = self._client.create_run(experiment, run_name=wheel, tags=tags).info.run_id
        params = [self._entities.Param(name, str(value)[:500]) for name, value in settings.items()]
        for begin in range(0, len(params), _MOST_PARAMS):
            self._client.log_batch(self._id, params=params[begin : begin + _MOST_PARAMS])

    def round(self, turn: int, steps: int, total: int, numbers: Mapping[str, float], *, is_first: bool) -> None:
        """Write a point over all environment steps of this start."""
        self._log(numbers, total)

    def turn(self, number: int, numbers: Mapping[str, float]) -> None:
        """Write a point over turns."""
        self._log(numbers, number)

    def close(self) -> None:
        """End MLflow's run."""
        self._client.set_terminated(self._id)

    def _log(self, numbers: Mapping[str, float], step: int) -> None:
        at = int(1000 * self._clock())
        metrics = [self._entities.Metric(name, value, at, step) for name, value in numbers.items()]
        self._client.log_batch(self._id, metrics=metrics)


class WandB:
    """Writes to a run of W&B's, in the project `flywheel` (or WANDB_PROJECT's)."""

    def __init__(self, run_dir: Path, wheel: str, settings: Mapping[str, Any]) -> None:
        """Begin a run of W&B's, in the wheel's group; W&B is told to leave the terminal alone."""
        wandb = importlib.import_module("wandb")
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        quiet = wandb.Settings(silent=True, console="off")
        self._run = wandb.init(
            project=project, group=wheel, dir=str(run_dir), config=dict(settings), settings=quiet, reinit="create_new"
        )
        for axis, parts in (("steps", ("train", "learner", "probe")), ("turn", ("gate", "production", "seconds"))):
            self._run.define_metric(axis, hidden=True)
            for part in parts:
                self._run.define_metric(f"{part}/*", step_metric=axis)

    def round(self, turn: int, steps: int, total: int, numbers: Mapping[str, float], *, is_first: bool) -> None:
        """Write a point over all environment steps of this start."""
        self._run.log({**numbers, "steps": total, "turn": turn})

    def turn(self, number: int, numbers: Mapping[str, float]) -> None:
        """Write a point over turns."""
        self._run.log({**numbers, "turn": number})

    def close(self) -> None:
        """End W&B's run."""
        self._run.finish()
