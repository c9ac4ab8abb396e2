"""Training worlds begin again with parameters and starts of their own; vector form and single environments alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from flywheel.config import TrainConfig
from flywheel.errors import UsageError
from flywheel.records import Correction, Plan
from flywheel.task import EdgeCase, Task
from flywheel.tasks.cartpole import cartpole
from flywheel.tasks.pendulum import pendulum
from flywheel.train.practice import Practice
from flywheel.train.recipe import Recipe, make_recipe
from tests.rooms import room

SINGLE = dataclasses.replace(cartpole, vector=None)


def recipe_for(task: Task, share: float = 0.0, **parameters: tuple[float, float]) -> Recipe:
    plan = Plan(strategy="continue_training", reasons=(), parameters=parameters)
    return make_recipe(task, plan, TrainConfig(edge_case_share=share))


def lengths(practice: Practice) -> Any:
    if practice.task.vector:
        return np.array(practice.envs.unwrapped.length)
    return np.array([env.unwrapped.length for env in practice.envs.envs])  # type: ignore[attr-defined]


@pytest.mark.parametrize("task", [cartpole, SINGLE], ids=["vector", "single"])
def test_a_world_changes_its_parameters_only_when_it_begins_again(task: Task) -> None:
    practice = Practice(task, 8, np.random.default_rng(0))
    practice.begin(recipe_for(task, length=(0.2, 3.0)))
    num_begun = 0
    for _ in range(60):
        before, void = lengths(practice), practice.ended
        _, rewards, terminated, _ = practice.step(np.ones(8, dtype=np.int64))
        after = lengths(practice)
        assert (after[~void] == before[~void]).all()
        assert (after[void] != before[void]).all()
        assert (rewards[void] == 0.0).all() and not terminated[void].any()
        assert ((after >= 0.2) & (after <= 3.0)).all()
        num_begun += int(void.sum())
    assert num_begun >= 8
    practice.close()


@pytest.mark.parametrize("task", [cartpole, SINGLE], ids=["vector", "single"])
def test_edge_cases_begin_in_their_state_and_their_world(task: Task) -> None:
    cases = [case for case in task.edge_cases if case.name in ("pole_tilted", "cart_off_centre")]
    task = dataclasses.replace(task, edge_cases=tuple(cases))
    starts = {case.state for case in cases}
    practice = Practice(task, 8, np.random.default_rng(0))
    observations = practice.begin(recipe_for(task, share=1.0))
    assert {tuple(np.round(row, 6)) for row in observations.tolist()} == starts
    for _ in range(40):
        void = practice.ended
        observations, _, _, _ = practice.step(np.zeros(8, dtype=np.int64))
        assert {tuple(np.round(row, 6)) for row in observations[void].tolist()} <= starts
    practice.close()


def test_the_vector_form_follows_the_equations_of_its_own_parameters() -> None:
    practice = Practice(cartpole, 4, np.random.default_rng(3))
    state = practice.begin(recipe_for(cartpole, length=(0.3, 3.0))).astype(np.float64)
    env = cartpole.make_env()
    length = lengths(practice)
    observations, _, _, _ = practice.step(np.array([0, 1, 0, 1]))
    for i in range(4):
        env.reset(seed=0)
        cartpole.set_parameters(env, {"length": float(length[i])})  # type: ignore[misc]
        cartpole.set_state(env, state[i])  # type: ignore[misc]
        assert env.step(i % 2)[0] == pytest.approx(observations[i], abs=1e-6)
    env.close()  # type: ignore[no-untyped-call]
    practice.close()


@pytest.mark.parametrize("task", [cartpole, SINGLE, pendulum, dataclasses.replace(pendulum, vector=None)])
def test_worlds_are_what_a_calibration_drew_of_every_parameter_at_once(task: Task) -> None:
    assert task.state is not None and task.set_state is not None and task.set_parameters is not None
    practice = Practice(task, 16, np.random.default_rng(3))
    ranges = {p.name: (0.5 * (p.low + p.nominal), 0.5 * (p.nominal + p.high)) for p in task.parameters}
    for recipe in (recipe_for(task), recipe_for(task, **ranges)):  # the second round finds the first one's worlds
        practice.begin(recipe)
    envs: list[Any] = [] if task.vector else practice.envs.envs  # type: ignore[attr-defined]
    states = np.array([task.state(env) for env in envs]) if envs else np.array(task.state(practice.envs))
    values = {name: column.copy() for name, column in practice._values.items()}
    actions = np.stack([practice.envs.single_action_space.sample() for _ in range(16)])
    observations, _, _, _ = practice.step(actions)
    alone = task.make_env()
    for i in range(16):
        world = {name: float(column[i]) for name, column in values.items()}
        assert all(low <= world[name] <= high for name, (low, high) in ranges.items())
        alone.reset(seed=0)
        task.set_parameters(alone, world)
        task.set_state(alone, states[i])
        assert alone.step(actions[i])[0] == pytest.approx(observations[i], abs=1e-5)
    assert all(np.ptp(column) > 0.5 * (ranges[name][1] - ranges[name][0]) for name, column in values.items())
    alone.close()  # type: ignore[no-untyped-call]
    practice.close()


def test_the_same_seed_gives_the_same_practice() -> None:
    runs = []
    for _ in range(2):
        practice = Practice(cartpole, 4, np.random.default_rng(5))
        practice.begin(recipe_for(cartpole, share=0.5, length=(0.3, 3.0)))
        runs.append(np.stack([practice.step(np.ones(4, dtype=np.int64))[0] for _ in range(50)]))
        practice.close()
    assert (runs[0] == runs[1]).all()


def test_nested_observations_are_flat_and_begin_where_an_edge_case_says() -> None:
    practice = Practice(room, 4, np.random.default_rng(0))
    corner = [0.0, 1.0, 0.0, 3.0, 3.0]
    task = dataclasses.replace(room, edge_cases=(EdgeCase("corner", state=(3.0, 3.0, 2.0)),))
    assert practice.begin(recipe_for(task, share=1.0)).tolist() == [corner] * 4
    for _ in range(40):
        void = practice.ended
        observations, rewards, _, _ = practice.step(np.tile([0, 1], (4, 1)))
        assert observations.shape == (4, 5) and (observations[:, :3].sum(axis=1) == 1).all()
        assert observations[void].tolist() == [corner] * int(void.sum())
        assert np.allclose(rewards[~void], -np.linalg.norm(observations[~void, 3:], axis=1), atol=1e-5)
    practice.close()


def test_a_step_before_the_recipe_is_an_error() -> None:
    practice = Practice(cartpole, 2, np.random.default_rng(0))
    with pytest.raises(RuntimeError, match="begin"):
        practice.step(np.ones(2, dtype=np.int64))
    practice.close()


def test_another_autoreset_is_refused() -> None:
    class SameStep(gymnasium.vector.VectorEnv[Any, Any, Any]):
        metadata: Mapping[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP}  # type: ignore[assignment]

    with pytest.raises(UsageError, match="NEXT_STEP"):
        Practice(dataclasses.replace(cartpole, vector=lambda _: SameStep()), 2, np.random.default_rng(0))


@pytest.mark.parametrize("task", [cartpole, SINGLE], ids=["vector", "single"])
def test_worlds_act_by_the_recipes_correction_from_its_first_episode_on(task: Task) -> None:
    swapped = dataclasses.replace(recipe_for(task), correction=Correction(actions=(1, 0)))
    worlds = [Practice(task, 4, np.random.default_rng(0)) for _ in range(3)]
    other, as_is, before = worlds
    before.begin(recipe_for(task))
    before.step(np.ones(4, dtype=np.int64))
    for practice, recipe in ((other, swapped), (as_is, recipe_for(task)), (before, swapped)):
        practice.begin(recipe)
    given = np.random.default_rng(1).integers(2, size=(60, 4))
    num_begun = 0
    for action in given:
        begun = other.ended
        (seen, *rest), (seen_as_is, *rest_as_is), _ = other.step(action), as_is.step(1 - action), before.step(action)
        assert seen.tobytes() == seen_as_is.tobytes()
        assert all((a == b).all() for a, b in zip(rest, rest_as_is, strict=True))
        num_begun += int(begun.sum())
    assert num_begun > 4
    assert before.task.correction == Correction(actions=(1, 0))
    before.begin(recipe_for(task))
    assert before.task == task
    for practice in worlds:
        practice.close()


@pytest.mark.parametrize("task", [cartpole, SINGLE], ids=["vector", "single"])
def test_what_is_on_its_way_is_forgotten_where_a_world_begins_again(task: Task) -> None:
    late = Correction(delay=3, waiting=(1.0,))
    practice = Practice(task, 4, np.random.default_rng(0))
    seen = practice.begin(dataclasses.replace(recipe_for(task, share=0.5), correction=late))
    since = np.zeros(4, dtype=np.int64)
    for _ in range(80):
        void, before = practice.ended, seen
        seen, *_ = practice.step(np.zeros(4, dtype=np.int64))
        pushed = seen[:, 1] > before[:, 1]  # the cart speeds up to the right
        early = ~void & (since < 3)
        assert pushed[early].all(), "what waits is action 1"
        assert not pushed[~void & (since >= 3)].any()
        since = np.where(void, 0, since + 1)
    practice.close()


@pytest.mark.parametrize("task", [cartpole, SINGLE])
def test_an_edge_cases_episode_is_cut_after_what_training_looks_ahead_and_begins_again(task: Task) -> None:
    task = dataclasses.replace(task, edge_cases=task.edge_cases[2:3])
    start = np.array(task.edge_cases[0].state, np.float32)
    practice = Practice(task, 4, np.random.default_rng(0))
    practice.begin(dataclasses.replace(recipe_for(task, share=0.5), horizon=5))
    assert practice.on_edge.tolist() == [True, True, False, False]
    for _ in range(2):
        for t in range(1, 6):
            _, _, terminated, truncated = practice.step(np.array([1, 1, t % 2, t % 2]))
            assert not terminated.any() and truncated.tolist() == [t == 5, False, False, False]
        observations, rewards, _, truncated = practice.step(np.zeros(4, np.int64))
        assert (observations[0] == start).all() and rewards[0] == 0.0 and not truncated.any()
    practice.close()


def test_a_world_that_is_cut_leaves_all_of_its_steps_to_the_next_episode() -> None:
    """Found in review: the vector form's own clock went on, and ended a fifth of the later episodes early."""
    cases = (EdgeCase("tilted", state=(0.0, 0.0, 0.05, 0.0)), EdgeCase("light", parameters={"gravity": 9.7}))
    task = dataclasses.replace(cartpole, edge_cases=cases)
    practice = Practice(task, 4, np.random.default_rng(0))
    seen = practice.begin(dataclasses.replace(recipe_for(task, share=1.0), horizon=7))
    ages, ended = np.zeros(4, np.int64), [[], []]  # type: ignore[var-annotated]
    for _ in range(2_000):
        void, limits = practice.ended, practice._limits.copy()
        seen, _, terminated, truncated = practice.step((seen @ np.array([0.1, 0.5, 5.0, 1.0]) > 0).astype(np.int64))
        ages = np.where(void, 0, ages + 1)
        assert not terminated.any()
        for i in np.flatnonzero(truncated):
            ended[int(limits[i] == 7)].append(int(ages[i]))
    assert set(ended[0]) == {500} and set(ended[1]) == {7}
    practice.close()
