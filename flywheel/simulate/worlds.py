"""N seeded worlds that are stepped together; world i is a function of its own seed, parameters and state alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Protocol

import gymnasium
import numpy as np
from numpy.typing import NDArray

from flywheel.errors import UsageError, unknown
from flywheel.records import Array, Parameters
from flywheel.spaces import flatten, flatten_batch, leaves_of
from flywheel.task import Task

Stepped = tuple[Array, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]
"""Observations [N, *o], rewards float64[N], terminated bool[N], truncated bool[N]."""


class Worlds(Protocol):
    """N worlds of one task; what one of them does depends neither on N nor on its place among them."""

    num_worlds: int

    def reset(
        self,
        seeds: Sequence[int],
        parameters: Sequence[Parameters],
        states: Sequence[tuple[float, ...] | None] | None = None,
    ) -> Array:
        """Begin an episode in every world and return flat observations [N, *o]; state None begins as the task does."""
        ...

    def step(self, actions: Array, active: NDArray[np.bool_]) -> Stepped:
        """Step the active worlds by the environment's actions [N, *a]; rows of the others are void."""
        ...

    def snapshot(self) -> Any:
        """Return all that `restore` needs to go on from here, in this process."""
        ...

    def restore(self, snapshot: Any) -> None:
        """Put every world back to where it was at `snapshot`; a snapshot can be restored any number of times."""
        ...

    def close(self) -> None:
        """Release what the environments hold."""
        ...


def make_worlds(task: Task, num_worlds: int) -> Worlds:
    """Return N worlds of a task: its vector form where it has one, else N environments of their own."""
    return EachWorlds(task, num_worlds) if task.vector is None else LockstepWorlds(task, num_worlds)


def _complete(task: Task, parameters: Sequence[Parameters]) -> list[dict[str, float]]:
    """Return every world's value of every parameter, so that none keeps what another world left behind."""
    nominal = task.nominal
    for name in {name for values in parameters for name in values}:
        if name not in nominal:
            raise unknown(f"parameter of task {task.name}:", name, nominal)
    return [{**nominal, **values} for values in parameters]


def _begin(
    task: Task, env: gymnasium.Env[Any, Any], seed: int, parameters: Parameters, state: tuple[float, ...] | None
) -> Array:
    """Begin an episode in one environment and return its flat observation [*o]."""
    if task.set_parameters is not None:
        task.set_parameters(env, parameters)
    observation = env.reset(seed=seed)[0]
    if state is not None:
        if task.set_state is None:
            raise UsageError(f"Task {task.name} has no set_state, so its worlds can't begin in a given state.")
        observation = task.set_state(env, state)
    return flatten(leaves_of(env.observation_space), observation)


class LockstepWorlds:
    """Worlds in the task's vector form: one step is one call.

    The vector form must step each world by its own state, parameters and action alone (`testing.check_worlds`
    tries it): what draws from one generator for all worlds would make them depend on each other.
    """

    def __init__(self, task: Task, num_worlds: int) -> None:
        """Make the vector form, and one single environment that answers where a seed begins."""
        if task.vector is None or task.state is None or task.set_state is None:
            raise UsageError(
                f"Task {task.name} has a vector form that can't be put into a state: give state= and set_state= "
                "too, or leave vector= out."
            )
        self.num_worlds = num_worlds
        self._task = task
        self._env = task.vector(num_worlds)
        self._single = task.make_env()
        self._leaves = leaves_of(self._single.observation_space)
        self._state, self._set_state = task.state, task.set_state

    def reset(
        self,
        seeds: Sequence[int],
        parameters: Sequence[Parameters],
        states: Sequence[tuple[float, ...] | None] | None = None,
    ) -> Array:
        """Begin an episode in every world, each where the single environment with its seed begins."""
        complete = _complete(self._task, parameters)
        begun = []
        for seed, values, state in zip(seeds, complete, states or [None] * self.num_worlds, strict=True):
            _begin(self._task, self._single, seed, values, state)
            begun.append(self._state(self._single))
        self._env.reset(seed=0)  # makes the vector form ready; every state it draws is replaced
        if self._task.set_parameters is not None:
            columns = {name: np.array([values[name] for values in complete]) for name in complete[0]}
            self._task.set_parameters(self._env, columns)
        return np.asarray(flatten_batch(self._leaves, self._set_state(self._env, np.stack(begun))))

    def step(self, actions: Array, active: NDArray[np.bool_]) -> Stepped:
        """Step all worlds; those that aren't active go on unseen."""
        observations, rewards, terminated, truncated, _ = self._env.step(actions)
        seen = np.asarray(flatten_batch(self._leaves, observations))
        return seen, np.asarray(rewards, np.float64), terminated & active, truncated & active

    def snapshot(self) -> Any:
        """Return a copy of the vector form."""
        return copy.deepcopy(self._env)

    def restore(self, snapshot: Any) -> None:
        """Go on from a copy of a snapshot."""
        self._env = copy.deepcopy(snapshot)

    def close(self) -> None:
        """Close both environments."""
        self._env.close()
        self._single.close()  # type: ignore[no-untyped-call]


class EachWorlds:
    """Worlds that are environments of their own: any Gymnasium environment, one call a world and step."""

    def __init__(self, task: Task, num_worlds: int) -> None:
        """Make N environments."""
        self.num_worlds = num_worlds
        self._task = task
        self._envs = [task.make_env() for _ in range(num_worlds)]
        self._leaves = leaves_of(self._envs[0].observation_space)
        self._observations: Array = np.empty(0)

    def reset(
        self,
        seeds: Sequence[int],
        parameters: Sequence[Parameters],
        states: Sequence[tuple[float, ...] | None] | None = None,
    ) -> Array:
        """Begin an episode in every world."""
        complete = _complete(self._task, parameters)
        worlds = zip(self._envs, seeds, complete, states or [None] * self.num_worlds, strict=True)
        self._observations = np.stack([_begin(self._task, *world) for world in worlds])
        return self._observations.copy()

    def step(self, actions: Array, active: NDArray[np.bool_]) -> Stepped:
        """Step the active worlds; the others keep their last observation."""
        rewards = np.zeros(self.num_worlds)
        terminated, truncated = np.zeros((2, self.num_worlds), dtype=np.bool_)
        for i in np.flatnonzero(active):
            observation, reward, terminated[i], truncated[i], _ = self._envs[i].step(actions[i])
            self._observations[i] = flatten(self._leaves, observation)
            rewards[i] = float(reward)
        return self._observations.copy(), rewards, terminated, truncated

    def snapshot(self) -> Any:
        """Return copies of all environments."""
        return copy.deepcopy((self._envs, self._observations))

    def restore(self, snapshot: Any) -> None:
        """Go on from copies of a snapshot."""
        self._envs, self._observations = copy.deepcopy(snapshot)

    def close(self) -> None:
        """Close all environments."""
        for env in self._envs:
            env.close()  # type: ignore[no-untyped-call]
