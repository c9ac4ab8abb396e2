"""A few steps in a task's environment before anything is started."""

from __future__ import annotations

import time

from flywheel.errors import UsageError
from flywheel.faults import outside, said, sound
from flywheel.task import Task

NUM_STEPS = 200
"""Random steps that are taken at most."""
NUM_EPISODES = 3
"""Episodes that are begun at most."""
BUDGET_S = 0.5
"""Seconds after which no further step is taken."""


def try_task(task: Task) -> list[str]:
    """Take a few random steps and return what is odd but can be lived with, a sentence each.

    Raises UsageError when the environment can't be made, or raises, or gives NaN or a wrong shape at once.
    """
    where, until = "can't be made: it", time.monotonic() + BUDGET_S
    odd: dict[str, str] = {}
    try:
        env = task.make_env()
        try:
            env.action_space.seed(0)
            num_steps = 0
            for episode in range(NUM_EPISODES):
                where, over = f"can't be used: reset(seed={episode})", False
                observation, _ = env.reset(seed=episode)
                sound(env.observation_space, observation)
                while not over and num_steps < NUM_STEPS and time.monotonic() < until:
                    if fault := outside(env.observation_space, observation):
                        odd.setdefault("space", fault)
                    action = env.action_space.sample()
                    num_steps += 1
                    where = f"can't be used: step({action!r})"
                    observation, reward, terminated, truncated, _ = env.step(action)
                    sound(env.observation_space, observation, reward)
                    over = bool(terminated or truncated)
        finally:
            env.close()  # type: ignore[no-untyped-call]
    except UsageError:
        raise
    except Exception as error:  # an environment is anybody's code
        raise UsageError(
            f"The environment of task {task.name} {where} {said(error)}. Put it right first; "
            "flywheel.testing.check_task(task) tries all of a task."
        ) from error
    return [
        f"task {task.name} shows observations outside their declared space ({fault}): declare wider bounds"
        for fault in odd.values()
    ]
