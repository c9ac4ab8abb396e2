"""A task whose policies remember their last actions, for worlds where an action arrives late.

An action under way is a part of the world's state that no observation shows. With a constant delay the observation and
the actions that have not arrived yet are a Markov state (Katsikopoulos and Engelbrecht 2003, "Markov decision processes
with delays and asynchronous cost collection"), so that some policy of these is as good as any.
In: any Task. Out: the same task, whose observation and state end with the last actions given.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from gymnasium.spaces.utils import flatten_space
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from flywheel.errors import UsageError
from flywheel.records import Array, Episode
from flywheel.spaces import flatten, flatten_batch, leaves_of, named
from flywheel.task import EdgeCase, Task

Wrap = Callable[[gymnasium.Env[Any, Any]], gymnasium.Env[Any, Any]]


def remembering(task: Task, steps: int, name: str = "") -> Task:
    """Return the task whose observation ends with its last `steps` actions, the last one first, as `Memory` has them.

    A state ends with them, too, so that `set_state` and a fork say what was done before; failing and all else is the
    task's own. Raises UsageError where there is nothing to remember, or the task does so already.
    """
    if steps < 1:
        raise UsageError(f"Task {task.name} can't remember {steps} actions: give at least 1, or the task as it is.")
    if task.inner is not None:
        raise UsageError(f"Task {task.name} remembers actions already: give the one that it was made of.")
    env = task.make_env()
    num = Memory(env.action_space, steps).size
    env.close()  # type: ignore[no-untyped-call]
    return dataclasses.replace(
        around(task, task, steps),
        name=name or f"{task.name}_remembering",
        edge_cases=tuple(_longer(case, num) for case in task.edge_cases),
        observed_state=None if task.observed_state is None else _Observed(task.observed_state, num),
        state_period=(*task.state_period, *[0.0] * num) if task.state_period else (),
        failed=_Forgetting(task.failed, num),
        margin=None if task.margin is None else _Forgetting(task.margin, num),
        strata=None if task.strata is None else _Forgetting(task.strata, num),
        remembered=steps,
        memory=num,
    )


def around(task: Task, inner: Task, steps: int) -> Task:
    """Return the task with the worlds of `inner`, whose last actions are remembered."""
    return dataclasses.replace(
        task,
        env=_Making(inner, steps),
        vector=None if inner.vector is None else _MakingMany(inner, steps),
        set_parameters=None if inner.set_parameters is None else _Setting(inner.set_parameters),
        set_state=None if inner.set_state is None else _Putting(inner.set_state, inner.state),
        state=None if inner.state is None else _Asking(inner.state),
        inner=inner,
    )


def forgotten(task: Task, episodes: Sequence[Episode]) -> tuple[Task, list[Episode]]:
    """Return the task that is remembered, in worlds as this one's, and episodes as those show them.

    What moves the world is asked there: an action that arrives late is in no state of its own, and what is remembered
    follows from the actions alone. Another task comes back as it is.
    """
    if task.inner is None:
        return task, list(episodes)
    seen = [dataclasses.replace(e, observations=e.observations[:, : -task.memory]) for e in episodes]
    return task.inner, seen


def _longer(case: EdgeCase, num: int) -> EdgeCase:
    return case if case.state is None else dataclasses.replace(case, state=(*case.state, *[0.0] * num))


class Memory:
    """The last actions of N worlds as numbers between -1 and 1, all 0 before the first one.

    One of two actions is -1 or 1, one of more is one-hot; a number of a box is put between its bounds, or left as it
    is where it has none.
    """

    def __init__(self, space: gymnasium.Space[Any], steps: int) -> None:
        """Know how actions become numbers."""
        if not isinstance(space, Discrete | Box) and not (isinstance(space, MultiDiscrete) and len(space.shape) == 1):
            raise UsageError(
                f"An action of {named(space)} can't be remembered as numbers: remembered are those of Discrete, "
                "MultiDiscrete of one dimension and Box."
            )
        self._space, self.steps = space, steps
        if isinstance(space, Box):
            low, high = np.ravel(space.low).astype(np.float64), np.ravel(space.high).astype(np.float64)
            bounded = np.isfinite(low) & np.isfinite(high) & (high > low)
            self._middle = np.where(bounded, (np.where(bounded, low, 0.0) + np.where(bounded, high, 0.0)) / 2.0, 0.0)
            self._half = np.where(bounded, (np.where(bounded, high, 2.0) - np.where(bounded, low, 0.0)) / 2.0, 1.0)
            edge = np.where(bounded, 1.0, np.inf)
        else:
            self._counts = np.ravel(space.n if isinstance(space, Discrete) else space.nvec).astype(np.int64)
            self._starts = np.ravel(space.start).astype(np.int64)
            edge = np.ones(int(np.where(self._counts == 2, 1, self._counts).sum()))
        self.width = len(edge)
        """Numbers of one action."""
        self.size = steps * self.width
        """Numbers of all."""
        self.high: NDArray[np.float32] = np.tile(edge, steps).astype(np.float32)
        """float32[size]: what no number exceeds; the lowest is less this"""

    def numbers(self, actions: Any) -> NDArray[np.float32]:
        """Return actions [N, *a] as float32[N, width]."""
        rows = np.asarray(actions).reshape(len(actions), -1)
        if isinstance(self._space, Box):
            return np.asarray((rows - self._middle) / self._half, np.float32)
        columns: list[Array] = []
        for place, (count, start) in enumerate(zip(self._counts, self._starts, strict=True)):
            which = rows[:, place].astype(np.int64) - start
            columns.append(2.0 * which[:, None] - 1.0 if count == 2 else np.eye(int(count))[which])
        return np.concatenate(columns, axis=1, dtype=np.float32)

    def after(self, held: NDArray[np.float32], actions: Any) -> NDArray[np.float32]:
        """Return what is held, float32[N, size], once actions [N, *a] were given."""
        return np.concatenate([self.numbers(actions), held[:, : self.size - self.width]], axis=1)

    def actions(self, held: NDArray[np.float32]) -> tuple[Array, NDArray[np.int64]]:
        """Return the actions dtype[N, steps, *a] that are held float32[N, size], the last one first, and how many.

        All after so many, int[N], are void: they were not given yet.
        """
        rows = held.reshape(len(held), self.steps, self.width)
        num = self.steps - np.argmax(np.flip((rows != 0).any(axis=2), axis=1), axis=1)
        num = np.where((rows != 0).any(axis=(1, 2)), num, 0)
        shape = (*rows.shape[:2], *(self._space.shape or ()))
        if isinstance(self._space, Box):
            flat = np.asarray(rows * self._half + self._middle).reshape(shape)
            return np.clip(flat, self._space.low, self._space.high).astype(self._space.dtype), num
        edges = np.cumsum(np.where(self._counts == 2, 1, self._counts))[:-1]
        columns = [
            part[..., 0] > 0 if part.shape[-1] == 1 and count == 2 else part.argmax(axis=-1)
            for part, count in zip(np.split(rows, edges, axis=2), self._counts, strict=True)
        ]
        return (np.stack(columns, axis=2) + self._starts).reshape(shape).astype(self._space.dtype), num


def _longer_space(space: gymnasium.Space[Any], memory: Memory) -> Box:
    """Return the space of flat observations with what is remembered after them."""
    flat = flatten_space(space)
    assert isinstance(flat, Box)
    dtype = np.result_type(flat.dtype, np.float32)
    low, high = (np.concatenate([bound.astype(dtype), sign * memory.high]) for bound, sign in
                 ((flat.low, -1), (flat.high, 1)))  # fmt: skip
    return Box(low.astype(dtype), high.astype(dtype), dtype=dtype.type)


class Remembering(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment that shows the last actions it was given after what it shows, in one row."""

    def __init__(self, env: gymnasium.Env[Any, Any], steps: int) -> None:
        """Remember nothing yet."""
        super().__init__(env)
        self.world = env
        """What it was made of, which the functions of the task know that is remembered."""
        self.memory = Memory(env.action_space, steps)
        self.held: NDArray[np.float32] = np.zeros(self.memory.size, np.float32)
        """float32[size]: the last actions as numbers, the last one first"""
        self._leaves = leaves_of(env.observation_space)
        self.observation_space = _longer_space(env.observation_space, self.memory)

    def between(self, wrap: Wrap) -> None:
        """Put something between the actions that are given, which are remembered, and the world."""
        self.env = wrap(self.env)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode, with nothing to remember."""
        self.held = np.zeros_like(self.held)
        observation, info = self.env.reset(seed=seed, options=options)
        return self.shown(observation), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Give an action, and remember it."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.held = self.memory.after(self.held[None], np.asarray(action)[None])[0]
        return self.shown(observation), float(reward), terminated, truncated, info

    def shown(self, observation: Any) -> Array:
        """Return an observation of the world with what is remembered after it."""
        row = np.concatenate([flatten(self._leaves, observation), self.held])
        return row.astype(self.observation_space.dtype, copy=False)


class RememberingVector(VectorWrapper):
    """The task's vector form, each of whose worlds remembers as its single environment does."""

    def __init__(self, env: VectorEnv[Any, Any, Any], steps: int) -> None:
        """Remember nothing yet."""
        super().__init__(env)
        self.world = env
        self.memory = Memory(env.single_action_space, steps)
        self.held: NDArray[np.float32] = np.zeros((env.num_envs, self.memory.size), np.float32)
        """float32[N, size]: the last actions as numbers, the last one first"""
        self._leaves = leaves_of(env.single_observation_space)
        self.single_observation_space = _longer_space(env.single_observation_space, self.memory)
        self._over = np.zeros(env.num_envs, np.bool_)

    @functools.cached_property
    def observation_space(self) -> gymnasium.Space[Any]:  # type: ignore[override]
        """The space of N observations, made when it is asked for."""
        return batch_space(self.single_observation_space, self.num_envs)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode in every world, with nothing to remember."""
        self.held, self._over = np.zeros_like(self.held), np.zeros_like(self._over)
        observations, info = self.env.reset(seed=seed, options=options)
        return self.shown(observations), info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Give actions, and remember them; a world that was over begins anew instead."""
        begins = self._over
        observations, rewards, terminated, truncated, info = self.env.step(actions)
        self.held = self.memory.after(self.held, actions)
        self.held[begins] = 0.0
        self._over = np.asarray(terminated | truncated, np.bool_)
        return self.shown(observations), rewards, terminated, truncated, info

    def put(self, held: NDArray[np.float32], is_other: NDArray[np.bool_]) -> None:
        """Remember float32[N, size]; the worlds of bool[N] were put into another state, and aren't over any more."""
        self.held, self._over = held, self._over & ~is_other

    def shown(self, observations: Any) -> Array:
        """Return observations of the worlds with what each remembers after it."""
        rows = np.concatenate([np.asarray(flatten_batch(self._leaves, observations)), self.held], axis=1)
        return rows.astype(self.single_observation_space.dtype, copy=False)


class _Of:
    """Stands for a function of the task that is remembered; two that do the same with one function are equal."""

    __wrapped__: Any

    def __init__(self, function: Any, num: int = 0) -> None:
        self.__wrapped__, self._num = function, num

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Of) and (type(other), other.__wrapped__, other._num) == (
            type(self), self.__wrapped__, self._num)  # fmt: skip

    def __hash__(self) -> int:
        return hash((type(self), self.__wrapped__, self._num))


class _Making(_Of):
    """Makes environments."""

    def __init__(self, inner: Task, steps: int) -> None:
        super().__init__(inner.env, steps)
        self._inner = inner

    def __call__(self) -> gymnasium.Env[Any, Any]:
        return Remembering(self._inner.make_env(), self._num)


class _MakingMany(_Of):
    """Makes vector forms."""

    def __call__(self, num_worlds: int) -> VectorEnv[Any, Any, Any]:
        return RememberingVector(self.__wrapped__(num_worlds), self._num)

    def __init__(self, inner: Task, steps: int) -> None:
        super().__init__(inner.vector, steps)


class _Setting(_Of):
    """Sets parameters."""

    def __call__(self, env: Any, values: Mapping[str, Any]) -> None:
        self.__wrapped__(env.world, values)


class _Asking(_Of):
    """Returns the state of a world, or of N, float64[..., S], with what is remembered at its end."""

    def __call__(self, env: Any) -> Array:
        state = np.asarray(self.__wrapped__(env.world), np.float64).reshape(*env.held.shape[:-1], -1)
        return np.concatenate([state, env.held], axis=-1)


class _Putting(_Of):
    """Puts a world, or N, into a state that ends with what is remembered, and returns what is shown there."""

    def __init__(self, set_state: Callable[[Any, Any], Array], state: Callable[[Any], Any] | None) -> None:
        super().__init__(set_state)
        self._state = state

    def __call__(self, env: Any, state: Any) -> Array:
        num = env.memory.size
        whole = np.asarray(state, np.float64).reshape(*env.held.shape[:-1], -1)
        there, held = whole[..., :-num], whole[..., -num:].astype(np.float32)
        is_other = np.ones(1, np.bool_)
        if isinstance(env, RememberingVector):
            here = there + 1.0 if self._state is None else np.asarray(self._state(env.world)).reshape(len(there), -1)
            is_moved, was = (here != there).any(axis=1), env.held
            env.put(held, is_moved)
            is_other = is_moved | (was != held).any(axis=1)
        else:
            env.held = held
        observed = self.__wrapped__(env.world, there)
        if hasattr(env.world, "expect"):  # actions arrive late there: those that were given are on their way
            env.world.expect(is_other, *env.memory.actions(held.reshape(len(is_other), num)))
        shown: Array = env.shown(observed)
        return shown


class _Observed(_Of):
    """Returns the state that an observation shows, with what is remembered at its end."""

    def __call__(self, observation: Array) -> Array:
        seen = np.asarray(observation)
        state = np.ravel(self.__wrapped__(seen[: -self._num]))
        return np.concatenate([state, seen[-self._num :]]).astype(np.float64)


class _Forgetting(_Of):
    """A function of an episode, which gets its observations without what is remembered."""

    def __call__(self, episode: Episode) -> Any:
        return self.__wrapped__(dataclasses.replace(episode, observations=episode.observations[:, : -self._num]))
