"""N seeded worlds that are stepped together; world i is a function of its own seed, parameters and state alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import gymnasium
import numpy as np
from numpy.typing import NDArray

from flywheel.errors import UsageError, unknown
from flywheel.faults import said, sound
from flywheel.records import Array, Parameters
from flywheel.simulate.copies import put, take
from flywheel.simulate.stop import go_on_or_stop
from flywheel.spaces import flatten, flatten_batch, leaves_of
from flywheel.task import Task

Stepped = tuple[Array, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]
"""Observations [N, *o], rewards float64[N], terminated bool[N], truncated bool[N]."""


class Worlds(Protocol):
    """N worlds of one task; what one of them does depends neither on N nor on its place among them."""

    num_worlds: int
    broken: dict[int, str]
    """What worlds did since `reset` that no simulator may ("raised …"): they are not stepped again, their rows are
    void."""

    def reset(
        self,
        seeds: Sequence[int],
        parameters: Sequence[Parameters],
        states: Sequence[tuple[float, ...] | None] | None = None,
    ) -> Array:
        """Begin an episode in every world and return flat observations [N, *o]; state None begins as the task does."""
        ...

    def step(self, actions: Array, active: NDArray[np.bool_]) -> Stepped:
        """Step the active worlds by the environment's actions [N, *a]; rows of the others are void.

        An episode that has `Task.max_steps` steps is truncated. A world that breaks is named in `broken`.
        """
        ...

    def change(self, parameters: Sequence[Parameters]) -> None:
        """Give every world other parameters in the middle of its episode; missing ones are nominal."""
        ...

    def snapshot(self) -> Any:
        """Return all that `restore` needs to go on from here, in this process.

        Raises copies.NoCopy where an environment has no faithful copy.
        """
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
    sound(env.observation_space, observation)
    return flatten(leaves_of(env.observation_space), observation)


def _nothing(space: gymnasium.Space[Any], num_worlds: int) -> Array:
    """Return room for the flat observations of N worlds, all zero."""
    flat = gymnasium.spaces.flatten_space(space)
    return np.zeros((num_worlds, *(flat.shape or ())), dtype=flat.dtype)


def _finite(observations: Array, rewards: Array) -> NDArray[np.bool_]:
    """Return bool[N]: which worlds gave finite numbers only."""
    fine: NDArray[np.bool_] = np.isfinite(observations).reshape(len(rewards), -1).all(axis=1) & np.isfinite(rewards)
    return fine


@contextmanager
def _noting(broken: dict[int, str], world: int) -> Iterator[None]:
    """Note what breaks in the block as that world's, in a sentence; a wrong call is raised. Ends here if it is to."""
    go_on_or_stop()
    try:
        yield
    except UsageError:
        raise
    except Exception as error:  # a simulator is anybody's code
        broken[world] = said(error)


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
        self._num_steps = 0
        self.broken: dict[int, str] = {}

    def reset(
        self,
        seeds: Sequence[int],
        parameters: Sequence[Parameters],
        states: Sequence[tuple[float, ...] | None] | None = None,
    ) -> Array:
        """Begin an episode in every world, each where the single environment with its seed begins."""
        complete = _complete(self._task, parameters)
        self._num_steps, self.broken = 0, {}
        begun: list[Array | None] = []
        for i, world in enumerate(zip(seeds, complete, states or [None] * self.num_worlds, strict=True)):
            begun.append(None)
            with _noting(self.broken, i):
                _begin(self._task, self._single, *world)
                begun[i] = self._state(self._single)
        somewhere = next((state for state in begun if state is not None), None)
        if somewhere is None:
            return _nothing(self._single.observation_space, self.num_worlds)
        self._env.reset(seed=0)  # makes the vector form ready; every state it draws is replaced
        self.change(parameters)
        states_of_all = np.stack([somewhere if state is None else state for state in begun])
        return np.asarray(flatten_batch(self._leaves, self._set_state(self._env, states_of_all)))

    def change(self, parameters: Sequence[Parameters]) -> None:
        """Give every world other parameters, as columns."""
        complete = _complete(self._task, parameters)
        if self._task.set_parameters is not None:
            columns = {name: np.array([values[name] for values in complete]) for name in complete[0]}
            self._task.set_parameters(self._env, columns)

    def step(self, actions: Array, active: NDArray[np.bool_]) -> Stepped:
        """Step all worlds; those that aren't active go on unseen. When the form raises, all active ones broke."""
        go_on_or_stop()
        try:
            seen, rewards, terminated, truncated, _ = self._env.step(actions)
            observations = np.asarray(flatten_batch(self._leaves, seen))
        except Exception as error:
            self.broken |= dict.fromkeys(np.flatnonzero(active).tolist(), said(error))
            nothing = _nothing(self._single.observation_space, self.num_worlds)
            return nothing, np.zeros(self.num_worlds), np.zeros_like(active), np.zeros_like(active)
        self._num_steps += 1
        rewards = np.asarray(rewards, np.float64)
        # nearly always all is well, and two sums of squares show it
        fine = math.isfinite(np.vdot(observations, observations)) and math.isfinite(np.vdot(rewards, rewards))
        for i in () if fine else np.flatnonzero(active & ~_finite(observations, rewards)):
            self.broken[int(i)] = f"gave the reward {rewards[i]} and the observation {observations[i].tolist()}"
        truncated = truncated | (self._num_steps >= self._task.max_steps)
        return observations, rewards, terminated & active, truncated & active

    def snapshot(self) -> Any:
        """Return a copy of the vector form."""
        return take(self._env), self._num_steps, dict(self.broken)

    def restore(self, snapshot: Any) -> None:
        """Go on from a copy of a snapshot."""
        taken, self._num_steps, broken = snapshot
        self._env, self.broken = put(self._env, taken), dict(broken)

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
        self._num_steps = 0
        self.broken: dict[int, str] = {}

    def reset(
        self,
        seeds: Sequence[int],
        parameters: Sequence[Parameters],
        states: Sequence[tuple[float, ...] | None] | None = None,
    ) -> Array:
        """Begin an episode in every world."""
        complete = _complete(self._task, parameters)
        self._num_steps, self.broken = 0, {}
        self._observations = _nothing(self._envs[0].observation_space, self.num_worlds)
        worlds = zip(self._envs, seeds, complete, states or [None] * self.num_worlds, strict=True)
        for i, world in enumerate(worlds):
            with _noting(self.broken, i):
                self._observations[i] = _begin(self._task, *world)
        return self._observations.copy()

    def change(self, parameters: Sequence[Parameters]) -> None:
        """Give every world other parameters, one by one."""
        if self._task.set_parameters is not None:
            for env, values in zip(self._envs, _complete(self._task, parameters), strict=True):
                self._task.set_parameters(env, values)

    def step(self, actions: Array, active: NDArray[np.bool_]) -> Stepped:
        """Step the active worlds; the others keep their last observation."""
        rewards = np.zeros(self.num_worlds)
        terminated, truncated = np.zeros((2, self.num_worlds), dtype=np.bool_)
        self._num_steps += 1
        for i in np.flatnonzero(active):
            go_on_or_stop()
            try:
                observation, reward, terminated[i], truncated[i], _ = self._envs[i].step(actions[i])
                sound(self._envs[i].observation_space, observation, reward)
                self._observations[i] = flatten(self._leaves, observation)
            except Exception as error:
                self.broken[int(i)], terminated[i], truncated[i] = said(error), False, False
                continue
            rewards[i] = float(reward)
            truncated[i] |= self._num_steps >= self._task.max_steps
        return self._observations.copy(), rewards, terminated, truncated

    def snapshot(self) -> Any:
        """Return copies of all environments."""
        return [take(env) for env in self._envs], self._observations.copy(), self._num_steps, dict(self.broken)

    def restore(self, snapshot: Any) -> None:
        """Go on from copies of a snapshot."""
        taken, observations, self._num_steps, broken = snapshot
        self._envs = [put(env, each) for env, each in zip(self._envs, taken, strict=True)]
        self._observations, self.broken = observations.copy(), dict(broken)

    def close(self) -> None:
        """Close all environments."""
        for env in self._envs:
            env.close()  # type: ignore[no-untyped-call]
