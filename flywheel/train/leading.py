"""Scenarios of the gate's suite as edge cases that training begins in, those too that only given actions lead to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from flywheel.faults import sound
from flywheel.policy import to_env
from flywheel.records import Parameters
from flywheel.tapes import SUITE, Scenario
from flywheel.task import EdgeCase, Task, spec_of


@dataclass(frozen=True, slots=True)
class Led(EdgeCase):
    """An edge case that begins by a seed (or in a state), where actions are stepped before anybody may act."""

    seed: int = 0
    actions: tuple[Any, ...] = ()
    """The environment's own: numbers, or lists of them."""
    before: Parameters | None = None
    """The world's parameters while they are stepped; None: the same as then."""


def cases_of(task: Task, suite: Sequence[Scenario]) -> tuple[EdgeCase, ...]:
    """Return the scenarios of a suite that training can begin in, by the names that the gate's trials bear.

    A nominal world by its seed is none: training sees many of those. Where the task can say its state and be put into
    it, actions that lead somewhere are stepped here, once, and training begins in that state. Where it can't, each
    environment is led there; a vector form can't be. So it is where actions arrive late: no state holds those that are
    on their way.
    """
    found: list[EdgeCase] = []
    for each in suite:
        if each.actions:
            found += _led(task, each)
        elif each.state is not None or each.parameters:
            found.append(EdgeCase(SUITE + each.name, each.parameters, each.state))
    return tuple(found)


def _led(task: Task, scenario: Scenario) -> Iterator[EdgeCase]:
    spec = spec_of(task)
    actions = to_env(spec, np.array(scenario.actions, spec.action_dtype)).tolist()
    name, before = SUITE + scenario.name, scenario.before
    case = Led(name, scenario.parameters, scenario.state, scenario.seed, tuple(actions), before)
    is_late = task.correction is not None and task.correction.delay > 0
    if task.state is not None and task.set_state is not None and not (is_late and task.vector is None):
        with contextlib.closing(task.make_env()) as env:
            if opening(env, task, case, {**task.nominal, **case.parameters}) is not None:
                state = np.ravel(np.asarray(task.state(env), np.float64)).tolist()
                yield EdgeCase(name, case.parameters, tuple(state))
    elif task.vector is None:
        yield case


def opening(env: gymnasium.Env[Any, Any], task: Task, case: Led, parameters: Parameters) -> Any:
    """Lead an environment there, let it go on at these parameters, and return its own observation of it.

    None where it is over by then, or breaks: then it is another one than the actions were recorded in, of which the
    gate's probes tell.
    """
    with contextlib.suppress(Exception):  # an environment is anybody's code
        _set(env, task, {**parameters, **(case.before or {})})
        observation = env.reset(seed=case.seed)[0]
        if case.state is not None and task.set_state is not None:
            observation = task.set_state(env, case.state)
        for action in np.array(case.actions, env.action_space.dtype):
            observation, reward, terminated, truncated, _ = env.step(action)
            sound(env.observation_space, observation, reward)
            if terminated or truncated:
                return None
        _set(env, task, parameters)
        return observation
    return None


def _set(env: gymnasium.Env[Any, Any], task: Task, parameters: Parameters) -> None:
    if task.set_parameters is not None:
        task.set_parameters(env, parameters)
