"""World i is a function of its own seed, parameters and state; snapshots bring it back."""

from __future__ import annotations

import dataclasses
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces.utils import flatten as gymnasium_flatten
from gymnasium.vector import SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel.errors import UsageError
from flywheel.simulate import Worlds, make_worlds
from flywheel.simulate.worlds import EachWorlds, LockstepWorlds
from flywheel.task import Task
from flywheel.tasks.cartpole import cartpole
from tests.rooms import Room, room

EACH = dataclasses.replace(cartpole, vector=None)
FORMS = pytest.mark.parametrize("task", [cartpole, EACH], ids=["lockstep", "each"])


def walk(worlds: Worlds, num_steps: int, world: int) -> bytes:
    """Step all worlds by fixed actions of their own and return the bytes of what one of them showed."""
    seen = b""
    for t in range(num_steps):
        actions = np.full(worlds.num_worlds, t % 2)
        observations, rewards, *_ = worlds.step(actions, np.ones(worlds.num_worlds, np.bool_))
        seen += observations[world].tobytes() + rewards[world].tobytes()
    return seen


def test_the_vector_form_is_used_where_there_is_one() -> None:
    assert isinstance(make_worlds(cartpole, 2), LockstepWorlds)
    assert isinstance(make_worlds(EACH, 2), EachWorlds)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2**53), st.floats(0.1, 4.0)), min_size=1, max_size=5),
    st.integers(0, 4),
    st.booleans(),
)
def test_a_world_depends_neither_on_the_others_nor_on_its_place(
    others: list[tuple[int, float]], place: int, each: bool
) -> None:
    mine, task = (42, 0.7), EACH if each else cartpole
    alone = make_worlds(cartpole, 1)
    first = alone.reset([mine[0]], [{"length": mine[1]}])
    crowd = [*others[:place], mine, *others[place:]]
    at = crowd.index(mine)
    worlds = make_worlds(task, len(crowd))
    observations = worlds.reset([seed for seed, _ in crowd], [{"length": length} for _, length in crowd])
    assert observations[at].tobytes() == first[0].tobytes()
    assert walk(worlds, 8, at) == walk(alone, 8, 0)


@FORMS
def test_nothing_is_left_over_from_the_episode_before(task: Task) -> None:
    worlds = make_worlds(task, 2)
    worlds.reset([1, 2], [{"gravity": 20.0, "length": 3.0}] * 2)
    walk(worlds, 60, 0)
    worlds.reset([1, 2], [{}, {"length": 1.0}])
    fresh = make_worlds(task, 2)
    fresh.reset([1, 2], [{}, {"length": 1.0}])
    assert walk(worlds, 9, 0) == walk(fresh, 9, 0)


@FORMS
def test_worlds_begin_in_the_state_they_are_given(task: Task) -> None:
    worlds = make_worlds(task, 3)
    observations = worlds.reset([1, 2, 1], [{}] * 3, [(1.0, 0.0, 0.1, 0.0), None, None])
    assert np.allclose(observations[0], [1.0, 0.0, 0.1, 0.0])
    assert (np.abs(observations[1:]) <= 0.05).all()


@FORMS
def test_a_snapshot_can_be_restored_twice(task: Task) -> None:
    worlds = make_worlds(task, 2)
    worlds.reset([1, 2], [{}, {"length": 1.0}])
    walk(worlds, 3, 0)
    snapshot = worlds.snapshot()
    first = walk(worlds, 6, 1)
    for _ in range(2):
        worlds.restore(snapshot)
        assert walk(worlds, 6, 1) == first


@FORMS
def test_inactive_worlds_never_end(task: Task) -> None:
    worlds = make_worlds(task, 2)
    worlds.reset([1, 2], [{}] * 2)
    ended = np.zeros(2, np.bool_)
    while not ended[0]:
        ended |= worlds.step(np.ones(2, np.int64), np.array([True, False]))[2]
    assert ended.tolist() == [True, False]


@FORMS
def test_unknown_parameters_get_a_suggestion(task: Task) -> None:
    with pytest.raises(UsageError, match="Did you mean 'length'"):
        make_worlds(task, 1).reset([1], [{"lenght": 1.0}])


def test_what_a_task_can_not_do_is_refused_by_name() -> None:
    bare = Task(name="bare", env="CartPole-v1", failed=cartpole.failed)
    with pytest.raises(UsageError, match="no set_state"):
        make_worlds(bare, 1).reset([1], [{}], [(0.0, 0.0, 0.0, 0.0)])
    with pytest.raises(UsageError, match="vector form that can't be put into a state"):
        make_worlds(dataclasses.replace(bare, vector=cartpole.vector), 1)


@pytest.mark.parametrize("state", [None, (1.0, -2.0, 3.0)])
def test_nested_observations_are_rows_of_the_same_numbers(state: tuple[float, ...] | None) -> None:
    worlds = make_worlds(room, 3)
    rows = worlds.reset([5, 6, 7], [{}] * 3, [None, state, None])
    env = room.make_env()
    for i in range(3):
        seen = env.reset(seed=5 + i)[0]
        if i == 1 and state is not None:
            seen = room.set_state(env, state)  # type: ignore[misc]
        assert np.array_equal(rows[i], gymnasium_flatten(env.observation_space, seen))  # type: ignore[arg-type]
    action = np.array([1, 0])
    snapshot = worlds.snapshot()
    stepped = worlds.step(np.tile(action, (3, 1)), np.array([True, False, True]))[0]
    assert np.array_equal(stepped[2], gymnasium_flatten(env.observation_space, env.step(action)[0]))  # type: ignore[arg-type]
    assert np.array_equal(stepped[1], rows[1]), "it was not active"
    worlds.restore(snapshot)
    assert np.array_equal(worlds.step(np.tile(action, (3, 1)), np.array([True, False, True]))[0], stepped)


def test_worlds_in_a_vector_form_with_nested_observations_are_those_of_the_single_ones() -> None:
    plain = dataclasses.replace(room, parameters=(), set_parameters=None, state=rooms_state, set_state=rooms_set_state)
    lockstep, each = make_worlds(dataclasses.replace(plain, vector=rooms_vector), 2), make_worlds(plain, 2)
    assert isinstance(lockstep, LockstepWorlds)
    rows = lockstep.reset([3, 4], [{}, {}])
    assert np.array_equal(rows, each.reset([3, 4], [{}, {}]))
    actions, active = np.array([[1, 0], [-1, 1]]), np.ones(2, np.bool_)
    assert np.allclose(lockstep.step(actions, active)[0][:, 3:], each.step(actions, active)[0][:, 3:])


def rooms_vector(num_worlds: int) -> gymnasium.vector.VectorEnv[Any, Any, Any]:
    return SyncVectorEnv([Room] * num_worlds)


def rooms_state(env: Any) -> Any:
    return np.array([*env.unwrapped.at, env.unwrapped.mode])


def rooms_set_state(env: Any, state: Any) -> Any:
    if not isinstance(env, SyncVectorEnv):
        return room.set_state(env, state)  # type: ignore[misc]
    seen = [room.set_state(one, row) for one, row in zip(env.envs, state, strict=True)]  # type: ignore[misc]
    return {name: np.stack([one[name] for one in seen]) for name in seen[0]}
