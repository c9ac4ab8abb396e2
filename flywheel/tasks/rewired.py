"""Changes of a world that no parameter of a simulator makes: what simulated production can go through.

Actions arrive swapped, late or reversed, or the reward is paid for something else. The policy isn't told.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, SupportsFloat

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete, MultiDiscrete

from flywheel.errors import UsageError, unknown
from flywheel.remembering import Remembering
from flywheel.task import Task

FAULTS: Mapping[str, str] = {
    "swapped": "actions swapped",
    "delayed": "actions {steps} steps late",
    "reversed": "actions reversed",
    "reward": "reward for another place",
}
"""By name what each is called in a report; "" is none."""
WANTED = 1.0
"""Near which value of the observation's first number the reward is paid, once it is another one: CartPole's x, in m."""
NEAR, SLOPE = 0.25, 0.5
"""As near as this the whole reward is paid, and of each unit further away so much less: at x = 0 five eighths."""


class Rewired(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment with one fault, while that `is_on`."""

    def __init__(self, env: gymnasium.Env[Any, Any], fault: str, num_steps: int) -> None:
        """Leave the environment as it is until `is_on`; `num_steps` is by how many a delayed action is late."""
        super().__init__(env)
        self.is_on = False
        self._fault, self._num_steps = fault, num_steps
        self._under_way: deque[Any] = deque()

    def reset(self, **given: Any) -> tuple[Any, dict[str, Any]]:
        """Begin an episode, with no action under way."""
        self._under_way.clear()
        return self.env.reset(**given)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Take what arrives of an action, and pay what is paid now."""
        if not self.is_on:
            return self.env.step(action)
        observation, reward, *rest = self.env.step(self._arriving(action))
        if self._fault == "reward":
            away = abs(float(np.ravel(observation)[0]) - WANTED)
            reward = float(reward) * min(1.0, max(0.0, 1.0 + SLOPE * (NEAR - away)))
        return observation, reward, *rest

    def _arriving(self, action: Any) -> Any:
        space = self.env.action_space
        if self._fault == "delayed":
            if not self._under_way:  # what arrives before the first action does is that action itself
                self._under_way.extend([action] * self._num_steps)
            self._under_way.append(action)
            return self._under_way.popleft()
        if self._fault == "swapped" and isinstance(space, Discrete):
            return type(action)(2 * int(space.start) + int(space.n) - 1 - int(action))
        if self._fault == "swapped" and isinstance(space, MultiDiscrete):
            return 2 * space.start + space.nvec - 1 - np.asarray(action)
        if self._fault == "swapped":
            return np.asarray(action, space.dtype)[::-1]
        if self._fault == "reversed" and isinstance(space, Box):
            middle = np.where(space.bounded_below & space.bounded_above, (space.low + space.high) / 2.0, 0.0)
            return np.asarray(2.0 * middle - np.asarray(action), space.dtype)
        return action


def with_fault(env: gymnasium.Env[Any, Any], fault: str, num_steps: int) -> gymnasium.Env[Any, Any]:
    """Return the environment with a fault that is off: what remembers actions goes on remembering the given ones."""
    if not isinstance(env, Remembering):
        return Rewired(env, fault, num_steps)
    env.between(lambda world: Rewired(world, fault, num_steps))
    return env


def turn(env: gymnasium.Env[Any, Any], is_on: bool) -> gymnasium.Env[Any, Any]:
    """Turn the fault of `with_fault` on or off, and return the environment that the task's functions know."""
    found = env.env if isinstance(env, Remembering) else env
    if not isinstance(found, Rewired):
        return env
    found.is_on = is_on
    return env if isinstance(env, Remembering) else found.env


def check(task: Task, fault: str, num_steps: int) -> None:
    """Raise UsageError where a fault isn't one, or is none of this task's."""
    if not fault:
        return
    if fault not in FAULTS:
        raise unknown("fault of simulated production:", fault, FAULTS)
    env = task.make_env()
    actions, seen = env.action_space, (env.world if isinstance(env, Remembering) else env).observation_space
    env.close()  # type: ignore[no-untyped-call]
    several = (isinstance(actions, Box) and actions.shape[:1] > (1,)) or not isinstance(actions, Box)
    why = ""
    if fault == "swapped" and not several:
        why = "takes one number, and there is none to swap it with: use reversed"
    elif fault == "reversed" and not isinstance(actions, Box):
        why = f"takes {type(actions).__name__} actions, which have no sign: use swapped"
    elif fault == "delayed" and num_steps < 1:
        why = f"can't have actions {num_steps} steps late: give at least 1"
    elif fault == "reward" and not isinstance(seen, Box):
        why = (
            f"observes {type(seen).__name__}, whose first number is no place to be paid for: leave its reward as it is"
        )
    if why:
        raise UsageError(f"The fault {fault} doesn't fit task {task.name}, which {why}.")


def named(fault: str, num_steps: int) -> str:
    """Return what a fault is called in a report."""
    return FAULTS.get(fault, fault).format(steps=num_steps)
