"""The trainer's body on Ray: an actor that owns the Algorithm and forwards."""

from __future__ import annotations

import importlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flywheel.config import TrainConfig
from flywheel.meters import WHEEL, readings
from flywheel.meters.on_ray import Recorder
from flywheel.policy import read_artifact, read_weights, write_artifact
from flywheel.records import Array, Artifact, Plan, Progress, Spec
from flywheel.task import Task
from flywheel.train.recipe import make_recipe

if TYPE_CHECKING:
    from flywheel.train.rllib.learn import Training

_RLLIB = "flywheel.train.rllib.learn"


class TrainerActor:
    """Trains by Plans, one round after another, with one Algorithm for all of them."""

    def __init__(
        self, task: Task, spec: Spec, config: TrainConfig, seed: int, policies_dir: str, wheel: str = WHEEL
    ) -> None:
        """Build the Algorithm and its env runners.

        `policies_dir` holds the artifacts by digest, `wheel` is the name that the metrics carry.
        """
        self._meters = Recorder(wheel)
        self._task, self._spec, self._config, self._seed = task, spec, config, seed
        self._policies = Path(policies_dir)
        self._training = _build(task, spec, config, seed)

    def __repr__(self) -> str:
        return f"trainer({self._meters.wheel})"

    def begin(self, plan: Plan) -> None:
        """Set worlds, weights and exploration for a round. Raises Refused for weights that don't fit."""
        self._training.begin(make_recipe(self._task, plan, self._config), self._read)

    def advance(self) -> Progress:
        """Train one iteration."""
        progress = self._training.advance()
        self._meters.record(readings.of_progress(progress))
        return progress

    def export(self, version: int, parent: str | None, trained_on: Mapping[str, Any], now: float) -> Artifact:
        """Write the present policy under its digest and return its Artifact."""
        began = time.perf_counter()
        artifact = write_artifact(
            self._policies,
            network=self._training.network(),
            weights=self._training.weights(),
            spec=self._spec,
            golden=self._training.golden(),
            version=version,
            parent=parent,
            trained_on=trained_on,
            made_at=now,
        )
        self._training.holds(artifact.digest)
        self._meters.record(readings.of_work("export", time.perf_counter() - began))
        return artifact

    def stop(self) -> None:
        """End the env runners."""
        self._training.stop()

    def _read(self, digest: str) -> Mapping[str, Array]:
        return read_weights(read_artifact(self._policies / digest))


def _build(task: Task, spec: Spec, config: TrainConfig, seed: int) -> Training:
    """Import RLlib here and, at the same time, in processes that Ray will reuse for the env runners."""
    import ray

    load = ray.remote(num_cpus=0.5, name="load_rllib")(importlib.import_module)
    loading = [load.remote(_RLLIB) for _ in range(config.num_runners)]
    training: Training = importlib.import_module(_RLLIB).Training(task, spec, config, seed)
    ray.get(loading)
    return training
