"""A user's own callbacks, networks and environments, in a module of the user's own."""

from __future__ import annotations

from typing import Any

import gymnasium
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.callbacks.callbacks import RLlibCallback


class Counting(gymnasium.Wrapper[Any, Any, Any, Any]):
    """CartPole that counts the steps of a process's environments, which no reset is."""

    stepped = begun = 0

    def reset(self, **options: Any) -> Any:
        Counting.begun += 1
        return self.env.reset(**options)

    def step(self, action: Any) -> Any:
        Counting.stepped += 1
        return self.env.step(action)


def counting() -> gymnasium.Env[Any, Any]:
    return Counting(gymnasium.make("CartPole-v1"))


def step_seen(*, env_runner: Any, episode: Any, **_: Any) -> None:
    """RLlib's on_episode_step."""
    env_runner.num_seen = getattr(env_runner, "num_seen", 0) + 1


def iterated(*, algorithm: Any, result: Any, **_: Any) -> None:
    """RLlib's on_train_result."""
    algorithm.num_told = getattr(algorithm, "num_told", 0) + 1


class Watching(RLlibCallback):
    """Callbacks in a class."""

    def on_episode_end(self, *, env_runner: Any, **_: Any) -> None:
        """Count an episode."""
        env_runner.num_ended = getattr(env_runner, "num_ended", 0) + 1


class Same(DefaultPPOTorchRLModule):
    """RLlib's own module by another name, which is no longer known to be layers alone."""


class Remembering(DefaultPPOTorchRLModule):
    """A module with a state."""

    def get_initial_state(self) -> Any:
        """Return a state."""
        return {"h": 0}


NUMBER = 3
"""Nothing that could be called."""
