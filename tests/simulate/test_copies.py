"""Worlds are copied in the middle of an episode faithfully, or not at all."""

from __future__ import annotations

import dataclasses

import gymnasium
import numpy as np
import pytest

from flywheel.records import Correction, Episode
from flywheel.simulate import make_worlds, play
from flywheel.simulate.copies import NoCopy, put, take
from flywheel.simulate.corrected import corrected
from flywheel.tapes import chain
from flywheel.task import Task
from flywheel.tasks.lunarlander import lunarlander
from flywheel.testing import load_linear
from flywheel.trace import Fork


def fell(episode: Episode) -> bool:
    return episode.end == "terminated"


hopper = Task(name="hopper", env="Hopper-v5", failed=fell)


def test_box2d_has_no_copy() -> None:
    worlds = make_worlds(lunarlander, 2)
    worlds.reset([1, 2], [{}] * 2)
    with pytest.raises(NoCopy, match="begins anew"):
        worlds.snapshot()
    worlds.close()


def test_an_object_of_a_c_library_has_no_copy() -> None:
    env = gymnasium.make("CartPole-v1")
    env.unwrapped.handle = (n for n in range(3))  # type: ignore[attr-defined]
    with pytest.raises(NoCopy, match="generator"):
        take(env)


def test_what_is_on_its_way_in_a_corrected_world_is_copied_with_mujocos_state() -> None:
    env = corrected(hopper, Correction(delay=3)).make_env()
    actions = np.random.default_rng(1).uniform(-1, 1, (30, 3)).astype(np.float32)
    env.reset(seed=1)
    for action in actions[:8]:
        env.step(action)
    taken, courses = take(env), []
    for _ in range(2):
        courses.append([env.step(action)[0].tobytes() for action in actions[8:12]])
        env.step(-actions[0])
        put(env, taken)
    assert courses[0] == courses[1]
    env.close()


@pytest.mark.parametrize("name", ["InvertedPendulum-v5", "Hopper-v5", "Ant-v5"])
def test_mujoco_goes_on_from_its_own_state_to_the_last_bit(name: str) -> None:
    env = gymnasium.make(name, max_episode_steps=40)
    actions = np.random.default_rng(1).uniform(-1, 1, (60, *env.action_space.shape)).astype(np.float32)  # type: ignore[misc]
    env.reset(seed=1)
    for action in actions[:15]:
        env.step(action)
    taken = take(env)
    courses = []
    for _ in range(2):
        put(env, taken)
        rows = []
        for action in actions[15:]:
            observation, reward, _, truncated, _ = env.step(action)
            rows.append(observation.tobytes() + np.float64(reward).tobytes())
            if truncated:
                break
        courses.append(rows)
        env.reset(seed=2)
    assert courses[0] == courses[1] and len(courses[0]) == 25, "the steps of its time limit, too"
    env.close()


def test_forks_of_mujocos_worlds_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = load_linear(hopper, 0.1 * np.random.default_rng(2).normal(size=(6, 11)), digest="a" * 64)
    (episode,) = play(hopper, policy, seeds=[4], parameters=[{}], draw_keys=[4])
    assert episode.num_steps > 10
    fork = Fork(hopper, episode, 6, {policy.digest: policy})
    assert chain(fork.replay().fork) == chain(episode)

    def refuse(*_: object) -> None:
        raise AssertionError("it was stepped again from its seed")

    monkeypatch.setattr(type(make_worlds(hopper, 1)), "reset", refuse)
    assert chain(fork.replay().fork) == chain(episode), "the second time from MuJoCo's state"
    wider = fork.edit_parameter("temperature", 3.0).replay().fork
    assert chain(wider) != chain(episode) and (wider.observations[:7] == episode.observations[:7]).all()


def test_production_of_mujoco_is_not_guessed() -> None:
    policy = load_linear(hopper, np.zeros((6, 11)), digest="a" * 64)
    (episode,) = play(hopper, policy, seeds=[4], parameters=[{}], draw_keys=[4])
    with pytest.raises(Exception, match="gives no observed_state and no set_state"):
        Fork(hopper, dataclasses.replace(episode, seed=None), 3, {policy.digest: policy})
