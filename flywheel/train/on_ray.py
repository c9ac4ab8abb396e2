"""The trainer's body on Ray: an actor that owns the Algorithm and forwards."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flywheel.config import TrainConfig
from flywheel.errors import LostError
from flywheel.meters import WHEEL, readings
from flywheel.meters.on_ray import Recorder
from flywheel.policy import Files, pack, read_trained_on, read_weights
from flywheel.priority import let_others_first
from flywheel.records import Episode, Plan, Progress, Spec
from flywheel.replaying import OFF_POLICY
from flywheel.sampling import Barred
from flywheel.tapes import Scenario
from flywheel.task import Task
from flywheel.train.beginning import check_start, network_of
from flywheel.train.recipe import make_recipe
from flywheel.train.replay import Replay, Table
from flywheel.train.running import is_own

if TYPE_CHECKING:
    from flywheel.train.rllib.learn import Training

CLAIM = 0.001
"""What each env runner claims of a custom resource: enough to be put on a node that has it."""
_RLLIB = "flywheel.train.rllib.learn"


class TrainerActor:
    """Trains by Plans, one round after another, with one Algorithm for all of them."""

    def __init__(
        self,
        task: Task,
        spec: Spec,
        config: TrainConfig,
        seed: int,
        resource: str = "",
        wheel: str = WHEEL,
        make_table: Callable[[], Table] | None = None,
    ) -> None:
        """Build the Algorithm and its env runners, which claim `resource`, where it names one.

        `wheel` is the name that the metrics carry. `make_table` makes what an off-policy algorithm holds its steps in.
        """
        let_others_first()
        self._meters = Recorder(wheel)
        self._task, self._spec, self._config = task, spec, config
        off_policy = make_table is not None and config.algorithm in OFF_POLICY
        self._replay = Replay(make_table(), config, seed) if make_table is not None and off_policy else None
        self._training = _build(task, spec, config, seed, resource, self._replay)
        self._has_begun = False
        self._learnt_to = ""

    def __repr__(self) -> str:
        return f"trainer({self._meters.wheel})"

    def begin(self, plan: Plan, files: Files | None, suite: Sequence[Scenario] = ()) -> None:
        """Set worlds, weights and exploration for a round, which starts from these files of the plan's policy.

        Raises Refused for weights of another algorithm or architecture.
        """
        weights = None
        if files is not None:
            check_start(str(plan.warm_start), read_trained_on(files), self._config)
            weights = read_weights(files)
        recipe = make_recipe(self._task, plan, self._config, suite)
        if self._replay is not None:
            self._replay.begin(plan, is_warm=weights is not None, worlds=recipe.ranges)
        self._training.begin(recipe, weights)
        self._has_begun = True

    def learn_from(
        self,
        episodes: Sequence[Episode],
        barred: Barred | None = None,
        last: str = "",
        since: float = 0.0,
    ) -> int:
        """Hold production's episodes, and return how many transitions came; an algorithm without a table takes none.

        `barred` is all that nothing is learnt from now, where it is given, `last` up to which episode production was
        handed over by now, `since` when the world changed, before which nothing is learnt from.
        """
        self._learnt_to = last
        if self._replay is None:
            return 0
        if barred is not None:
            self._replay.bar(barred)
        self._replay.changed(since)
        return self._replay.produced(episodes)

    def learnt_to(self) -> str:
        """Return up to which episode production was handed over; "" where none of it was, or a part of it was lost."""
        if self._replay is not None and self._replay.table.lacks():
            self._learnt_to = ""
        return self._learnt_to

    def advance(self, hard: tuple[str, ...] = ()) -> Progress:
        """Train one iteration, more often in `hard` edge cases: those that the last probe found failing.

        Raises LostError when this process came back and no round has begun in it.
        """
        self._check_begun()
        progress = self._training.advance(hard)
        self._meters.record(readings.of_progress(progress))
        if self._replay is not None:
            self._meters.record(readings.of_batch(self._replay.told()))
        return progress

    def export(self, version: int, parent: str | None, trained_on: Mapping[str, Any], now: float) -> tuple[str, Files]:
        """Return the present policy's digest and files; the registry's owner writes them. Raises as `advance`."""
        self._check_begun()
        began = time.perf_counter()
        digest, files = pack(
            network=self._training.network(),
            weights=self._training.weights(),
            spec=self._spec,
            golden=self._training.golden(),
            version=version,
            parent=parent,
            trained_on={
                **trained_on,
                "activation": self._config.activation,
                "algorithm": self._config.algorithm,
                **({} if is_own(self._config) else {"runner": "rllib"}),
                **({"network": network} if (network := network_of(self._config)) else {}),
            },
            made_at=now,
        )
        self._training.holds(digest)
        self._meters.record(readings.of_work("export", time.perf_counter() - began))
        return digest, files

    def stop(self) -> None:
        """End the env runners."""
        self._training.stop()

    def _check_begun(self) -> None:
        if not self._has_begun:
            raise LostError("The trainer's process was lost, with its node or by itself, and the round with it.")


def _build(task: Task, spec: Spec, config: TrainConfig, seed: int, resource: str, replay: Replay | None) -> Training:
    """Import RLlib here and, at the same time, in processes that Ray will reuse for the env runners."""
    import ray

    claims = {resource: CLAIM} if resource else {}
    load = ray.remote(num_cpus=0.5, resources=claims, name="load_rllib")(importlib.import_module)
    loading = [load.remote(_RLLIB) for _ in range(config.num_runners)]
    training: Training = importlib.import_module(_RLLIB).Training(task, spec, config, seed, claims, replay)
    ray.get(loading)
    return training
