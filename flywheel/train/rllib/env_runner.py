"""RLlib's env runner over the task's own vector form: arrays in the loop, episodes cut out of them at the end.

RLlib's own runner spends half its time in connectors and most of the rest in appending single steps (#58681). Here the
policy's layers are run in NumPy, too, where it is no more than layers: 20 µs a step instead of 300.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorWrapper
from gymnasium.vector.utils import batch_space
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core import DEFAULT_AGENT_ID, DEFAULT_MODULE_ID
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

from flywheel.config import TrainConfig
from flywheel.errors import FlywheelError
from flywheel.policy import to_env
from flywheel.priority import let_others_first
from flywheel.records import Spec
from flywheel.spaces import seen_spaces
from flywheel.task import Task
from flywheel.train.heads import spread
from flywheel.train.nets import Floats, answers
from flywheel.train.practice import Practice
from flywheel.train.recipe import Recipe
from flywheel.train.rllib.dense import actor_of
from flywheel.train.rllib.frozen import freeze
from flywheel.train.running import steppable
from flywheel.train.tape import Played, Tape, learnt


class RecipeRunner(SingleAgentEnvRunner):  # type: ignore[misc]
    """An env runner that samples by a Recipe, and hands its steps over as columns."""

    def __init__(self, *, config: AlgorithmConfig, **kwargs: Any) -> None:
        """Make the worlds; they wait for `tell`."""
        self._recipe: Recipe | None = None
        self._trouble = ""
        train: TrainConfig = config.env_config["train"]
        self._scale, self._step_cost = train.reward_scale, train.step_cost
        super().__init__(config=config, **kwargs)

    def __repr__(self) -> str:
        return f"env_runner({self.config.env_config['task'].name}, {self.worker_index})"

    def tell(self, recipe: Recipe, afresh: bool = True) -> None:
        """Let the next sample begin fresh episodes by this recipe, or (not `afresh`) go on with those under way."""
        self._recipe = recipe
        for name in ("epsilon", "noise"):
            if hasattr(self.module, name):
                setattr(self.module, name, getattr(recipe, name))
        self._needs_initial_reset |= afresh
        self._go_on_by(recipe)

    def told(self) -> tuple[int, str, str]:
        """Return how many training episodes broke off so far, what the last one did, and what ended the sampling."""
        return *self._broken(), self._trouble

    def sample(self, **given: Any) -> list[Played]:
        """Return steps as columns, with rewards as training has them; none, once there is trouble.

        A runner that came back from the dead has no recipe: it raises, so that RLlib takes it out of service,
        gives it the present weights and lets the trainer tell it the recipe again.
        """
        if self._recipe is None:
            raise RuntimeError("This env runner was restarted and has not been told its recipe yet.")
        try:
            return [learnt(self._columns(super().sample(**given)), self._scale, self._step_cost)]
        except Exception as error:  # RLlib would start this process again, for ever, and tell nobody why
            known = error if isinstance(error, FlywheelError) else error.__cause__
            self._trouble = str(known) if isinstance(known, FlywheelError) else f"Sampling failed with {error!r}."
            # or RLlib would ask on; the trainer raises what is told
            self._increase_sampled_metrics(self.config.get_rollout_fragment_length() * self.num_envs, 0)
            return []

    @abstractmethod
    def _columns(self, sampled: list[Any]) -> Played:
        """Return what was sampled as columns."""

    @abstractmethod
    def _go_on_by(self, recipe: Recipe) -> None:
        """Let episodes that begin from now on do so by this recipe."""

    @abstractmethod
    def _broken(self) -> tuple[int, str]:
        """Return how many training episodes broke off so far, and what the last one did."""


class WorldsRunner(RecipeRunner):
    """Our own: arrays in the loop, over worlds that are stepped together."""

    def make_env(self) -> None:
        """Make the task's worlds instead of a registered environment."""
        let_others_first()
        task: Task = self.config.env_config["task"]
        self._spec: Spec = self.config.env_config["spec"]
        rng = np.random.default_rng((self.config.seed or 0, self.worker_index or 0))
        self._practice = Practice(steppable(task), self.config.num_envs_per_env_runner, rng)
        self._rng = rng.spawn(1)[0]
        self.env = _Flat(self._practice.envs, self._spec)
        self.num_envs = self._practice.num_worlds
        self._needs_initial_reset = True
        freeze()

    def _go_on_by(self, recipe: Recipe) -> None:
        self._practice.go_on_by(recipe)

    def _broken(self) -> tuple[int, str]:
        return self._practice.tally.num_broken, self._practice.tally.last

    def _columns(self, sampled: list[Any]) -> Played:
        (played,) = sampled
        assert isinstance(played, Played)
        return played

    def _sample(self, *, num_timesteps: int | None = None, **_: Any) -> list[Any]:
        """Return at least `num_timesteps` real steps."""
        if num_timesteps is None:
            raise ValueError("This env runner samples a number of steps, not of episodes: give num_timesteps.")
        assert self._recipe is not None
        return [self._play(self._recipe, num_timesteps)]

    def _play(self, recipe: Recipe, num_timesteps: int) -> Played:
        if self._needs_initial_reset:
            self._seen = np.asarray(self._practice.begin(recipe), dtype=np.float32)
            self._open = np.zeros((2, self.num_envs))
            self._needs_initial_reset = False
        actor, tape, practice = actor_of(self.module), Tape(self._seen), self._practice
        layers = actor.layers if actor else ()
        while tape.num_real < num_timesteps:
            void = practice.ended
            if actor:
                outputs = answers(layers, actor.activation, tape.seen)
                actions, logps = spread(self._spec, outputs, actor.widest).draw(self._rng)
            else:
                actions, outputs, logps = self._drawn(tape.seen)
            shaped = actions.reshape(self.num_envs, *self._spec.action_shape)
            stepped = practice.step(to_env(self._spec, shaped))
            aside = practice.on_edge & (not practice.on_edge.all())
            tape.add((actions, outputs, logps), stepped, void | practice.lost, practice.lost, aside)
        self._seen = tape.seen
        played, ended = tape.end(self._open)
        self._increase_sampled_metrics(len(played), int(np.count_nonzero(played.terminated | played.truncated)))
        if ended.size:
            self._log_episodes(*ended)
        return played

    def _drawn(self, seen: Floats) -> tuple[Any, Any, Any]:
        """Return actions, outputs and log probabilities of a module that is more than layers."""
        with torch.no_grad():
            outputs = self.module.forward_exploration({"obs": torch.as_tensor(seen)})["action_dist_inputs"]
            chances = self.module.get_exploration_action_dist_cls().from_logits(outputs)
            raw = chances.sample()
            return raw.numpy(), outputs.numpy(), chances.logp(raw).numpy()

    def _log_episodes(self, lengths: Any, returns: Any) -> None:
        """Log what RLlib's `_log_episode_metrics` logs of each episode, all at once: its window is one sample's.

        Those that began in edge cases are not among them, unless all do: they say nothing of how production fares.
        """
        window = max(1, math.ceil(self.config.metrics_num_episodes_for_smoothing / (self.config.num_env_runners or 1)))
        lengths, returns = lengths[-window:], returns[-window:]
        for key, values, reduce in (
            ("episode_len_mean", lengths, "mean"), ("episode_len_min", lengths, "min"),
            ("episode_len_max", lengths, "max"), ("episode_return_mean", returns, "mean"),
            ("episode_return_min", returns, "min"), ("episode_return_max", returns, "max"),
            (("agent_episode_return_mean", DEFAULT_AGENT_ID), returns, "mean"),
            (("module_episode_return_mean", DEFAULT_MODULE_ID), returns, "mean"),
        ):  # fmt: skip
            self.metrics.log_value(key, float(getattr(values, reduce)()), reduce=reduce, window=window)


class _Flat(VectorWrapper):
    """The worlds as RLlib sees them: a flat Box, and actions as the policy's distribution gives them."""

    def __init__(self, envs: Any, spec: Spec) -> None:
        super().__init__(envs)
        self.single_observation_space, self.single_action_space = seen_spaces(spec)
        self.observation_space = batch_space(self.single_observation_space, envs.num_envs)
        self.action_space = batch_space(self.single_action_space, envs.num_envs)
