"""A training world as a Gymnasium environment: it begins by the recipe, and takes what a policy draws."""

from __future__ import annotations

import dataclasses
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv

from flywheel.config import TrainConfig
from flywheel.errors import FlywheelError
from flywheel.records import Correction, Plan
from flywheel.task import Task, spec_of
from flywheel.tasks.cartpole import cartpole
from flywheel.tasks.pendulum import pendulum
from flywheel.train.one_world import OneWorld
from flywheel.train.recipe import Recipe, make_recipe
from tests.rooms import room


def recipe_for(task: Task, share: float = 0.0, **parameters: tuple[float, float]) -> Recipe:
    plan = Plan(strategy="continue_training", reasons=(), parameters=parameters)
    return make_recipe(task, plan, TrainConfig(edge_case_share=share))


class Context(dict[str, Any]):
    """RLlib's, as far as a world reads it."""

    worker_index = 0


def world_of(task: Task, recipe: Recipe | None = None) -> OneWorld:
    world = OneWorld({"task": task, "spec": spec_of(task)})
    world.tell(recipe or recipe_for(task))
    return world


def played(world: OneWorld, action: Any, most: int = 600) -> int:
    """Play an episode and return its steps."""
    for t in range(1, most):
        _, _, terminated, truncated, _ = world.step(action)
        if terminated or truncated:
            return t
    return most


@pytest.mark.parametrize("task", [cartpole, pendulum, room], ids=["discrete", "box", "nested"])
def test_it_shows_and_takes_what_its_spaces_say(task: Task) -> None:
    world = world_of(task)
    observation, _ = world.reset(seed=1)
    assert world.observation_space.contains(observation) and observation.dtype == np.float32
    for _ in range(5):
        observation, reward, terminated, truncated, _ = world.step(world.action_space.sample())
        assert observation.shape == world.observation_space.shape and isinstance(reward, float)
        assert not terminated and not truncated
    world.close()


def test_each_episode_has_parameters_and_a_start_of_the_recipes() -> None:
    world = world_of(cartpole, recipe_for(cartpole, length=(1.9, 2.1)))
    lengths = []
    for _ in range(8):
        world.reset(seed=4)  # RLlib gives the same seed at the beginning of each round
        lengths.append(world.world.unwrapped.length)  # type: ignore[attr-defined]
        assert 1 < played(world, 1) < 100
        assert world.world.unwrapped.length == lengths[-1]  # type: ignore[attr-defined]
    assert len(set(lengths)) == 8 and 1.9 <= min(lengths) <= max(lengths) <= 2.1
    tilted = dataclasses.replace(cartpole, edge_cases=tuple(c for c in cartpole.edge_cases if c.name == "pole_tilted"))
    world.tell(recipe_for(tilted, share=1.0))
    assert world.reset()[0] == pytest.approx(tilted.edge_cases[0].state)
    world.close()


def test_the_first_seed_decides_all_of_them() -> None:
    runs = []
    for seed in (5, 5, 6):
        world = world_of(cartpole)
        runs.append([world.reset(seed=seed)[0].tolist() for _ in range(3)])
        world.close()
    assert runs[0] == runs[1] and runs[0][0] != runs[0][1] and runs[0] != runs[2]
    there = Context({"task": cartpole, "spec": spec_of(cartpole)})
    there.worker_index = 2
    world = OneWorld(there)
    world.tell(recipe_for(cartpole))
    assert world.reset(seed=5)[0].tolist() != runs[0][0], "a runner's neighbour has the same seeds from RLlib"
    world.close()


def test_it_acts_by_the_recipes_correction() -> None:
    swapped = dataclasses.replace(recipe_for(cartpole), correction=Correction(actions=(1, 0)))
    seen = []
    for recipe, action in ((swapped, 0), (recipe_for(cartpole), 1)):
        world = world_of(cartpole, recipe)
        first = world.reset(seed=2)[0].tolist()
        seen.append([first, world.step(action)[0].tolist()])
        world.close()
    assert seen[0] == seen[1]


def test_raw_actions_reach_the_environment_in_its_own_units() -> None:
    world = world_of(pendulum)
    world.reset(seed=0)
    world.step(np.array([3.0], np.float32))  # cut at 1, the highest torque
    assert float(world.world.unwrapped.last_u) == 2.0  # type: ignore[attr-defined]
    world.close()


class Brittle(gymnasium.Wrapper[Any, Any, Any, Any]):
    """CartPole that raises at the third step of some episodes."""

    every, begun = 3, 0

    def reset(self, **options: Any) -> Any:
        Brittle.begun += 1
        self.left = 3 if Brittle.begun % self.every == 0 else 1000
        return self.env.reset(**options)

    def step(self, action: Any) -> Any:
        self.left -= 1
        if not self.left:
            raise OSError("disk full")
        return self.env.step(action)


def brittle() -> gymnasium.Env[Any, Any]:
    return Brittle(gymnasium.make("CartPole-v1"))


def test_an_episode_that_breaks_off_is_cut_and_told_and_too_many_of_them_are_said() -> None:
    task = Task(name="brittle", env=brittle, failed=cartpole.failed)
    Brittle.begun, Brittle.every = 0, 3
    world = world_of(task)
    lengths = []
    for _ in range(3):
        observation, _ = world.reset()
        lengths.append(played(world, 1))
    assert lengths[2] == 3 and min(lengths[:2]) > 3 and world.told()[0] == 1 and "disk full" in world.told()[1]
    observation, _ = world.reset()
    assert world.observation_space.contains(observation)
    Brittle.every = 1
    with pytest.raises(FlywheelError, match=r"of the last .* training episodes of task brittle broke off"):
        for _ in range(30):
            world.reset()
            played(world, 1)
    world.close()


def test_before_its_recipe_it_begins_nothing() -> None:
    world = OneWorld({"task": cartpole, "spec": spec_of(cartpole)})
    with pytest.raises(RuntimeError, match="recipe"):
        world.reset()
    world.close()


def test_the_worlds_of_one_vector_differ_and_hear_of_the_recipe_together() -> None:
    envs = SyncVectorEnv([lambda: OneWorld({"task": cartpole, "spec": spec_of(cartpole)})] * 4)
    envs.call("tell", recipe_for(cartpole, length=(0.2, 3.0)))
    observations, _ = envs.reset(seed=3)
    assert len({float(row[0]) for row in observations}) == 4
    assert envs.call("told") == ((0, ""),) * 4
    envs.close()
