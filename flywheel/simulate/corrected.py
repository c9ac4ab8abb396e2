"""A task whose worlds do what production's do, where its own simulator doesn't.

It is the same task in everything else: its digest, its functions, what policies read and give. So whatever plays,
judges or trains in a task's worlds does so in corrected ones when it is given this form of it.

Whether an episode is over is the simulator's own word, which it gives inside its step: one whose state the correction
moves out of bounds is over with the step after, and one whose state it would have moved back in is over already.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import msgspec
import numpy as np
from gymnasium.vector import VectorEnv, VectorWrapper

from flywheel.correction import Correction
from flywheel.errors import FlywheelError, UsageError
from flywheel.policy import bounds, to_env
from flywheel.records import Array, Episode, Spec
from flywheel.remembering import around
from flywheel.simulate.arriving import Adding, Arrivals, Floats, arrived, box_of, groups_of, places
from flywheel.task import Task

_WRAPPED = ("env", "vector", "set_state", "state", "set_parameters")


def corrected(task: Task, correction: Correction | None) -> Task:
    """Return the task with worlds that act by a correction, in the place of one that it has; None: its own worlds.

    Raises UsageError where the correction needs what the task doesn't give.
    """
    task = plain(task)
    if correction is None or correction.is_none:
        return task
    if correction.state is not None and (task.set_state is None or task.state is None):
        raise UsageError(
            f"Task {task.name} gives no set_state and state, so nothing can be added to where its worlds go: give "
            "both, or leave that correction out."
        )
    if correction.reward is not None and task.state is None:
        raise UsageError(f"Task {task.name} gives no state, so its rewards can't be corrected: give state=.")
    if task.inner is not None:  # what is remembered is what was given, not what arrives
        inner = corrected(task.inner, correction)
        return dataclasses.replace(around(task, inner, task.remembered), correction=correction)
    return dataclasses.replace(
        task,
        env=_Making(task, correction),
        vector=None if task.vector is None else _MakingMany(task, correction),
        set_state=None if task.set_state is None else _Putting(task.set_state, task.state),
        state=None if task.state is None else _Asking(task.state),
        set_parameters=None if task.set_parameters is None else _Asking(task.set_parameters),
        correction=correction,
    )


def plain(task: Task) -> Task:
    """Return the task with the worlds of its own simulator."""
    if task.correction is None:
        return task
    if task.inner is not None:
        return dataclasses.replace(around(task, plain(task.inner), task.remembered), correction=None)
    worn = {name: getattr(task, name) for name in _WRAPPED}
    own: dict[str, Any] = {name: each.__wrapped__ for name, each in worn.items() if isinstance(each, _Worn)}
    return dataclasses.replace(task, **own, correction=None)


def correction_of(trained_on: Mapping[str, Any]) -> Correction | None:
    """Return what the worlds corrected that an artifact's `trained_on` tells of; None where they were the task's own.

    Raises FlywheelError where it can't be read.
    """
    found = trained_on.get("correction")
    if found is None:
        return None
    try:
        return msgspec.convert(found, Correction)
    except msgspec.ValidationError as error:
        raise FlywheelError(f"What a policy's worlds corrected can't be read in its manifest: {error}.") from error


def stepping(task: Task) -> Task:
    """Return the task whose worlds take actions as `arriving` gives them: corrected in all but these."""
    own = task.correction
    return task if own is None else corrected(task, Correction(state=own.state, reward=own.reward))


def arriving(task: Task, spec: Spec, episode: Episode) -> Array:
    """Return what arrived in the world in each of an episode's T steps, as the environment takes it: [T, *a]."""
    given = to_env(spec, episode.raw_actions)
    return given if task.correction is None else arrived(task.correction, space_of(spec), given)


def space_of(spec: Spec) -> gymnasium.Space[Any]:
    """Return the environment's own action space."""
    if spec.action_kind == "discrete":
        return gymnasium.spaces.Discrete(spec.num_actions, start=spec.action_start)
    if spec.action_kind == "multi_discrete":
        return gymnasium.spaces.MultiDiscrete(list(spec.action_nvec), start=list(spec.action_starts))
    return gymnasium.spaces.Box(*bounds(spec), dtype=np.float32)


class CorrectedEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """One environment that acts by a correction."""

    def __init__(self, task: Task, correction: Correction) -> None:
        """Make the task's own environment."""
        super().__init__(task.make_env())
        self._arrivals = Arrivals(correction, self.env.action_space, 1)
        self._residual = _Residual(task, correction, self.env.action_space)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode, with nothing on its way."""
        self.forget()
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take the step that production would take."""
        now = self._arrivals.next(np.asarray(action)[None])
        before = self._residual.before(self.env)
        observation, reward, terminated, truncated, info = self.env.step(now[0] if now.ndim > 1 else now[0].item())
        if before is not None:
            more, gained = self._residual.more(before[None], now)
            reward = float(reward) + gained[0]
            if self._residual.is_of_state and not (terminated or truncated):
                observation = self._residual.put(self.env, more[0], ...)
        return observation, reward, terminated, truncated, info

    def forget(self) -> None:
        """Let nothing be on its way."""
        self._arrivals.begin(np.ones(1, dtype=np.bool_))

    def expect(self, which: Any, given: Array, num: Any) -> None:
        """Let actions be on their way, as `Arrivals.expect` says."""
        self._arrivals.expect(which, given, num)


class CorrectedVector(VectorWrapper):
    """The task's vector form, whose worlds act by a correction, each as its single environment does."""

    def __init__(self, task: Task, correction: Correction, num_worlds: int) -> None:
        """Make the vector form."""
        assert task.vector is not None
        super().__init__(task.vector(num_worlds))
        self._arrivals = Arrivals(correction, self.env.single_action_space, num_worlds)
        self._residual = _Residual(task, correction, self.env.single_action_space)
        self._over = np.zeros(num_worlds, dtype=np.bool_)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode in every world, with nothing on its way."""
        self._over = np.zeros_like(self._over)
        self._arrivals.begin(~self._over)
        return self.env.reset(seed=seed, options=options)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Take the step that production would take; a world that was over begins anew instead."""
        begins, now = self._over, self._arrivals.next(np.asarray(actions))
        before = self._residual.before(self.env)
        observations, rewards, terminated, truncated, info = self.env.step(now)
        self._over = np.asarray(terminated | truncated, np.bool_)
        self._arrivals.begin(begins)
        if before is not None:
            more, gained = self._residual.more(before, now)
            rewards = np.asarray(rewards, np.float64) + np.where(begins, 0.0, gained)
            if self._residual.is_of_state:
                observations = self._residual.put(self.env, more, ~begins & ~self._over)
        return observations, rewards, terminated, truncated, info

    def forget(self, which: Any) -> None:
        """Let nothing be on its way in these worlds, bool[N], which aren't over any more."""
        self._arrivals.begin(which)
        self._over = self._over & ~which

    def expect(self, which: Any, given: Array, num: Any) -> None:
        """Let actions be on their way in these worlds, as `Arrivals.expect` says."""
        self._arrivals.expect(which, given, num)


class _Residual:
    """What is added to a step of N worlds."""

    def __init__(self, task: Task, correction: Correction, space: gymnasium.Space[Any]) -> None:
        self._task, self._space = task, space
        self._state = None if correction.state is None else Adding(correction.state)
        self._reward = None if correction.reward is None else Adding(correction.reward)
        self.is_of_state = self._state is not None

    def before(self, env: Any) -> Floats | None:
        """Return the state(s) before a step; None where nothing is added to it."""
        if self._state is None and self._reward is None:
            return None
        assert self._task.state is not None
        return np.array(self._task.state(env), np.float64)

    def more(self, before: Floats, now: Array) -> tuple[Floats, Floats]:
        """Return what is added to the states before [N, S] when the actions [N, *a] arrive, and to rewards [N]."""
        z = places(before.reshape(len(before), -1), box_of(self._space, now), self._task.state_period)
        which = groups_of(self._space, now)
        state = np.zeros_like(before) if self._state is None else self._state(z, which).reshape(before.shape)
        return state, np.zeros(len(z)) if self._reward is None else self._reward(z, which)[:, 0]

    def put(self, env: Any, more: Floats, which: Any) -> Any:
        """Add to the state where the step led; return what is shown there. `which` worlds are moved, all by `...`."""
        assert self._task.state is not None and self._task.set_state is not None
        there = np.array(self._task.state(env), np.float64)
        there[which] += more[which]
        return self._task.set_state(env, there)


class _Worn:
    """Stands in a corrected form for a function of the task's own; two forms of one correction are equal by it."""

    __wrapped__: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Worn) and (type(other), other.__wrapped__) == (type(self), self.__wrapped__)

    def __hash__(self) -> int:
        return hash((type(self), self.__wrapped__))


class _Making(_Worn):
    """Makes environments, in the place of the task's `env`."""

    def __init__(self, task: Task, correction: Correction) -> None:
        self.__wrapped__ = task.env
        self._task, self._correction = task, correction

    def __call__(self) -> gymnasium.Env[Any, Any]:
        return CorrectedEnv(self._task, self._correction)


class _MakingMany(_Worn):
    """Makes vector forms, in the place of the task's `vector`."""

    def __init__(self, task: Task, correction: Correction) -> None:
        self.__wrapped__ = task.vector
        self._task, self._correction = task, correction

    def __call__(self, num_worlds: int) -> VectorEnv[Any, Any, Any]:
        return CorrectedVector(self._task, self._correction, num_worlds)


class _Asking(_Worn):
    """The task's `state` or `set_parameters`, which get the environment that they know."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.__wrapped__ = function

    def __call__(self, env: Any, *values: Mapping[str, Any]) -> Any:
        return self.__wrapped__(_inside(env), *values)


class _Putting(_Worn):
    """The task's `set_state`: in a world that is put somewhere else nothing is on its way."""

    def __init__(self, set_state: Callable[[Any, Any], Array], state: Callable[[Any], Any] | None) -> None:
        self.__wrapped__ = set_state
        self._state = state

    def __call__(self, env: Any, state: Any) -> Array:
        if isinstance(env, CorrectedVector):
            there = np.asarray(state, np.float64).reshape(env.num_envs, -1)
            here = there + 1.0 if self._state is None else np.asarray(self._state(env.env), np.float64)
            env.forget((there != here.reshape(env.num_envs, -1)).any(axis=1))
        elif isinstance(env, CorrectedEnv):
            env.forget()
        shown: Array = self.__wrapped__(_inside(env), state)
        return shown


def _inside(env: Any) -> Any:
    return env.env if isinstance(env, CorrectedEnv | CorrectedVector) else env
