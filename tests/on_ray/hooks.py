"""A user's own callbacks, networks and environments, in a module of the user's own."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.connectors.connector_v2 import ConnectorV2


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


class Bonus(ConnectorV2):
    """A learner connector: a reward for every step, as those of curiosity are."""

    def __call__(self, *, episodes: Any, batch: Any, **_: Any) -> Any:
        """Add it."""
        for episode in self.single_agent_episode_iterator(episodes, agents_that_stepped_only=False):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # RLlib wonders at numbers that are no arrays
                episode.set_rewards(new_data=episode.get_rewards() + 10.0)
        return batch


def curious(spaces: Any, device: Any) -> Any:
    """RLlib's learner_connector."""
    return Bonus()


NUMBER = 3
"""Nothing that could be called."""
