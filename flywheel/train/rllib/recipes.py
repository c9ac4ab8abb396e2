"""What our algorithms add to RLlib's: runners that sample by a Recipe, and hear of it again when they return."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

from flywheel.config import TrainConfig
from flywheel.records import Spec
from flywheel.task import Task
from flywheel.train.one_world import OneWorld
from flywheel.train.recipe import Recipe
from flywheel.train.rllib.env_runner import RecipeRunner, WorldsRunner
from flywheel.train.rllib.stock import StockRunner
from flywheel.train.running import is_own


class ByRecipe(Algorithm):  # type: ignore[misc]
    """An algorithm whose runners sample by a Recipe."""

    recipe: Recipe | None = None

    def tell(self, recipe: Recipe) -> None:
        """Let all runners begin fresh episodes by this recipe, with the learner's present weights."""
        self.recipe = recipe
        self.env_runner_group.sync_weights(from_worker_or_learner_group=self.learner_group, inference_only=True)
        self.env_runner_group.foreach_env_runner(functools.partial(_tell, recipe=recipe), local_env_runner=False)

    def adapt(self, **changes: Any) -> None:
        """Let runners go on by a recipe that differs in these fields, from their next episode (or step) on."""
        if self.recipe is None or all(getattr(self.recipe, name) == value for name, value in changes.items()):
            return
        self.recipe = dataclasses.replace(self.recipe, **changes)
        tell = functools.partial(_tell, recipe=self.recipe, afresh=False)
        self.env_runner_group.foreach_env_runner(tell, local_env_runner=False)

    def told(self) -> list[tuple[int, str, str]]:
        """Return what each runner says of its worlds, as `RecipeRunner.told`."""
        told: list[tuple[int, str, str]] = self.env_runner_group.foreach_env_runner(_told, local_env_runner=False)
        return told


def _tell(runner: RecipeRunner, recipe: Recipe, afresh: bool = True) -> None:
    runner.tell(recipe, afresh)


def _told(runner: RecipeRunner) -> tuple[int, str, str]:
    return runner.told()


def _tell_again(*, algorithm: ByRecipe, env_runner_indices: Sequence[int], **_: Any) -> None:
    """RLlib's callback for runners that came back and have the present weights already."""
    if algorithm.recipe is not None:
        algorithm.env_runner_group.foreach_env_runner(
            functools.partial(_tell, recipe=algorithm.recipe),
            remote_worker_ids=list(env_runner_indices),
            local_env_runner=False,
        )


def on_worlds(
    base: AlgorithmConfig, task: Task, spec: Spec, config: TrainConfig, seed: int, claims: dict[str, float]
) -> AlgorithmConfig:
    """Return RLlib's configuration of an algorithm on our runners, or its own: no evaluation, and no local runner."""
    env, runner = ("flywheel", WorldsRunner) if is_own(config) else (OneWorld, StockRunner)
    return (
        base.environment(
            env, env_config={"task": task, "spec": spec, "train": config}, disable_env_checking=True,
            normalize_actions=False, clip_actions=False,  # what steps the worlds takes raw actions
        )
        .env_runners(
            env_runner_cls=runner,
            num_env_runners=config.num_runners,
            num_envs_per_env_runner=config.worlds_per_runner,
            rollout_fragment_length=config.steps_per_world,
            num_cpus_per_env_runner=0.5,
            custom_resources_per_env_runner=claims,
            create_local_env_runner=False,
            # Connectors may have states; those here have none, and asking for them takes as long as sampling does.
            merge_env_runner_states=False,
            broadcast_env_runner_states=False,
        )
        .fault_tolerance(restart_failed_env_runners=True, delay_between_env_runner_restarts_s=1.0)
        .callbacks(on_env_runners_recreated=_tell_again)
        # An iteration is one training step; by RLlib's defaults SAC's lasts a second, however many steps that is.
        .reporting(metrics_num_episodes_for_smoothing=50, min_time_s_per_iteration=0)
        .debugging(seed=seed, log_level="ERROR")
    )  # fmt: skip
