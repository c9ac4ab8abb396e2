"""A Task from a Gymnasium id alone: what failing is, and that every process means the same."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel.config import Config
from flywheel.errors import UsageError
from flywheel.simulate import play
from flywheel.task import Task, task_digest
from flywheel.tasks import gym_env, load, reference
from flywheel.tasks.gym_env import Below, Found, chosen, from_id, measure, measured
from flywheel.testing import BAD, GOOD, load_linear

ASKS = r"can't be measured, because .*: give --env-failed-below NUMBER"


class Paid(gymnasium.Env[Any, Any]):
    """One step, whose reward is drawn between 0 and 1, or which raises."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, broken: bool = False) -> None:
        self.broken = broken

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self.broken:
            raise OSError("disk full")
        return np.zeros(1, np.float32), self.np_random.random(), True, False, {}


gymnasium.register("flywheel/Paid-v0", Paid)
gymnasium.register("flywheel/Broken-v0", lambda: Paid(broken=True))


def test_failing_is_half_way_from_random_to_the_threshold() -> None:
    task, told = from_id("CartPole-v1")
    found = measure("CartPole-v1")
    mean = float(np.mean(found.returns))
    assert found.threshold == 475.0 and len(found.returns) == 100 and 15 < mean < 30
    assert task.failed == Below(float(f"{(mean + 475) / 2:.3g}"))
    assert task.return_range == (min(found.returns), 475.0)
    assert f"below {task.failed.limit:g} (half way between {mean:.4g}" in told  # type: ignore[attr-defined]
    assert (task.name, task.env, task.limits.max_failure_rate) == ("CartPole-v1", "CartPole-v1", 0.05)
    for gains, failed in ((GOOD, False), (BAD, True)):
        episodes = play(task, load_linear(task, gains), seeds=range(5), parameters=[{}] * 5, draw_keys=range(5))
        assert {episode.failed for episode in episodes} == {failed}


def test_without_a_threshold_it_is_what_random_episodes_hardly_ever_exceed() -> None:
    task, told = from_id("flywheel/Paid-v0")
    returns = measure("flywheel/Paid-v0").returns
    assert task.return_range is None and task.name == "flywheel-Paid-v0" and "no reward threshold" in told
    assert isinstance(task.failed, Below) and task.failed.or_equal
    assert task.failed.limit == pytest.approx(np.quantile(returns, 0.95), rel=0.005)


@pytest.mark.parametrize(
    ("id_", "limit", "said"),
    [
        ("MountainCar-v0", -155.0, "-200, the mean of 50 random episodes"),
        ("Acrobot-v1", -300.0, "-500, the mean of 20 random episodes"),
        ("Taxi-v3", -96.0, "-200, the mean of episodes that always take action 0,"),  # a random one gets -790
        ("MountainCarContinuous-v0", 45.0, r"0, the mean of episodes that always take action [0.],"),
        ("FrozenLake-v1", 0.35, "0, the mean of 100 random episodes"),
        ("BipedalWalker-v3", 104.0, "the mean of episodes that always take action [0., 0., 0., 0.],"),
    ],
)
def test_no_policy_that_looks_at_nothing_passes(
    id_: str, limit: float, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gym_env, "MAX_STEPS", 10_000)
    monkeypatch.setattr(gym_env, "ACTION_STEPS", 500)
    task, told = from_id(id_)
    assert task.failed == Below(limit) and said in told


@pytest.mark.parametrize(
    ("id_", "returns"),
    [
        ("Pendulum-v1", "100 random episodes returned -1,853 to -737.6, -1,197 on average"),
        ("CliffWalking-v1", "4 random episodes returned -99,400 to -38,040"),
        ("Blackjack-v1", "100 random episodes returned -1 to 1, -0.42 on average"),
    ],
)
def test_where_nothing_says_what_a_good_return_is_it_is_asked_for(id_: str, returns: str) -> None:
    with pytest.raises(UsageError, match=f"no reward threshold, and some of its rewards are negative.*{returns}.*NUMB"):
        from_id(id_)
    task, told = from_id(id_, failed_below=-0.5)
    assert task.failed == Below(-0.5) and "(as asked for)" in told


def test_images_are_refused_before_they_are_played() -> None:
    with pytest.raises(UsageError, match="observes an image"):
        from_id("CarRacing-v3", failed_below=1.0)


def found(returns: Sequence[float], lowest: float = 0.0, best: float = -1e9, threshold: float | None = None) -> Found:
    return Found(returns=tuple(returns), lowest=lowest, constant=("0", best), threshold=threshold)


def test_a_rule_that_everybody_or_nobody_keeps_is_none() -> None:
    for case in (
        found([1.0] * 50, threshold=1.0),  # random is as good as it gets
        found([0.0] * 50, best=7.0, threshold=5.0),  # so is an action that is always taken
        found([0.0] * 90 + [1.0] * 10),  # nothing is better than what a tenth of random episodes gets
        found([10.0] * 50),  # every episode gets the same
        found([-5.0, -9.0], lowest=-1.0),
    ):
        with pytest.raises(UsageError, match=ASKS):
            measured("X-v0", case)
    assert measured("X-v0", found([0.0] * 50))[:2] == ("failed_to", 0.0), "a reward that random never finds"
    assert measured("X-v0", found([0.0] * 97 + [1.0] * 3))[:2] == ("failed_to", 0.0)


NUMBERS = st.floats(-1e4, 1e4)


@given(st.lists(NUMBERS, min_size=1, max_size=30), NUMBERS, NUMBERS, st.none() | NUMBERS)
def test_a_measured_rule_fails_what_looks_at_nothing_and_lets_a_better_return_pass(
    returns: list[float], lowest: float, best: float, threshold: float | None
) -> None:
    try:
        name, limit, _ = measured("X-v0", found(returns, lowest, best, threshold))
    except UsageError:
        return
    if threshold is None:
        assert lowest >= 0 and name == "failed_to" and (limit < max(returns) or limit == 0)
        return
    top = max(best, float(np.mean(returns)))
    assert name == "failed_below" and top <= limit <= threshold


def test_what_is_asked_for_counts_before_what_is_measured() -> None:
    text, told = chosen(Config(env="CartPole-v1", env_failed_below=-12.5, env_max_failure_rate=0.2))
    task = load(text)
    assert task.failed == Below(-12.5) and task.limits.max_failure_rate == 0.2
    assert "below -12.5 (as asked for), and 20 % of them may fail" in told
    with pytest.raises(UsageError, match="a run has one task"):
        chosen(Config(env="CartPole-v1", task="other:task"))


@pytest.mark.parametrize("id_", ["CartPole-v1", "flywheel/Paid-v0"])
def test_a_reference_holds_all_that_was_measured(id_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task = load(f"env:{id_}")
    text = reference(task)
    monkeypatch.setattr(gym_env, "measure", None)
    again = load(text)
    assert again == task and reference(again) == text and task_digest(again) == task_digest(task)


def test_the_digest_is_the_same_in_another_process_and_notices_what_failing_is() -> None:
    code = "from flywheel import tasks, task; print(task.task_digest(tasks.load('env:CartPole-v1')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    task = load("env:CartPole-v1")
    assert done.stdout.strip() == task_digest(task)
    other = load(reference(task).replace("failed_below=", "failed_below=1"))
    assert task_digest(other) != task_digest(task)


def test_an_episode_that_does_not_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    gymnasium.register("flywheel/Endless-v0", lambda: gymnasium.make("Pendulum-v1", max_episode_steps=10**9))
    monkeypatch.setattr(gym_env, "MAX_STEPS", 50)
    assert len(measure("flywheel/Endless-v0").returns) == 1
    del gymnasium.registry["flywheel/Endless-v0"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("env:CartPol-v1", "Did you mean: `CartPole`"),
        ("env:CartPole-v9", "doesn't exist"),
        ("env:no_such_module:Thing-v0", "No module named 'no_such_module'"),
        ("env:", "There is no environment"),
        ("env:Pendulum-v1", r"env:Pendulum-v1\?failed_below=NUMBER"),
        ("env:flywheel/Broken-v0", r"raised OSError\('disk full'\) under a random policy"),
        ("env:CartPole-v1?failed_bellow=1", "Did you mean 'failed_below'"),
        ("env:CartPole-v1?failed_below=one", "no number"),
    ],
)
def test_wrong_ones_get_a_sentence(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        load(text)


def test_a_task_of_ones_own_is_none_of_them() -> None:
    own = dataclasses.replace(load("cartpole"), name="own")
    assert isinstance(own, Task)
    with pytest.raises(UsageError, match="can't be imported"):
        reference(own)
