"""Environments that misbehave in training: made anew and counted; their episodes are cut before the step that broke."""

from __future__ import annotations

import dataclasses
from typing import Any

import gymnasium
import numpy as np
import pytest

from flywheel.config import TrainConfig
from flywheel.errors import FlywheelError
from flywheel.records import Plan
from flywheel.task import Parameter, Task
from flywheel.tasks.cartpole import cartpole
from flywheel.train.practice import Practice
from flywheel.train.recipe import make_recipe
from flywheel.train.sturdy import RECENT, TOLERATED, Tally

NUM = 4


class Counting(gymnasium.Env[Any, Any]):
    """Shows its step and its gain; ends after 20 steps; breaks in its step number `at` when its seed says so."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    how, at, share, made, ends = "", 7, 0.0, 0, True

    def __init__(self) -> None:
        Counting.made += 1
        self.gain = 0.0

    def seen(self) -> Any:
        return np.array([self.t, self.gain], np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t, self.bad = 0, self.np_random.random() < Counting.share
        if self.bad and Counting.how == "reset":
            raise OSError("no licence")
        return self.seen(), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        observation, reward = self.seen(), 1.0
        if self.bad and self.t == Counting.at:
            if Counting.how == "raise":
                raise OSError("disk full")
            reward = np.inf if Counting.how == "reward" else reward
            observation = observation * np.nan if Counting.how == "observation" else observation
            observation = observation[:1] if Counting.how == "shape" else observation
        return observation, reward, Counting.ends and self.t >= 20, False, {}


def set_gain(env: Any, values: Any) -> None:
    env.unwrapped.gain = values["gain"]


COUNTING = Task(
    name="counting",
    env=Counting,
    failed=cartpole.failed,
    parameters=(Parameter("gain", 1.0, 0.5, 2.0),),
    set_parameters=set_gain,
)


def practice(monkeypatch: pytest.MonkeyPatch, task: Task = COUNTING, **traits: Any) -> Practice:
    for name, value in traits.items():
        monkeypatch.setattr(Counting, name, value)
    return Practice(task, NUM, np.random.default_rng(1))


RECIPE = make_recipe(COUNTING, Plan(strategy="continue_training", reasons=()), TrainConfig())
ZEROS = np.zeros(NUM, dtype=np.int64)


@pytest.mark.parametrize("how", ["raise", "reward", "observation", "shape", "reset"])
def test_a_world_that_breaks_is_made_anew_and_its_last_step_never_was(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    worlds = practice(monkeypatch, how=how, share=0.02, made=0)
    before, num_lost = worlds.begin(RECIPE), 0
    for _ in range(1000):
        began = worlds.ended
        seen, rewards, terminated, truncated = worlds.step(ZEROS)
        lost, num_lost = worlds.lost, num_lost + int(worlds.lost.sum())
        assert np.isfinite(seen).all() and np.isfinite(rewards).all()
        assert not (lost & (terminated | truncated)).any() and (rewards[lost] == 0.0).all()
        assert (seen[lost] == before[lost]).all() and worlds.ended[lost].all()
        assert (lost <= began).all() if how == "reset" else (before[lost, 0] == 6).all()
        assert (seen[began & ~lost] == [0.0, 1.0]).all(), "a new one has its parameters"
        assert (seen[~began & ~lost, 0] == before[~began & ~lost, 0] + 1).all()
        before = seen
    assert num_lost == worlds.tally.num_broken > 0
    assert Counting.made == NUM + num_lost
    assert worlds.tally.last.startswith("raised OSError" if how in ("raise", "reset") else "gave ")


@pytest.mark.parametrize("how", ["raise", "reset"])
def test_worlds_that_always_break_end_the_training_soon(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    worlds = practice(monkeypatch, how=how, share=2.0)
    with pytest.raises(FlywheelError, match=r"11 of the last 11 training episodes of task counting broke.*OSError"):
        worlds.begin(RECIPE)
        for _ in range(100):
            worlds.step(ZEROS)


def test_one_in_twenty_is_tolerated() -> None:
    tally = Tally("mine")
    for _ in range(10 * RECENT // (RECENT // TOLERATED)):
        tally.broke("raised X")
        tally.ended(RECENT // TOLERATED - 1)
    tally.broke("raised X")  # the oldest one of as many is forgotten for it
    with pytest.raises(FlywheelError, match="11 of the last 200"):
        tally.broke("raised X")


@pytest.mark.parametrize("task", [cartpole, dataclasses.replace(cartpole, vector=None), COUNTING])
def test_episodes_are_cut_off_at_the_task_s_most_steps(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    worlds = practice(monkeypatch, dataclasses.replace(task, max_steps=6, edge_cases=()), ends=False)
    worlds.begin(make_recipe(worlds.task, Plan(strategy="continue_training", reasons=()), TrainConfig()))
    for step in range(1, 30):
        began = worlds.ended
        seen, rewards, terminated, truncated = worlds.step(ZEROS)
        assert not terminated.any(), "a pole needs some eight steps to fall"
        assert truncated.all() if step % 7 == 6 else not truncated.any()
        assert (rewards == (0.0 if began.all() else 1.0)).all()
        if began.all():
            assert (np.abs(seen) <= 0.05).all() or (seen == [0.0, 1.0]).all()
    worlds.close()


class Vector(gymnasium.vector.VectorWrapper):
    """CartPole's vector form that raises in its fifth step, or gives world 1 a NaN there; later ones are fine."""

    made = 0
    how = ""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        Vector.made += 1
        self.number, self.t = Vector.made, 0

    def step(self, actions: Any) -> Any:
        self.t += 1
        observations, rewards, *rest = self.env.step(actions)
        if self.number == 1 and self.t == 5:
            if Vector.how == "raise":
                raise OSError("disk full")
            rewards = np.where(np.arange(NUM) == 1, np.nan, rewards)
        return observations, rewards, *rest


def vector(num_worlds: int) -> Any:
    return Vector(cartpole.vector(num_worlds))  # type: ignore[misc]


@pytest.mark.parametrize("how", ["raise", "nan"])
def test_a_vector_form_that_breaks(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Vector, "made", 0)
    monkeypatch.setattr(Vector, "how", how)
    task = dataclasses.replace(cartpole, vector=vector, edge_cases=())
    worlds = Practice(task, NUM, np.random.default_rng(1))
    before = worlds.begin(make_recipe(task, Plan(strategy="continue_training", reasons=()), TrainConfig()))
    for step in range(1, 9):
        seen, rewards, terminated, truncated = worlds.step(ZEROS)
        assert np.isfinite(seen).all() and not (terminated | truncated).any()
        broken = np.full(NUM, how == "raise") | (np.arange(NUM) == 1)
        assert (worlds.lost == (broken & (step == 5))).all()
        if step == 5:
            assert (seen[broken] == before[broken]).all()
        if step == 6:
            assert (np.abs(seen[broken]) <= 0.05).all() and (rewards[broken] == 0.0).all()
        before = seen
    assert worlds.tally.num_broken == 1 and Vector.made == (2 if how == "raise" else 1)
