"""Whether set_parameters and set_state do what they say."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np

from flywheel.records import Array
from flywheel.task import Task

NUM_STEPS = 30
"""Steps by which two worlds are compared."""


def check_parameters(task: Task, findings: list[str]) -> list[str]:
    """Set each parameter to the ends of its range and back, and see whether the world changes and comes back."""
    if task.set_parameters is None or not task.parameters:
        return []
    fresh = _course(task, ())
    for parameter in task.parameters:
        ends = [value for value in (parameter.low, parameter.high) if value != parameter.nominal]
        if not parameter.low <= parameter.nominal <= parameter.high:
            findings.append(
                f"Parameter {parameter.name} is {parameter.nominal:g} nominally, outside {parameter.low:g} to "
                f"{parameter.high:g}: widen its range."
            )
        named = [{**task.nominal, parameter.name: value} for value in ends]
        moved = [_course(task, [values]) != fresh or _shows(task, values, parameter) for values in named]
        if named and not any(moved):
            findings.append(
                f"set_parameters with {parameter.name} = {' or '.join(f'{v:g}' for v in ends)} changes nothing in "
                f"{NUM_STEPS} steps: let it set what the simulator reads (often on env.unwrapped), or leave it out."
            )
        elif any(_course(task, [values, task.nominal]) != fresh for values in named):
            findings.append(
                f"After set_parameters with another {parameter.name} and back to nominal, the world is another one "
                "than a fresh environment: set all values that derive from it, and give the value the fresh one has."
            )
    if _course(task, [task.nominal]) != fresh:
        findings.append(
            "A fresh environment is another world than one at the parameters' nominal values: give each Parameter the "
            "nominal value that the environment has when it is made."
        )
    return [f"{len(task.parameters)} parameters set and set back"]


def _shows(task: Task, values: Mapping[str, float], parameter: Any) -> bool:
    """Say whether an attribute of the environment tells a parameter's value."""
    env = task.make_env()
    assert task.set_parameters is not None
    before: Any = getattr(env.unwrapped, parameter.name, None)
    task.set_parameters(env, values)
    after = getattr(env.unwrapped, parameter.name, None)
    env.close()  # type: ignore[no-untyped-call]
    return isinstance(before, int | float | np.number) and bool(before != after)


def _course(task: Task, settings: Sequence[Mapping[str, float]]) -> bytes:
    """Return what a new environment shows after these settings, one after the other."""
    env = task.make_env()
    for values in settings:
        assert task.set_parameters is not None
        task.set_parameters(env, values)
    env.action_space.seed(0)
    seen = _bytes(env.reset(seed=0)[0])
    for _ in range(NUM_STEPS):
        observation, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        seen += _bytes(observation) + _bytes(reward)
        if terminated or truncated:
            break
    env.close()  # type: ignore[no-untyped-call]
    return seen


def _bytes(value: Any) -> bytes:
    if isinstance(value, Mapping):
        return b"".join(_bytes(part) for part in value.values())
    if isinstance(value, tuple | list):
        return b"".join(_bytes(part) for part in value)
    return np.asarray(value).tobytes()


def check_state(task: Task, findings: list[str]) -> list[str]:
    """Take the state of one world, put another one into it, and compare what both show and do next."""
    if task.set_state is None or task.state is None:
        return []
    one, other = _walked(task, 1, 5), _walked(task, 2, 3)
    shown, env = one
    state = copy.deepcopy(task.state(env))
    answer = task.set_state(other[1], state)
    if not _close(answer, shown):
        findings.append(
            f"set_state(env, state(env)) returned {answer!r} where that world showed {shown!r}: let it return what is "
            "observed in the state it has set."
        )
    if not _close(task.state(other[1]), state):
        findings.append(
            f"After set_state(env, {state!r}), state(env) is {task.state(other[1])!r}: let both speak of the same "
            "state."
        )
    other[1].unwrapped.np_random = copy.deepcopy(env.unwrapped.np_random)
    action = env.action_space.sample()
    if not _close(env.step(action)[0], other[1].step(action)[0]):
        findings.append(
            "A world that was put into another one's state by set_state takes another next step than that one: let "
            "state hold everything that decides what comes next, and set_state set it all."
        )
    if task.observed_state is not None and not _close(task.observed_state(np.asarray(shown)), state, 1e-4):
        findings.append(
            f"observed_state(observation) is {task.observed_state(np.asarray(shown))!r} where state(env) is {state!r}: "
            "leave observed_state out unless an observation is the whole state."
        )
    for world in (env, other[1]):
        world.close()  # type: ignore[no-untyped-call]
    return ["a state read, set and gone on from"]


def _walked(task: Task, seed: int, num_steps: int) -> tuple[Any, gymnasium.Env[Any, Any]]:
    """Return an environment some steps into an episode that goes on, and what it shows."""
    env = task.make_env()
    for length in range(num_steps, -1, -1):
        env.action_space.seed(seed)
        observation, over = env.reset(seed=seed)[0], False
        for _ in range(length):
            observation, _, terminated, truncated, _ = env.step(env.action_space.sample())
            over = over or terminated or truncated
        if not over:
            break
    return observation, env


def _close(one: Any, other: Any, rtol: float = 1e-5) -> bool:
    left, right = (np.asarray(value, dtype=np.float64) if _plain(value) else value for value in (one, other))
    if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
        return left.shape == right.shape and bool(np.allclose(left, right, rtol=rtol, atol=1e-6))
    return True  # states of another kind (a dict, an object) are compared by what the world does next


def _plain(value: Any) -> bool:
    try:
        array: Array = np.asarray(value)
    except (TypeError, ValueError):
        return False
    return bool(array.dtype.kind in "biuf")
