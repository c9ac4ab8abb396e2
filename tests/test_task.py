"""Task: its digest notices every change, and what it can't do is said by name."""

from __future__ import annotations

import dataclasses
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from flywheel.errors import UsageError
from flywheel.records import Episode
from flywheel.task import EdgeCase, Limits, Parameter, Task, spec_of, task_digest
from flywheel.tasks import load
from flywheel.tasks.cartpole import cartpole


def failed(episode: Episode) -> bool:
    """A user's rule."""
    return episode.end == "terminated"


def failed_otherwise(episode: Episode) -> bool:
    """Another rule."""
    return episode.num_steps < 10


TASK = Task(name="mine", env="CartPole-v1", failed=failed)


def test_the_digest_is_stable_and_notices_every_change() -> None:
    changed = [
        dataclasses.replace(TASK, name="other"),
        dataclasses.replace(TASK, env="CartPole-v0"),
        dataclasses.replace(TASK, failed=failed_otherwise),
        dataclasses.replace(TASK, limits=Limits(max_failure_rate=0.1)),
        dataclasses.replace(TASK, greedy=True),
        dataclasses.replace(TASK, version="2"),
        dataclasses.replace(TASK, return_range=(0.0, 1.0)),
    ]
    assert task_digest(TASK) == task_digest(dataclasses.replace(TASK))
    assert len({task_digest(task) for task in [TASK, *changed]}) == len(changed) + 1


def test_a_callable_without_source_is_refused_unless_there_is_a_version() -> None:
    blind = dataclasses.replace(TASK, failed=eval("lambda episode: False"))
    with pytest.raises(UsageError, match="failed of task mine"):
        task_digest(blind)
    assert task_digest(dataclasses.replace(blind, version="1")) != task_digest(dataclasses.replace(blind, version="2"))


def test_a_misspelt_parameter_gets_a_suggestion() -> None:
    with pytest.raises(UsageError, match="Did you mean 'length'"):
        dataclasses.replace(load("cartpole"), drift={"lenght": 2.0})


def test_what_can_not_work_is_refused_at_once() -> None:
    with pytest.raises(UsageError, match="no set_parameters"):
        dataclasses.replace(TASK, parameters=(Parameter("length", 0.5, 0.1, 4.0),))
    with pytest.raises(UsageError, match="no set_state"):
        dataclasses.replace(TASK, edge_cases=(EdgeCase("tilted", state=(0.0, 0.0, 0.1, 0.0)),))
    for name in ("nominal", "stress", "cells", "search", "suite:0"):
        with pytest.raises(UsageError, match=f"Edge case {name} of task .* calls worlds of its own"):
            dataclasses.replace(TASK, edge_cases=(EdgeCase(name),))
    with pytest.raises(UsageError, match="given twice"):
        dataclasses.replace(TASK, edge_cases=(EdgeCase("tilted"), EdgeCase("tilted")))
    with pytest.raises(UsageError, match="state_period"):
        dataclasses.replace(TASK, state_period=(-1.0,))


def test_the_digest_knows_the_angles_but_not_how_a_task_is_trained() -> None:
    assert task_digest(dataclasses.replace(TASK, state_period=(6.28,))) != task_digest(TASK)
    assert task_digest(dataclasses.replace(TASK, settings={"train": {"lr": 0.1}})) == task_digest(TASK)


class Odd(gymnasium.Env[Any, Any]):
    """An environment that has spaces and does nothing."""

    def __init__(self, action: gymnasium.Space[Any], observation: gymnasium.Space[Any] | None = None) -> None:
        self.action_space = action
        self.observation_space = observation or spaces.Box(0, 1, (2,))


@pytest.mark.parametrize(
    "action",
    [
        spaces.Dict({"a": spaces.Discrete(2)}),
        spaces.Tuple([spaces.Discrete(2)]),
        spaces.MultiBinary(3),
        spaces.Box(0, 5, (2,), np.int64),
        spaces.MultiDiscrete([[2, 2], [2, 2]]),
        spaces.Text(3),
    ],
    ids=lambda space: type(space).__name__,
)
def test_actions_that_are_not_supported_are_named(action: gymnasium.Space[Any]) -> None:
    with pytest.raises(UsageError, match=f"Task mine has the action space {type(action).__name__}.*ActionWrapper"):
        spec_of(dataclasses.replace(TASK, env=lambda: Odd(action)))


def test_observations_that_are_not_supported_are_named() -> None:
    image = spaces.Box(0, 255, (8, 8, 3), np.uint8)
    with pytest.raises(UsageError, match=r"Task mine observes an image.*FlattenObservation"):
        spec_of(dataclasses.replace(TASK, env=lambda: Odd(spaces.Discrete(2), image)))


def test_gymnasiums_own_nested_spaces_have_a_spec() -> None:
    cards, lake = (spec_of(dataclasses.replace(TASK, env=name)) for name in ("Blackjack-v1", "FrozenLake-v1"))
    assert (cards.observation_shape, [leaf.path for leaf in cards.observation_leaves]) == ((45,), [(0,), (1,), (2,)])
    assert (lake.observation_shape, lake.observation_leaves[0].kind) == ((16,), "discrete")


def test_the_spec_of_a_continuous_task() -> None:
    spec = spec_of(dataclasses.replace(TASK, env="Pendulum-v1"))
    assert (spec.action_kind, spec.action_shape, spec.num_draws, spec.unsquash) == ("box", (1,), 1, True)
    assert spec.rule.kind == "gaussian"


def test_an_unknown_built_in_task_gets_a_suggestion() -> None:
    with pytest.raises(UsageError, match="Did you mean 'cartpole'"):
        load("cartpol")


def test_a_task_of_the_users_is_found_by_module_and_attribute() -> None:
    assert load("tests.test_task:TASK") is TASK
    with pytest.raises(UsageError, match="TASC"):
        load("tests.test_task:TASC")
    with pytest.raises(UsageError, match="no_such_module"):
        load("no_such_module:task")


def test_make_env_gives_a_fresh_environment() -> None:
    env = TASK.make_env()
    assert isinstance(env, gymnasium.Env)
    assert env is not TASK.make_env()


def test_an_episode_of_ones_own_is_a_record_that_the_task_has_judged() -> None:
    episode = cartpole.episode(np.zeros((4, 4)), [0, 1, 0], [1.0, 1.0, 1.0], policy="mine", ended_at=5.0)
    assert (episode.num_steps, episode.total, episode.end, episode.failed) == (3, 3.0, "terminated", True)
    assert (episode.digests, episode.task, episode.origin) == (("mine",) * 3, task_digest(cartpole), "production")
    assert (episode.started_at, episode.ended_at) == (5.0, 5.0)
    cut = cartpole.episode(np.zeros((2, 4)), [0], end="truncated", id="e", started_at=1.0)
    assert cut.id == "e" and cut.started_at == 1.0 < cut.ended_at and not cut.failed and np.isnan(cut.rewards).all()
    assert cut.id != cartpole.episode(np.zeros((2, 4)), [0]).id


@pytest.mark.parametrize(("observations", "actions", "rewards"), [(3, 3, 3), (4, 3, 2), (1, 0, 0)])
def test_an_episode_whose_numbers_do_not_fit_is_refused(observations: int, actions: int, rewards: int) -> None:
    with pytest.raises(UsageError, match=f"{observations} observations, {actions} actions and {rewards} rewards"):
        cartpole.episode(np.zeros((observations, 4)), np.zeros(actions), np.zeros(rewards))
