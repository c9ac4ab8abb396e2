"""An RLlib algorithm, built once for all rounds: begin a round, train an iteration, read the weights."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.apis import TargetNetworkAPI

from flywheel.config import TrainConfig
from flywheel.errors import FlywheelError, Refused
from flywheel.records import Array, Progress, Spec
from flywheel.task import Task
from flywheel.train.recipe import Recipe
from flywheel.train.replay import Replay
from flywheel.train.rllib.appo import appo_config
from flywheel.train.rllib.dqn import dqn_config
from flywheel.train.rllib.exploring import begin_afresh, explore
from flywheel.train.rllib.export import Exporter, golden
from flywheel.train.rllib.passing import passed
from flywheel.train.rllib.ppo import ppo_config
from flywheel.train.rllib.sac import sac_config

_PATIENCE = 3
"""Iterations without a single step (every runner lost) after which a round gives up."""
_LOSSES = ("policy_loss", "vf_loss", "entropy", "mean_kl_loss")


def configure(task: Task, spec: Spec, config: TrainConfig, seed: int, claims: Mapping[str, float]) -> AlgorithmConfig:
    """Return RLlib's configuration of the algorithm, with what the user passes to it; raises as `passed`."""
    make = {"ppo": ppo_config, "appo": appo_config, "dqn": dqn_config, "sac": sac_config}[config.algorithm]
    return passed(make(task, spec, config, seed, claims), config)


class Training:
    """One Algorithm, its policy's ONNX graph, and which digest its weights are."""

    def __init__(
        self, task: Task, spec: Spec, config: TrainConfig, seed: int, claims: Mapping[str, float], replay: Replay | None
    ) -> None:
        """Build the Algorithm with its runners, each of which claims these resources, and export the graph.

        `replay` is what an off-policy algorithm learns from; PPO needs none.
        """
        self._spec, self._config, self._replay = spec, config, replay
        self._algorithm = configure(task, spec, config, seed, claims).build_algo()
        self._algorithm.replay = replay
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
        """Set weights, exploration and worlds for a round, which starts from `weights` unless they are held already.

        Raises Refused when those weights are not this architecture's.
        """
        if recipe.warm_start is None and self._num_steps:
            self._replace(_fresh(self._module))
            begin_afresh(self._learner)
        elif recipe.warm_start != self._holds and weights is not None:
            self._replace(weights)
        self._holds = recipe.warm_start
        self._recipe = recipe
        self._algorithm.tell(recipe)
        explore(self._learner, self._replay, recipe, 0)
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
        self._algorithm.adapt(hard=hard)
        explore(self._learner, self._replay, self._recipe, self._num_steps - self._begun_at_step)
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
        network, seconds = self.network(), time.perf_counter() - began
        return Progress(
            iteration=self._num_iterations,
            num_steps=self._num_steps - self._begun_at_step,
            num_steps_total=self._num_steps,
            mean_return=self._mean_return,
            seconds=seconds,
            network=network,
            note=note,
            steps_per_s=num_steps / seconds,
            losses=self._losses(result.get("learners", {}).get(DEFAULT_MODULE_ID, {})),
        )

    def _losses(self, learnt: Mapping[str, Any]) -> dict[str, float]:
        """Return what the learner logged of its last update, as far as people ask for it, and how it explores."""
        found = {
            name: float(learnt[name]) for name in _LOSSES if isinstance(learnt.get(name), int | float | np.floating)
        }
        if self._config.algorithm == "sac":
            found["temperature"] = float(self._learner.curr_log_alpha[DEFAULT_MODULE_ID].detach().exp())
        if self._replay is not None:
            found["td_error"] = self._algorithm.td_error
        if self._config.algorithm == "dqn" and self._replay is not None:
            found["epsilon"] = self._replay.epsilon
        return found

    def _note(self) -> str:
        """Return what went wrong in the runners' worlds since they were asked last; raise what ended the sampling."""
        told = self._algorithm.told()
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
        if not set(ours) & set(theirs):
            raise Refused("These weights are another algorithm's: train by that one, or start afresh.")
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
    if isinstance(fresh, TargetNetworkAPI):
        fresh.make_target_networks()
    return {name: np.array(value) for name, value in fresh.get_state(inference_only=False).items()}
