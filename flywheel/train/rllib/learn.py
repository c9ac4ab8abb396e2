"""RLlib's PPO, built once for all rounds: begin a round, train an iteration, read the weights."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ray.rllib.algorithms.ppo import PPO, PPOConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.utils.schedules.scheduler import Scheduler

from flywheel.config import TrainConfig
from flywheel.errors import FlywheelError, Refused
from flywheel.records import Array, Progress, Spec
from flywheel.task import Task
from flywheel.train.recipe import Recipe
from flywheel.train.rllib.env_runner import WorldsRunner
from flywheel.train.rllib.export import Exporter, golden
from flywheel.train.rllib.learner import LeanPPOLearner

_PATIENCE = 3
"""Iterations without a single step (every runner lost) after which a round gives up."""


class RecipePPO(PPO):  # type: ignore[misc]
    """PPO whose runners sample by a Recipe, and hear of it again when they come back."""

    recipe: Recipe | None = None

    def tell(self, recipe: Recipe) -> None:
        """Let all runners begin fresh episodes by this recipe, with the learner's present weights."""
        self.recipe = recipe
        self.env_runner_group.sync_weights(from_worker_or_learner_group=self.learner_group, inference_only=True)
        self.env_runner_group.foreach_env_runner(functools.partial(_tell, recipe=recipe), local_env_runner=False)

    def focus(self, hard: tuple[str, ...]) -> None:
        """Let episodes that begin from now on be more often in these edge cases."""
        if self.recipe is not None and self.recipe.hard != hard:
            self.recipe = dataclasses.replace(self.recipe, hard=hard)
            tell = functools.partial(_tell, recipe=self.recipe, afresh=False)
            self.env_runner_group.foreach_env_runner(tell, local_env_runner=False)


def _tell(runner: WorldsRunner, recipe: Recipe, afresh: bool = True) -> None:
    runner.tell(recipe, afresh)


def _told(runner: WorldsRunner) -> tuple[int, str, str]:
    return runner.told()


def _tell_again(*, algorithm: RecipePPO, env_runner_indices: Sequence[int], **_: Any) -> None:
    """RLlib's callback for runners that came back and have the present weights already."""
    if algorithm.recipe is not None:
        algorithm.env_runner_group.foreach_env_runner(
            functools.partial(_tell, recipe=algorithm.recipe),
            remote_worker_ids=list(env_runner_indices),
            local_env_runner=False,
        )


def ppo_config(task: Task, spec: Spec, config: TrainConfig, seed: int, claims: Mapping[str, float]) -> PPOConfig:
    """Return RLlib's configuration: no evaluation, no local runner, small-task values instead of PPO's defaults."""
    size = config.num_runners * config.worlds_per_runner * config.steps_per_world
    return (
        PPOConfig(algo_class=RecipePPO)
        .environment(
            "flywheel",
            env_config={"task": task, "spec": spec, "train": config},
            disable_env_checking=True,
        )
        .env_runners(
            env_runner_cls=WorldsRunner,
            num_env_runners=config.num_runners,
            num_envs_per_env_runner=config.worlds_per_runner,
            rollout_fragment_length=config.steps_per_world,
            num_cpus_per_env_runner=0.5,
            custom_resources_per_env_runner=dict(claims),
            create_local_env_runner=False,
        )
        .learners(num_learners=0, learner_class=LeanPPOLearner)
        .rl_module(
            model_config={
                "fcnet_hiddens": list(config.hidden),
                "fcnet_activation": config.activation,
                "vf_share_layers": False,
            }
        )
        .training(
            train_batch_size_per_learner=size,
            minibatch_size=config.minibatch_size,
            num_epochs=config.num_epochs,
            lr=config.lr,
            gamma=config.gamma,
            lambda_=config.lambda_,
            entropy_coeff=config.entropy,
            clip_param=0.2,
            grad_clip=0.5,
            grad_clip_by="global_norm",
            vf_loss_coeff=0.5,
            vf_clip_param=float("inf"),
            use_kl_loss=False,
        )
        .fault_tolerance(restart_failed_env_runners=True, delay_between_env_runner_restarts_s=1.0)
        .callbacks(on_env_runners_recreated=_tell_again)
        .reporting(metrics_num_episodes_for_smoothing=50)
        .debugging(seed=seed, log_level="ERROR")
    )


class Training:
    """One Algorithm, its policy's ONNX graph, and which digest its weights are."""

    def __init__(self, task: Task, spec: Spec, config: TrainConfig, seed: int, claims: Mapping[str, float]) -> None:
        """Build the Algorithm with its runners, each of which claims these resources, and export the graph."""
        self._spec, self._config = spec, config
        self._algorithm = ppo_config(task, spec, config, seed, claims).build_algo()
        with contextlib.suppress(OSError):  # RLlib leaves an empty one in ~/ray_results
            os.rmdir(self._algorithm.logdir)
        self._exporter = Exporter(self._module, spec)
        self._holds: str | None = None
        self._num_iterations = self._num_steps = self._begun_at_step = self._num_broken = 0
        self._mean_return = math.nan

    @property
    def _learner(self) -> Any:
        return self._algorithm.learner_group._learner

    @property
    def _module(self) -> Any:
        return self._learner.module[DEFAULT_MODULE_ID]

    def begin(self, recipe: Recipe, weights: Mapping[str, Array] | None) -> None:
        """Set weights, entropy and worlds for a round, which starts from `weights` unless they are held already.

        Raises Refused when those weights are not this architecture's.
        """
        if recipe.warm_start is None and self._num_steps:
            self._replace(_fresh(self._module))
        elif recipe.warm_start != self._holds and weights is not None:
            self._replace(weights)
        self._holds = recipe.warm_start
        self._learner.entropy_coeff_schedulers_per_module[DEFAULT_MODULE_ID] = Scheduler(
            fixed_value_or_schedule=recipe.entropy, framework="torch", device=self._learner._device
        )
        self._algorithm.tell(recipe)
        self._max_steps, self._is_warm = recipe.max_steps, recipe.warm_start is not None
        self._num_iterations, self._begun_at_step, self._mean_return = 0, self._num_steps, math.nan

    def _replace(self, weights: Mapping[str, Array]) -> None:
        """Give the learner other weights, and an optimizer that remembers nothing of the ones before."""
        check_weights(self.weights(), weights)
        self._module.set_state(dict(weights))
        # Runners take only weights with a higher number than the ones they have.
        self._learner._weights_seq_no += 1
        for optimizer in self._learner._named_optimizers.values():
            optimizer.state.clear()

    def advance(self, hard: tuple[str, ...] = ()) -> Progress:
        """Sample, learn, and return how it went with the network as it is now; `hard` edge cases come more often.

        Raises FlywheelError when too many training episodes broke off, and when no runner has given a step in several
        iterations.
        """
        began = time.perf_counter()
        self._algorithm.focus(hard)
        done = (self._num_steps - self._begun_at_step) / self._max_steps
        rate = lr_at(self._config, done, is_warm=self._is_warm)
        for optimizer in self._learner._named_optimizers.values():
            self._learner._set_optimizer_lr(optimizer, lr=rate)
        for _ in range(_PATIENCE):
            result = self._algorithm.train()
            note = self._note()
            sampled = result["env_runners"]
            if num_steps := int(sampled.get("num_env_steps_sampled", 0)):
                break
        else:
            raise FlywheelError(
                "No env runner has given a single step, although each was restarted: its log under Ray's session "
                "directory says why; a task whose environment raises at once is the usual reason."
            )
        self._holds = None
        self._num_iterations += 1
        self._num_steps += num_steps
        # Worlds that begin together end together: many an iteration sees no episode end.
        if not math.isnan(mean_return := float(sampled.get("episode_return_mean", math.nan))):
            self._mean_return = mean_return
        return Progress(
            iteration=self._num_iterations,
            num_steps=self._num_steps - self._begun_at_step,
            num_steps_total=self._num_steps,
            mean_return=self._mean_return,
            seconds=time.perf_counter() - began,
            network=self.network(),
            note=note,
        )

    def _note(self) -> str:
        """Return what went wrong in the runners' worlds since they were asked last; raise what ended the sampling."""
        told = self._algorithm.env_runner_group.foreach_env_runner(_told, local_env_runner=False)
        if trouble := next((trouble for *_, trouble in told if trouble), ""):
            raise FlywheelError(trouble)
        num = sum(num for num, *_ in told)
        new, self._num_broken = num - self._num_broken, num
        last = next((last for _, last, _ in told if last), "")
        return f"{new} training episodes broke off, in one the environment {last}" if new > 0 else ""

    def weights(self) -> dict[str, Array]:
        """Return all weights, the critic's too, by RLlib's own keys."""
        return {name: np.array(value) for name, value in self._module.get_state(inference_only=False).items()}

    def network(self) -> bytes:
        """Return the ONNX bytes of the policy as it is now."""
        return self._exporter.network(self.weights())

    def golden(self) -> tuple[Array, Array]:
        """Return observations and what RLlib's own module answers to them."""
        return golden(self._module, self._spec)

    def holds(self, digest: str) -> None:
        """Remember that the present weights are this digest's."""
        self._holds = digest

    def stop(self) -> None:
        """End the runners."""
        self._algorithm.stop()


def lr_at(config: TrainConfig, share: float, *, is_warm: bool) -> float:
    """Return the learning rate where `share` of a round's steps are done; a warm one started from a policy."""
    begin = (config.lr_warm if is_warm else 0.0) or config.lr
    end = config.lr_end or begin
    return begin + (end - begin) * min(1.0, share)


def check_weights(held: Mapping[str, Array], given: Mapping[str, Array]) -> None:
    """Raise Refused unless keys and shapes are the same: RLlib would leave a missing one as it is (strict=False)."""
    ours = {name: value.shape for name, value in held.items()}
    theirs = {name: value.shape for name, value in given.items()}
    if ours != theirs:
        differ = sorted(name for name in ours | theirs if ours.get(name) != theirs.get(name))
        raise Refused(
            f"These weights are of another architecture; they differ in {', '.join(differ)}. Train with the "
            "`hidden` layers that they were made with, or start afresh."
        )


def _fresh(module: Any) -> dict[str, Array]:
    """Return newly drawn weights for a module's architecture."""
    fresh = type(module)(
        observation_space=module.observation_space,
        action_space=module.action_space,
        inference_only=False,
        model_config=module.model_config,
        catalog_class=type(module.catalog),
    )
    return {name: np.array(value) for name, value in fresh.get_state(inference_only=False).items()}
