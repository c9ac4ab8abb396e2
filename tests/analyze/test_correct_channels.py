"""Box actions of several numbers: exchanged, turned, or dead, in a world that each of them moves otherwise."""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box

from flywheel.analyze.correct import correct
from flywheel.config import AnalyzeConfig
from flywheel.correction import Correction
from flywheel.records import Episode
from flywheel.task import Task

STEPS = 40


class Sled(gymnasium.Env[Any, Any]):
    """As many numbers as the action has, each pulled back to 0 and moved by its own action, and by the first one's."""

    def __init__(self, size: int) -> None:
        self.observation_space = Box(-np.inf, np.inf, (size,), np.float32)
        self.action_space = Box(-1.0, 1.0, (size,), np.float32)
        self.state: Any = np.zeros(size)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = self.np_random.normal(size=self.state.shape)
        return self.state.astype(np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        given = np.asarray(action, np.float64)
        self.state = 0.9 * self.state + 0.3 * np.sin(given) + 0.1 * given[0]
        return self.state.astype(np.float32), 0.0, False, False, {}


def set_state(env: Any, state: Any) -> Any:
    env.unwrapped.state = np.array(state, dtype=np.float64)
    return env.unwrapped.state.astype(np.float32)


def state(env: Any) -> Any:
    return env.unwrapped.state.copy()


def seen(observation: Any) -> Any:
    return np.asarray(observation, np.float64)


def never(episode: Episode) -> bool:
    return False


def sled(size: int) -> Task:
    return Task(
        name="sled", env=partial(Sled, size), failed=never, set_state=set_state, state=state, observed_state=seen,
        max_steps=STEPS, version="test",
    )  # fmt: skip


def shown(task: Task, gain: Any, delay: int, first: int) -> list[Episode]:
    """Return what production shows whose world gets `gain` times what was given `delay` steps ago."""
    episodes = []
    for number in range(first, first + 16):
        rng, env = np.random.default_rng(number), task.make_env()
        rows, given = [env.reset(seed=number)[0]], rng.uniform(-0.9, 0.9, (STEPS, len(gain))).astype(np.float32)
        arrived = given[np.maximum(np.arange(STEPS) - delay, 0)] @ np.array(gain).T
        rows += [env.step(np.clip(action, -1.0, 1.0))[0] for action in arrived]
        episode = task.episode(np.array(rows), given, np.zeros(STEPS), end="truncated", started_at=float(number))
        episodes.append(episode)
    return episodes


@pytest.mark.parametrize(
    ("gain", "delay", "words"),
    [
        ([[0.0, 1.0], [1.0, 0.0]], 0, "number 0 of the action were number 1 and number 1 of the action were number 0"),
        ([[0.0, -1.0], [1.0, 0.0]], 1, "number 0 of the action were -1 times number 1 and number 1 of the action were"),
        ([[1.0, 0.0], [0.0, 0.0]], 0, "number 1 of the action were 0"),
        (np.diag([1.0, 1.0, -1.0, 1.0, 1.0, 1.0, 1.0, 0.5]).tolist(), 0, "number 2 of the action were -1 times"),
    ],
    ids=["exchanged", "turned and late", "dead", "eight numbers"],
)
def test_channels_are_named(gain: Any, delay: int, words: str) -> None:
    task = sled(len(gain))
    before, since = shown(task, np.eye(len(gain)), 0, 0), shown(task, gain, delay, 100)
    found = correct(task, since, AnalyzeConfig(), parameters={}, before=before).correction
    assert found is not None and found.explained > 0.99 and found.state is None
    assert found.delay == delay and not found.offset
    assert np.allclose(found.gain, gain, atol=0.01)
    assert words in str(found)
    nothing = correct(task, shown(task, np.eye(len(gain)), 0, 50), AnalyzeConfig(), parameters={}, before=before)
    assert nothing.correction == Correction()
