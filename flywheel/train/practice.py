"""N training worlds that begin again by themselves, each time with new parameters and a new start. No Ray, no torch."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray

from flywheel.errors import FlywheelError, UsageError
from flywheel.faults import said
from flywheel.records import Array, Correction
from flywheel.simulate.corrected import corrected
from flywheel.spaces import flatten, flatten_batch, leaves_of
from flywheel.task import Task
from flywheel.train.leading import opening
from flywheel.train.recipe import Recipe, World, sample_worlds
from flywheel.train.sturdy import SturdyEnvs, Tally

Stepped = tuple[Array, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]
"""Observations [N, *o], rewards float64[N], terminated bool[N], truncated bool[N]."""


class Practice:
    """N worlds stepped together; a world that ended takes one step to begin again (Gymnasium's NEXT_STEP autoreset)."""

    def __init__(self, task: Task, num_worlds: int, rng: np.random.Generator) -> None:
        """Make the worlds, from the task's vector form where it has one.

        Raises UsageError for a vector form with another autoreset, for its episodes would be stitched together.
        """
        self.task = task
        self.tally = Tally(task.name)
        self.num_worlds = num_worlds
        self._limits = np.full(num_worlds, task.max_steps)
        self.envs = self._make()
        if (mode := self.envs.metadata.get("autoreset_mode")) != AutoresetMode.NEXT_STEP:
            raise UsageError(
                f"The vector form of task {task.name} resets its worlds in mode {mode}, training needs "
                "AutoresetMode.NEXT_STEP: state it in the environment's metadata, or leave Task.vector out."
            )
        self._leaves = leaves_of(self.envs.single_observation_space, f"Task {task.name}")
        self._rng = rng
        self._recipe: Recipe | None = None
        self.ended = np.zeros(num_worlds, dtype=np.bool_)
        """The worlds whose next step is their new beginning."""
        self.lost = np.zeros(num_worlds, dtype=np.bool_)
        """The worlds whose last step never was: they broke, and their episode was cut off before it."""
        self.on_edge = np.zeros(num_worlds, dtype=np.bool_)
        """The worlds whose episode began in an edge case."""
        self._values = {name: np.full(num_worlds, value) for name, value in task.nominal.items()}
        # What follows is about the vector form; SturdyEnvs keep it themselves.
        self._is_new = False
        self._forced = np.zeros(num_worlds, dtype=np.bool_)  # worlds that begin again though it doesn't know of it
        self._ages = np.zeros(num_worlds, dtype=np.int64)
        self._single: gymnasium.Env[Any, Any] | None = None

    def begin(self, recipe: Recipe) -> Array:
        """Begin N fresh episodes by the recipe and return their first observations [N, *o], flat.

        Like `step`, it raises FlywheelError when too many of the last episodes broke off.
        """
        self._recipe = recipe
        if recipe.correction != self.task.correction:
            self._act_by(recipe.correction)
        self.ended = np.zeros_like(self.ended)
        every = np.arange(self.num_worlds)
        worlds = self._choose(every)
        observations = self._reset()
        self.lost, self._forced = np.zeros((2, self.num_worlds), dtype=np.bool_)
        self._ages = np.zeros_like(every)
        self._seen = self._place(every, worlds, observations)
        return self._seen

    def draw_from(self, rng: np.random.Generator) -> None:
        """Let the worlds to come be drawn from another generator."""
        self._rng = rng

    def env_of(self, index: int) -> gymnasium.Env[Any, Any]:
        """Return the environment of a world, where the task's are stepped one by one."""
        assert isinstance(self.envs, SyncVectorEnv)
        return self.envs.envs[index]

    def go_on_by(self, recipe: Recipe) -> None:
        """Let episodes that begin from now on do so by another recipe; those under way go on."""
        self._recipe = recipe

    def step(self, actions: Array) -> Stepped:
        """Step every world; return observations [N, *o], rewards float64[N], terminated and truncated bool[N].

        A world that had `ended` before ignores its action and begins again: its observation is its new first one.
        One that breaks is `lost` in this step: its observation is the one before, and it begins again with the next.
        """
        begins = np.flatnonzero(self.ended)
        worlds = self._choose(begins) if len(begins) or self._recipe is None else []
        if isinstance(self.envs, SturdyEnvs):
            observations, rewards, terminated, truncated, _ = self.envs.step(actions)
            self.lost = self.envs.lost.copy()
            begun = ~self.lost[begins]
            begins, worlds = begins[begun], [world for world, fine in zip(worlds, begun, strict=True) if fine]
            observations = self._place(begins, worlds, observations)
        else:
            observations, rewards, terminated, truncated = self._step_vector(actions, begins, worlds)
        over = terminated | truncated
        self.tally.ended(int(np.count_nonzero(over)))
        self.ended = over | self.lost
        return observations, np.asarray(rewards, np.float64), terminated, truncated

    def _make(self) -> gymnasium.vector.VectorEnv[Any, Any, Any]:
        if self.task.vector is None:
            return SturdyEnvs(self.task, self._limits, self.tally, self._set_values)
        return self.task.vector(self.num_worlds)

    def _act_by(self, correction: Correction | None) -> None:
        """Let the worlds be others, that act by a correction; `_reset` has to begin them."""
        self.close()
        self.task, self._single = corrected(self.task, correction), None
        self.envs = self._make()

    def close(self) -> None:
        """Release the environments."""
        self.envs.close()
        if self._single is not None:
            self._single.close()  # type: ignore[no-untyped-call]

    def _reset(self) -> Array:
        """Begin an episode in every world; a vector form that raises is made anew until the tally has enough of it."""
        while True:
            try:
                observations: Array = self.envs.reset(seed=int(self._rng.integers(2**31)))[0]
            except FlywheelError:
                raise
            except Exception as error:  # an environment is anybody's code
                self._make_anew(error)
            else:
                self._is_new = False
                return observations

    def _make_anew(self, error: Exception) -> None:
        """Make another vector form instead of one that raised; it has to be reset."""
        with contextlib.suppress(Exception):
            self.envs.close()
        self.tally.broke(said(error))
        assert self.task.vector is not None
        self.envs, self._is_new = self.task.vector(self.num_worlds), True
        self._set_values()

    def _step_vector(self, actions: Array, begins: NDArray[np.intp], worlds: list[World]) -> Stepped:
        """Step the vector form; where it has to begin a world again and can't, the world is put into a new start."""
        rewards, (terminated, truncated) = np.zeros(self.num_worlds), np.zeros((2, self.num_worlds), dtype=np.bool_)
        try:
            if self._is_new:
                observations = self._reset()
            else:
                observations, rewards, terminated, truncated, _ = self.envs.step(actions)
        except FlywheelError:
            raise
        except Exception as error:
            self._make_anew(error)
            self.lost = np.ones_like(self.lost)
            self._forced[:] = False
            return self._seen, rewards, terminated, truncated
        worlds = [self._started(i, world) for i, world in zip(begins, worlds, strict=True)]
        observations = self._place(begins, worlds, observations)
        terminated, truncated = terminated & ~self._forced, truncated & ~self._forced
        rewards = np.where(self._forced, 0.0, np.asarray(rewards, np.float64))
        self._ages = np.where(self.ended, 0, self._ages + 1)
        fine = np.isfinite(observations).reshape(self.num_worlds, -1).all(axis=1) & np.isfinite(rewards)
        for i in np.flatnonzero(~fine):
            self.tally.broke(f"gave the reward {rewards[i]} and the observation {observations[i].tolist()}")
        if not fine.all():
            observations = observations.copy()
            observations[~fine] = self._seen[~fine]
        late = self._ages >= self._limits
        self.lost, self._seen = ~fine, observations
        self._forced = self.lost | (late & ~terminated & ~truncated)
        return observations, np.where(fine, rewards, 0.0), terminated & fine, (truncated | late) & fine

    def _started(self, index: int, world: World) -> World:
        """Return a world with a start state, if the vector form doesn't know that it has to begin again."""
        if not self._forced[index] or world.state is not None:
            return world
        if self.task.state is None or self.task.set_state is None:
            raise UsageError(
                f"The vector form of task {self.task.name} can't be made to begin again: give state= and set_state=, "
                "or leave vector= out."
            )
        if self._single is None:
            self._single = self.task.make_env()
        if self.task.set_parameters is not None:
            self.task.set_parameters(self._single, world.parameters)
        self._single.reset(seed=int(self._rng.integers(2**31)))
        return dataclasses.replace(world, state=self.task.state(self._single))

    def _set_values(self, index: int = 0) -> None:
        """Set the present parameters in the vector form, or in environment number `index`, which is a new one."""
        if self.task.set_parameters is None:
            return
        if isinstance(self.envs, SyncVectorEnv):
            values = {name: float(column[index]) for name, column in self._values.items()}
            self.task.set_parameters(self.envs.envs[index], values)
        else:
            self.task.set_parameters(self.envs, {name: column.copy() for name, column in self._values.items()})

    def _choose(self, indices: NDArray[np.intp]) -> list[World]:
        if self._recipe is None:
            raise RuntimeError("These worlds have no recipe yet: call begin(recipe) first.")
        worlds = list(sample_worlds(self._recipe, self._rng, indices, self.num_worlds))
        for index, world in zip(indices, worlds, strict=True):
            self.on_edge[index] = world.is_edge_case
            self._limits[index] = min(self.task.max_steps, world.num_steps or self.task.max_steps)
        if isinstance(self.envs, SturdyEnvs):
            self.envs.leads = {
                int(i): functools.partial(opening, task=self.task, case=world.led, parameters=world.parameters)
                for i, world in zip(indices, worlds, strict=True)
                if world.led is not None
            }
        if worlds and self.task.set_parameters:
            for index, world in zip(indices, worlds, strict=True):
                for name, value in world.parameters.items():
                    self._values[name][index] = value
                if isinstance(self.envs, SyncVectorEnv):
                    self.task.set_parameters(self.envs.envs[index], world.parameters)
            if not isinstance(self.envs, SyncVectorEnv):
                self._set_values()
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
