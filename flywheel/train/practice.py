"""N training worlds that begin again by themselves, each time with new parameters and a new start. No Ray, no torch."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray

from flywheel.errors import UsageError
from flywheel.records import Array
from flywheel.spaces import flatten, flatten_batch, leaves_of
from flywheel.task import Task
from flywheel.train.recipe import Recipe, World, sample_worlds


class Practice:
    """N worlds stepped together; a world that ended takes one step to begin again (Gymnasium's NEXT_STEP autoreset)."""

    def __init__(self, task: Task, num_worlds: int, rng: np.random.Generator) -> None:
        """Make the worlds, from the task's vector form where it has one.

        Raises UsageError for a vector form with another autoreset, for its episodes would be stitched together.
        """
        self.task = task
        self.envs: gymnasium.vector.VectorEnv[Any, Any, Any]
        self.envs = task.vector(num_worlds) if task.vector else SyncVectorEnv([task.make_env] * num_worlds)
        if (mode := self.envs.metadata.get("autoreset_mode")) != AutoresetMode.NEXT_STEP:
            raise UsageError(
                f"The vector form of task {task.name} resets its worlds in mode {mode}, training needs "
                "AutoresetMode.NEXT_STEP: state it in the environment's metadata, or leave Task.vector out."
            )
        self._leaves = leaves_of(self.envs.single_observation_space, f"Task {task.name}")
        self.num_worlds = num_worlds
        self._rng = rng
        self._recipe: Recipe | None = None
        self.ended = np.zeros(num_worlds, dtype=np.bool_)
        """The worlds whose next step is their new beginning."""
        self._values = {name: np.full(num_worlds, value) for name, value in task.nominal.items()}

    def begin(self, recipe: Recipe) -> Array:
        """Begin N fresh episodes by the recipe and return their first observations [N, *o], flat."""
        self._recipe = recipe
        self.ended = np.zeros_like(self.ended)
        every = np.arange(self.num_worlds)
        worlds = self._choose(every)
        observations, _ = self.envs.reset(seed=int(self._rng.integers(2**31)))
        return self._place(every, worlds, observations)

    def step(self, actions: Array) -> tuple[Array, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
        """Step every world; return observations [N, *o], rewards float64[N], terminated and truncated bool[N].

        A world that had `ended` before ignores its action and begins again: its observation is its new first one.
        """
        begins = np.flatnonzero(self.ended)
        worlds = self._choose(begins)
        observations, rewards, terminated, truncated, _ = self.envs.step(actions)
        self.ended = terminated | truncated
        return self._place(begins, worlds, observations), np.asarray(rewards, np.float64), terminated, truncated

    def close(self) -> None:
        """Release the environments."""
        self.envs.close()

    def _choose(self, indices: NDArray[np.intp]) -> list[World]:
        if self._recipe is None:
            raise RuntimeError("These worlds have no recipe yet: call begin(recipe) first.")
        worlds = list(sample_worlds(self._recipe, self._rng, len(indices)))
        if worlds and self.task.set_parameters:
            for index, world in zip(indices, worlds, strict=True):
                for name, value in world.parameters.items():
                    self._values[name][index] = value
                if isinstance(self.envs, SyncVectorEnv):
                    self.task.set_parameters(self.envs.envs[index], world.parameters)
            if not isinstance(self.envs, SyncVectorEnv):
                self.task.set_parameters(self.envs, {name: values.copy() for name, values in self._values.items()})
        return worlds

    def _place(self, indices: NDArray[np.intp], worlds: list[World], seen: Any) -> Array:
        """Return what the worlds show, flat, after those that have a start state were moved into it."""
        observations = flatten_batch(self._leaves, seen)
        placed = [(i, world.state) for i, world in zip(indices, worlds, strict=True) if world.state is not None]
        if not placed or self.task.set_state is None:
            return observations
        observations = observations.copy()
        if isinstance(self.envs, SyncVectorEnv):
            for i, state in placed:
                observations[i] = flatten(self._leaves, self.task.set_state(self.envs.envs[i], state))
            return observations
        states = np.array(self.task.state(self.envs))  # type: ignore[misc]
        for i, state in placed:
            states[i] = state
        there = flatten_batch(self._leaves, self.task.set_state(self.envs, states))
        for i, _ in placed:
            observations[i] = there[i]
        return observations
