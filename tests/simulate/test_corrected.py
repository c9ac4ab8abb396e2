"""Worlds that act by a correction do what production does; in everything else the task is the same."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import cloudpickle
import numpy as np
import pytest
from gymnasium.spaces import Box

from flywheel.correction import Correction, Surface
from flywheel.errors import UsageError
from flywheel.simulate import Worlds, make_worlds
from flywheel.simulate.arriving import Arrivals, arrived, made
from flywheel.simulate.corrected import corrected, plain, stepping
from flywheel.task import Task, spec_of, task_digest
from flywheel.tasks.cartpole import cartpole
from flywheel.tasks.pendulum import pendulum

EACH = dataclasses.replace(cartpole, vector=None)
FORMS = pytest.mark.parametrize("task", [cartpole, EACH], ids=["lockstep", "each"])
RNG = np.random.default_rng(3)


def surface(num_places: int, num_numbers: int, groups: int = 2) -> Surface:
    num = 1 + num_places + num_places * (num_places + 1) // 2
    weights = RNG.normal(scale=0.01, size=(groups, num, num_numbers))
    return Surface(
        low=(-0.5,) * num_places,
        high=(0.5,) * num_places,
        centre=(0.0,) * num_places,
        scale=(0.3,) * num_places,
        weights=tuple(tuple(tuple(row) for row in group) for group in weights.tolist()),
    )


WINDY = Correction(actions=(1, 0), delay=1, state=surface(4, 4), reward=surface(4, 1))


def walk(worlds: Worlds, actions: Any) -> list[Any]:
    every = np.ones(worlds.num_worlds, dtype=np.bool_)
    return [worlds.step(np.asarray(action), every) for action in actions]


def same(one: list[Any], other: list[Any]) -> bool:
    return all(a.tobytes() == b.tobytes() for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))


@FORMS
def test_swapped_wires_are_the_other_action_in_the_simulator(task: Task) -> None:
    swapped, as_is = make_worlds(corrected(task, Correction(actions=(1, 0))), 3), make_worlds(task, 3)
    for worlds in (swapped, as_is):
        worlds.reset([1, 2, 3], [{}] * 3)
    given = RNG.integers(2, size=(8, 3))
    assert same(walk(swapped, given), walk(as_is, 1 - given))


@FORMS
def test_a_delay_gives_each_world_what_was_asked_for_steps_ago(task: Task) -> None:
    late, as_is = make_worlds(corrected(task, Correction(delay=2, waiting=(1.0,))), 2), make_worlds(task, 2)
    given = RNG.integers(2, size=(8, 2))
    for _ in range(2):  # what was on its way is forgotten when the next episode begins
        for worlds in (late, as_is):
            worlds.reset([1, 2], [{}] * 2)
        assert same(walk(late, given), walk(as_is, np.concatenate([np.ones((2, 2), int), given[:-2]])))


def test_what_waits_is_the_first_action_where_nothing_else_is_known() -> None:
    given = np.array([1, 0, 0, 1, 0])
    assert arrived(Correction(delay=2), spec_space(cartpole), given).tolist() == [1, 1, 1, 0, 0]
    queue = Arrivals(Correction(delay=2), spec_space(cartpole), 1)
    assert [int(queue.next(np.array([action]))[0]) for action in given] == [1, 1, 1, 0, 0]
    queue.begin(np.ones(1, dtype=np.bool_))
    assert int(queue.next(np.array([0]))[0]) == 0


def spec_space(task: Task) -> Any:
    env = task.make_env()
    return env.action_space


def test_a_gain_turns_a_box_action_and_stays_within_its_bounds() -> None:
    space = Box(-2.0, 2.0, (2,), np.float32)
    correction = Correction(gain=((0.0, -1.0), (3.0, 0.0)), offset=(0.5, 0.0))
    found = made(correction, space, np.array([[1.0, 2.0], [-0.1, 0.0]], np.float32))
    assert found.dtype == np.float32
    assert np.allclose(found, [[-1.5, 2.0], [0.5, -0.3]])
    pushed = make_worlds(corrected(pendulum, Correction(gain=((-1.0,),))), 2)
    as_is = make_worlds(pendulum, 2)
    for worlds in (pushed, as_is):
        worlds.reset([1, 2], [{}] * 2)
    given = RNG.uniform(-2, 2, size=(9, 2, 1)).astype(np.float32)
    assert same(walk(pushed, given), walk(as_is, -given))


def test_a_world_depends_neither_on_the_others_nor_on_its_form() -> None:
    one, many = (make_worlds(corrected(cartpole, WINDY), num) for num in (1, 5))
    each = make_worlds(corrected(EACH, WINDY), 2)
    given = RNG.integers(2, size=(9, 5))
    one.reset([4], [{}])
    many.reset([1, 2, 3, 4, 5], [{}] * 5)
    each.reset([4, 1], [{}] * 2)
    alone = walk(one, given[:, 3:4])
    together = walk(many, given)
    apart = walk(each, given[:, [3, 0]])
    for (seen, gained, *_), (all_seen, all_gained, *_), (each_seen, each_gained, *_) in zip(
        alone, together, apart, strict=True
    ):
        assert seen[0].tobytes() == all_seen[3].tobytes() == each_seen[0].tobytes()
        assert gained[0] == all_gained[3] == each_gained[0] != 1.0


@FORMS
def test_a_snapshot_brings_back_what_is_on_its_way(task: Task) -> None:
    worlds = make_worlds(corrected(task, WINDY), 2)
    worlds.reset([1, 2], [{}] * 2)
    given = RNG.integers(2, size=(12, 2))
    walk(worlds, given[:3])
    taken = worlds.snapshot()
    first = walk(worlds, given[3:])
    for _ in range(2):
        worlds.restore(taken)
        assert same(first, walk(worlds, given[3:]))


def test_it_is_the_same_task_in_everything_else() -> None:
    form = corrected(cartpole, WINDY)
    assert form != cartpole
    assert task_digest(form) == task_digest(cartpole)
    assert spec_of(form) == spec_of(cartpole)
    assert plain(form) == cartpole
    assert corrected(form, None) == cartpole == corrected(cartpole, Correction())
    other = corrected(form, Correction(delay=1))
    assert other.correction == Correction(delay=1)
    assert plain(other) == cartpole
    assert task_digest(cloudpickle.loads(cloudpickle.dumps(form))) == task_digest(cartpole)
    steps = stepping(form).correction
    assert steps is not None
    assert (steps.actions, steps.delay, steps.state) == ((), 0, WINDY.state)


def test_what_a_task_cant_do_is_refused_by_name() -> None:
    blind = dataclasses.replace(cartpole, vector=None, set_state=None, state=None, edge_cases=())
    corrected(blind, Correction(actions=(1, 0)))
    with pytest.raises(UsageError, match="no set_state and state"):
        corrected(blind, Correction(state=surface(4, 4)))
    with pytest.raises(UsageError, match="no state"):
        corrected(blind, Correction(reward=surface(4, 1)))


def test_functions_that_wrap_others_stay_as_the_user_gave_them() -> None:
    @functools.wraps(cartpole.set_parameters)  # type: ignore[arg-type]
    def heavier(env: Any, parameters: Any) -> None:
        cartpole.set_parameters(env, {**parameters, "length": 2.0})  # type: ignore[misc]

    task = dataclasses.replace(cartpole, set_parameters=heavier)
    form = corrected(task, Correction(actions=(1, 0)))
    assert plain(form).set_parameters is heavier
    assert corrected(form, Correction(delay=1)).set_parameters.__wrapped__ is heavier  # type: ignore[union-attr]
    assert task_digest(form) == task_digest(task)


def test_two_forms_of_one_correction_are_equal() -> None:
    one, other = (corrected(cartpole, Correction(actions=(1, 0))) for _ in range(2))
    assert one == other and one != corrected(cartpole, Correction(delay=1)) and one != cartpole
    assert plain(one) == cartpole
