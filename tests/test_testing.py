"""The public fakes are what they say, and the laws notice what breaks them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from flywheel.errors import UsageError
from flywheel.policy import load, read_files, read_weights
from flywheel.records import Episode
from flywheel.simulate import play
from flywheel.task import Task, spec_of
from flywheel.tasks.cartpole import cartpole
from flywheel.testing import BAD, GOOD, SHORT_POLE, check_worlds, load_linear, write_linear_artifact
from tests.rooms import room, steered


def failures(gains: tuple[float, ...], length: float, num_worlds: int = 50) -> int:
    episodes = play(
        cartpole,
        load_linear(cartpole, gains),
        seeds=range(num_worlds),
        parameters=[{"length": length}] * num_worlds,
        draw_keys=range(num_worlds),
    )
    return sum(episode.failed for episode in episodes)


@pytest.mark.parametrize(
    ("gains", "length", "expected"),
    [(GOOD, 0.5, 0), (GOOD, 2.0, 0), (SHORT_POLE, 0.5, 0), (SHORT_POLE, 2.0, 50), (BAD, 0.5, 50), (BAD, 2.0, 50)],
)
def test_fakes_are_as_good_as_they_say(gains: tuple[float, ...], length: float, expected: int) -> None:
    assert failures(gains, length) == expected


def test_artifact_loads_and_proves_itself(tmp_path: Path) -> None:
    artifact = write_linear_artifact(tmp_path, cartpole, version=3, trained_on={"seed": 1})
    policy = load(artifact)
    assert policy.digest == artifact.digest and artifact.version == 3
    assert read_weights(read_files(Path(artifact.uri)))["gains"].shape == (2, 4)
    observation = np.array([[0.0, 0.0, 0.1, 0.0]], np.float32)
    assert policy.act(observation, np.array([[0.5]]))[0].tolist() == [1]


def test_rows_do_not_depend_on_the_batch() -> None:
    policy = load_linear(cartpole)
    observations = np.random.default_rng(0).normal(size=(256, 4)).astype(np.float32)
    whole = policy.outputs(observations)
    for size in (1, 2, 3, 7, 8, 16, 33, 255):
        assert (policy.outputs(observations[5 : 5 + size]) == whole[5 : 5 + size]).all()


class Walk(gymnasium.Env[Any, Any]):
    """A box task: hold a noisy point near 0 for 20 steps."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
    shared = np.random.default_rng(0)

    def __init__(self, leaky: bool = False) -> None:
        self.leaky = leaky

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.at, self.t = self.np_random.normal(), 0
        return np.array([self.at, 0], np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        noise = (Walk.shared if self.leaky else self.np_random).normal()
        self.at, self.t = self.at + float(action[0]) + noise, self.t + 1
        return np.array([self.at, self.t], np.float32), -abs(self.at), abs(self.at) > 6, self.t >= 20, {}


def fell(episode: Episode) -> bool:
    return episode.end == "terminated"


def leaky_walk() -> gymnasium.Env[Any, Any]:
    return Walk(leaky=True)


def test_worlds_of_good_tasks_obey_the_law() -> None:
    for task in (cartpole, Task(name="walk", env=Walk, failed=fell), room, steered):
        assert check_worlds(task) is None  # type: ignore[func-returns-value]


def test_worlds_that_share_a_generator_are_found() -> None:
    with pytest.raises(UsageError, match="goes another way"):
        check_worlds(Task(name="leaky", env=leaky_walk, failed=fell))


def test_box_policy_acts_within_bounds() -> None:
    task = Task(name="walk", env=Walk, failed=fell)
    policy = load_linear(task, [[-5.0, 0.0], [0.0, 0.0]], bias=[0.0, -1.0])
    assert spec_of(task).unsquash
    episode = play(task, policy, seeds=[1], parameters=[{}], draw_keys=[1])[0]
    assert episode.raw_actions.shape == (episode.num_steps, 1) and episode.raw_actions.dtype == np.float32


def test_importing_it_loads_neither_ray_nor_torch() -> None:
    code = "import sys, flywheel.testing, flywheel.tasks; print({'ray', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
