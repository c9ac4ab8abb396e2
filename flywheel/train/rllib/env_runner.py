"""RLlib's env runner over the task's own vector form: arrays in the loop, episodes cut out of them at the end.

RLlib's own runner spends half its time in connectors and most of the rest in appending single steps (#58681).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorWrapper
from gymnasium.vector.utils import batch_space
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from flywheel.config import TrainConfig
from flywheel.errors import FlywheelError
from flywheel.policy import to_env
from flywheel.priority import let_others_first
from flywheel.records import Spec
from flywheel.spaces import seen_spaces
from flywheel.task import Task
from flywheel.train.practice import Practice
from flywheel.train.recipe import Recipe


class WorldsRunner(SingleAgentEnvRunner):  # type: ignore[misc]
    """Samples the worlds that the present Recipe asks for."""

    def __init__(self, *, config: AlgorithmConfig, **kwargs: Any) -> None:
        """Make the worlds; they wait for `tell`."""
        self._recipe: Recipe | None = None
        self._trouble = ""
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
        self._practice.go_on_by(recipe)

    def make_env(self) -> None:
        """Make the task's worlds instead of a registered environment."""
        let_others_first()
        task: Task = self.config.env_config["task"]
        self._spec: Spec = self.config.env_config["spec"]
        train: TrainConfig = self.config.env_config["train"]
        self._scale, self._step_cost = train.reward_scale, train.step_cost
        rng = np.random.default_rng((self.config.seed or 0, self.worker_index or 0))
        self._practice = Practice(task, self.config.num_envs_per_env_runner, rng)
        self.env = _Flat(self._practice.envs, self._spec)
        self.num_envs = self._practice.num_worlds
        self._needs_initial_reset = True

    def told(self) -> tuple[int, str, str]:
        """Return how many training episodes broke off so far, what the last one did, and what ended the sampling."""
        return self._practice.tally.num_broken, self._practice.tally.last, self._trouble

    def _sample(self, *, num_timesteps: int | None = None, **_: Any) -> list[SingleAgentEpisode]:
        """Return chunks of episodes with at least `num_timesteps` real steps in all; none, once there is trouble.

        A runner that came back from the dead has no recipe: it raises, so that RLlib takes it out of service,
        gives it the present weights and lets the trainer tell it the recipe again.
        """
        if self._recipe is None:
            raise RuntimeError("This env runner was restarted and has not been told its recipe yet.")
        if num_timesteps is None:
            raise ValueError("This env runner samples a number of steps, not of episodes: give num_timesteps.")
        try:
            return self._chunks(self._recipe, num_timesteps)
        except Exception as error:  # RLlib would start this process again, for ever, and tell nobody why
            self._trouble = str(error) if isinstance(error, FlywheelError) else f"Sampling failed with {error!r}."
            self._increase_sampled_metrics(num_timesteps, 0)  # or RLlib would ask on; the trainer raises what is told
            return []

    def _chunks(self, recipe: Recipe, num_timesteps: int) -> list[SingleAgentEpisode]:
        if self._needs_initial_reset:
            self._seen = _floats(self._practice.begin(recipe))
            self._running = np.zeros((2, self.num_envs))
            self._needs_initial_reset = False
        tape = _Tape(self._seen)
        while tape.num_real < num_timesteps:
            self._step(tape)
        self._seen = tape.observations[-1]
        self._increase_sampled_metrics(tape.num_real, tape.num_ended)
        return tape.episodes(self.env.single_observation_space, self.env.single_action_space)

    def _step(self, tape: _Tape) -> None:
        void = self._practice.ended
        with torch.no_grad():
            batch = {"obs": torch.as_tensor(tape.observations[-1])}
            outputs = self.module.forward_exploration(batch)["action_dist_inputs"]
            chances = self.module.get_exploration_action_dist_cls().from_logits(outputs)
            raw = chances.sample()
            logps = chances.logp(raw).numpy()
        actions = raw.numpy()
        raw_actions = actions.reshape(self.num_envs, *self._spec.action_shape)
        observations, rewards, terminated, truncated = self._practice.step(to_env(self._spec, raw_actions))
        if (lost := self._practice.lost).any():
            void = void | lost
            tape.cut(lost)
            self._running[:, lost] = 0.0
        learnt = self._scale * (rewards - self._step_cost)
        tape.add(actions, outputs.numpy(), logps, void, (_floats(observations), learnt, terminated, truncated))
        self._running += np.stack([np.where(void, 0.0, rewards), ~void])
        for i in np.flatnonzero(terminated | truncated):
            self._log_episode_metrics(int(self._running[1, i]), float(self._running[0, i]), 0.0)
            self._running[:, i] = 0.0


class _Flat(VectorWrapper):
    """The worlds as RLlib sees them: a flat Box, and actions as the policy's distribution gives them."""

    def __init__(self, envs: Any, spec: Spec) -> None:
        super().__init__(envs)
        self.single_observation_space, self.single_action_space = seen_spaces(spec)
        self.observation_space = batch_space(self.single_observation_space, envs.num_envs)
        self.action_space = batch_space(self.single_action_space, envs.num_envs)


def _floats(observations: Any) -> Any:
    """Return observations in the type that the network computes in."""
    return np.asarray(observations, dtype=np.float32)


class _Tape:
    """What T steps of N worlds gave, column by column."""

    def __init__(self, first: Any) -> None:
        self.observations = [first]
        self.columns: list[tuple[Any, ...]] = []
        self.num_real = self.num_ended = 0

    def add(self, actions: Any, outputs: Any, logps: Any, void: Any, stepped: tuple[Any, ...]) -> None:
        """Append one step of every world; `void` marks those whose step was their new beginning."""
        observations, rewards, terminated, truncated = stepped
        self.observations.append(observations)
        self.columns.append((actions, outputs, logps, rewards, void, terminated, truncated))
        self.num_real += int((~void).sum())
        self.num_ended += int((terminated | truncated).sum())

    def cut(self, lost: Any) -> None:
        """Truncate the episodes of lost worlds where they are, before the step that never was."""
        if self.columns:
            *_, void, terminated, truncated = self.columns[-1]
            truncated |= lost & ~void & ~terminated

    def episodes(self, observation_space: Any, action_space: Any) -> list[SingleAgentEpisode]:
        """Return every run of real steps as an episode (or a chunk of one) of T + 1 observations."""
        observations = np.stack(self.observations, axis=1)
        actions, outputs, logps, rewards, void, terminated, truncated = (
            np.stack(column, axis=1) for column in zip(*self.columns, strict=True)
        )
        num_steps = void.shape[1]
        chunks = []
        for world in range(len(void)):
            cuts = [-1, *np.flatnonzero(void[world]), num_steps]
            for begin, end in zip((c + 1 for c in cuts), cuts[1:], strict=False):
                if begin == end:
                    continue
                here = (world, slice(begin, end))
                chunk = SingleAgentEpisode(
                    observations=observations[world, begin : end + 1],
                    actions=actions[here],
                    rewards=rewards[here],
                    infos=[{}] * (end - begin + 1),
                    terminated=bool(terminated[world, end - 1]),
                    truncated=bool(truncated[world, end - 1] and not terminated[world, end - 1]),
                    extra_model_outputs={"action_dist_inputs": outputs[here], "action_logp": logps[here]},
                    observation_space=observation_space,
                    action_space=action_space,
                    len_lookback_buffer=0,
                )
                chunks.append(chunk.to_numpy())
        return chunks
