"""Worlds in which actions arrive otherwise, or the reward is another one."""

from __future__ import annotations

import io
import threading
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete, MultiDiscrete

from flywheel.config import Config, TrafficConfig
from flywheel.errors import UsageError
from flywheel.task import Parameter, Task
from flywheel.tasks.cartpole import cartpole
from flywheel.tasks.pendulum import pendulum
from flywheel.tasks.production import change
from flywheel.tasks.rewired import FAULTS, Rewired, check, named
from flywheel.tasks.traffic import Habits, Traffic
from tests.rooms import room


class Echo(gymnasium.Env[Any, Any]):
    """Says which actions arrived."""

    observation_space = Box(-9.0, 9.0, (2,), np.float32)

    def __init__(self, actions: gymnasium.Space[Any]) -> None:
        self.action_space, self.arrived = actions, list[Any]()

    def reset(self, **_: Any) -> Any:
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), action
        self.arrived.append(np.asarray(action).tolist())
        return np.array([0.5, 9.0], np.float32), 2.0, False, False, {}


def arrived(actions: gymnasium.Space[Any], fault: str, given: list[Any], num_steps: int = 2) -> list[Any]:
    """Return what arrives of the given actions in the second episode of a world, the first one with a fault."""
    echo = Echo(actions)
    world = Rewired(echo, fault, num_steps)
    world.reset()
    for action in given:
        world.step(action)
    assert echo.arrived == np.asarray(given).tolist(), "there is no fault yet"
    echo.arrived.clear()
    world.is_on = True
    world.reset()
    for action in given:
        world.step(action)
    return echo.arrived


def test_discrete_actions_are_swapped() -> None:
    assert arrived(Discrete(2), "swapped", [0, 1, 1]) == [1, 0, 0]
    assert arrived(Discrete(3, start=-1), "swapped", [-1, 0, 1]) == [1, 0, -1]
    given = np.array([0, 0]), np.array([1, 2])
    assert arrived(MultiDiscrete([2, 3]), "swapped", list(given)) == [[1, 2], [0, 0]]


def test_the_numbers_of_a_box_action_are_swapped_or_reversed() -> None:
    box = Box(-2.0, 2.0, (2,), np.float32)
    given = [np.array([1.0, -2.0], np.float32)]
    assert arrived(box, "swapped", given) == [[-2.0, 1.0]]
    assert arrived(box, "reversed", given) == [[-1.0, 2.0]]
    throttle = Box(0.0, 1.0, (1,), np.float32)
    assert arrived(throttle, "reversed", [np.array([0.25], np.float32)]) == [[0.75]], "it stays within its bounds"


def test_late_actions_come_in_their_order_and_begin_anew_with_each_episode() -> None:
    assert arrived(Discrete(9), "delayed", [3, 4, 5, 6]) == [3, 3, 3, 4]
    echo = Echo(Discrete(9))
    world = Rewired(echo, "delayed", 1)
    world.is_on = True
    for _ in range(2):
        world.reset()
        for action in (1, 2):
            world.step(action)
    assert echo.arrived == [1, 1, 1, 1]


def test_the_reward_is_paid_for_another_place() -> None:
    world = Rewired(Echo(Discrete(2)), "reward", 1)
    world.reset()
    assert world.step(0)[1] == 2.0
    world.is_on = True
    assert world.step(0)[1] == 2.0 * 0.875  # half a metre away


def test_what_does_not_fit_is_refused_with_what_does() -> None:
    for fault in ("", "swapped", "delayed", "reward"):
        check(cartpole, fault, 1)
    for fault in ("reversed", "delayed", "reward"):
        check(pendulum, fault, 1)
    for task, fault, num_steps, said in (
        (cartpole, "reversed", 1, "Discrete actions, which have no sign: use swapped"),
        (pendulum, "swapped", 1, "one number.*use reversed"),
        (pendulum, "delayed", 0, "at least 1"),
        (room, "reward", 1, "observes Dict"),
        (cartpole, "swaped", 1, "Did you mean 'swapped'"),
    ):
        with pytest.raises(UsageError, match=said):
            check(task, fault, num_steps)


def test_every_fault_has_a_name_for_reports() -> None:
    assert [named(fault, 3) for fault in FAULTS][:2] == ["actions swapped", "actions 3 steps late"]
    assert named("", 3) == ""


def test_clients_are_told_of_a_fault_in_place_of_the_drift() -> None:
    drifting, faulty = Config(), Config(traffic=TrafficConfig(fault="delayed", fault_steps=3))
    assert change(cartpole, drifting) == ["--changed", "length=2"]
    assert change(cartpole, faulty) == ["--fault", "delayed", "--fault-steps", "3"]
    assert change(room, drifting) == []


def test_parameters_are_set_in_the_tasks_own_environment_whatever_is_rewired() -> None:
    class Scales(Echo):
        def __init__(self) -> None:
            super().__init__(Discrete(2))

        def weigh(self, mass: float) -> None:
            self.mass = mass

    task = Task(
        name="scales", env=Scales, failed=lambda _: False, parameters=(Parameter("mass", 1.0, 0.5, 2.0),),
        set_parameters=lambda env, values: env.weigh(**values),
    )  # fmt: skip
    counters = SimpleNamespace(requests=0, errors=0)
    batch = SimpleNamespace(begin=lambda: ["e"], open=())
    client: Any = SimpleNamespace(batch=lambda: batch, counters=counters)
    habits = Habits(change_after=0, changed={"mass": 2.0}, fault="swapped")
    log = io.StringIO()
    (begun,) = Traffic(task, client, habits, log, threading.Event())._begin()
    assert begun.env.unwrapped.mass == 2.0 and "raised" not in log.getvalue()  # type: ignore[attr-defined]
