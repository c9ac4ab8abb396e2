"""A world without a vector form whose episodes are 10 to 100 steps long, and fail the likelier the shorter they are."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from flywheel.records import Episode
from flywheel.tapes import Scenario
from flywheel.task import EdgeCase, Limits, Parameter, Task

Seen = tuple[Any, float, bool, bool, dict[str, Any]]


class Uneven(gymnasium.Env[Any, Any]):
    """A walk of random length that goes on where it isn't pushed back."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    wind = 0.0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.left = self.length = int(10 ** self.np_random.uniform(1.0, 2.005))
        self.bad = bool(self.np_random.random() < 2.0 / self.length)
        self.x = 0.0
        return self._look(), {}

    def _look(self) -> Any:
        return np.array([self.x, self.left / 100], np.float32)

    def step(self, action: Any) -> Seen:
        self.x += 0.1 * (2 * int(action) - 1) + self.wind + 0.05 * self.np_random.normal()
        self.left -= 1
        over = not self.left
        return self._look(), -abs(self.x), over and self.bad, over and not self.bad, {}


class Mortal(Uneven):
    """One that ends its process at its first step while the file that MORTAL names isn't there; that makes it there."""

    def step(self, action: Any) -> Seen:
        met = Path(os.environ["MORTAL"])
        if not met.exists() and os.getpid() != int(os.environ["SPARED"]):
            if met.parent.exists():
                met.touch()
            os._exit(3)
        return super().step(action)


class Changed(Uneven):
    """One that a program changes after it was imported."""

    start = 0.0

    def reset(self, **given: Any) -> tuple[Any, dict[str, Any]]:
        super().reset(**given)
        self.x = Changed.start
        return self._look(), {}


class Stuck(Uneven):
    """One that never answers, but in the process that SPARED names."""

    def step(self, action: Any) -> Seen:
        if os.getpid() != int(os.environ["SPARED"]):
            threading.Event().wait()
        return super().step(action)


class Fragile(Uneven):
    """One of which many break."""

    def step(self, action: Any) -> Seen:
        if self.length > 20 and self.length % 2 and self.length - self.left == 11:
            raise OSError("torn")
        return super().step(action)


class StrangeError(Exception):
    """One that can't be unpickled."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(f"{one}, {other}")


def failed(episode: Episode) -> bool:
    return episode.end == "terminated"


def choosy(episode: Episode) -> bool:
    """Say whether an episode of more than 15 steps failed."""
    if episode.num_steps < 15:
        raise StrangeError("no", "thanks")
    return failed(episode)


def margin(episode: Episode) -> float:
    return 1.0 - float(np.abs(episode.observations[:, 0]).max())


def set_parameters(env: Any, values: Mapping[str, Any]) -> None:
    env.unwrapped.wind = values["wind"]


UNEVEN = Task(
    name="uneven",
    env=Uneven,
    failed=failed,
    margin=margin,
    parameters=(Parameter("wind", 0.0, -1.0, 1.0),),
    set_parameters=set_parameters,
    edge_cases=(EdgeCase("windy", {"wind": 0.05}), EdgeCase("windier", {"wind": 0.1})),
    limits=Limits(max_failure_rate=0.2, max_latency_s=60.0),
)
MORTAL = Task(name="mortal", env=Mortal, failed=failed, limits=Limits(max_failure_rate=0.2, max_latency_s=60.0))
SUITE = (
    Scenario(name="led", parameters={"wind": 0.02}, fork=("e", 3), saved_at=1.0, seed=5, actions=(1, 0, 1, 1)),
    Scenario(name="led too", parameters={}, fork=("e", 2), saved_at=1.0, seed=6, actions=(1, 1), before={"wind": 0.1}),
)
"""Scenarios that given actions lead to."""
BACK = (1.0, 0.0), (-1.0, 0.0)
"""Gains that push back."""
