"""A small world whose observations are nested and whose actions are no single number: tasks for tests of spaces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete

from flywheel.records import Array, Episode
from flywheel.task import EdgeCase, Parameter, Task

NUM_STEPS = 12


class Room(gymnasium.Env[Any, Any]):
    """Stay near the middle of a room while the wind, whose direction is the mode (1 to 3), blows."""

    observation_space = Dict({"position": Box(-9.0, 9.0, (2,), np.float32), "mode": Discrete(3, start=1)})
    action_space: gymnasium.Space[Any] = MultiDiscrete([3, 2], start=[-1, 0])

    def __init__(self) -> None:
        self.wind = 0.3

    def observe(self) -> dict[str, Any]:
        """Return what is seen, in the space's own shape."""
        return {"position": self.at.astype(np.float32), "mode": np.int64(self.mode)}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.at, self.mode, self.t = self.np_random.normal(size=2), int(self.np_random.integers(1, 4)), 0
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(np.asarray(action, dtype=self.action_space.dtype)), action
        self.at = self.at + 0.5 * np.asarray(action, np.float64) + self.wind * (self.mode - 2)
        self.mode, self.t = int(self.np_random.integers(1, 4)), self.t + 1
        far = float(np.linalg.norm(self.at))
        return self.observe(), -far, far > 5.0, self.t >= NUM_STEPS, {}


class SteeredRoom(Room):
    """The same room with continuous actions, as a column."""

    action_space = Box(-1.0, 1.0, (2,), np.float32)


def set_parameters(env: Any, values: Mapping[str, Any]) -> None:
    """Set the wind."""
    for name, value in values.items():
        setattr(env.unwrapped, name, value)


def set_state(env: Any, state: Any) -> Any:
    """Put the world to (x, y, mode) and return what it shows there."""
    env.unwrapped.at, env.unwrapped.mode = np.array(state[:2], np.float64), int(state[2])
    return env.unwrapped.observe()


def observed_state(observation: Array) -> Array:
    """Return (x, y, mode) of a flat observation: mode one-hot first, for a Dict is in the order of its names."""
    return np.array([*observation[3:], 1 + observation[:3].argmax()])


def failed(episode: Episode) -> bool:
    """Return whether the wall was hit."""
    return episode.end == "terminated"


room = Task(
    name="room",
    env=Room,
    failed=failed,
    parameters=(Parameter("wind", 0.3, 0.0, 2.0),),
    set_parameters=set_parameters,
    set_state=set_state,
    observed_state=observed_state,
    edge_cases=(EdgeCase("corner", state=(3.0, 3.0, 1.0)),),
)
steered = Task(name="steered", env=SteeredRoom, failed=failed)
