"""Environments that misbehave now and then don't stop training: they are made anew, and counted.

An episode that breaks off is cut before the step that broke it; that step never was. When too many break off, the
environment is broken and training says so.
"""

from __future__ import annotations

import contextlib
import copy
from collections import deque
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import SyncVectorEnv
from gymnasium.vector.utils import concatenate, iterate
from numpy.typing import NDArray

from flywheel.errors import FlywheelError
from flywheel.faults import said, sound
from flywheel.task import Task

RECENT = 200
"""Episodes among which broken ones are counted."""
TOLERATED = 10
"""Episodes of the last RECENT ones that may break off: 1 in 20."""


class Tally:
    """How many episodes broke off, and by what."""

    def __init__(self, name: str) -> None:
        """Count nothing yet; `name` is the task's."""
        self._name = name
        self._recent: deque[bool] = deque(maxlen=RECENT)
        self.num_broken = 0
        self.last = ""
        """What the last one did."""

    def ended(self, num_episodes: int) -> None:
        """Count episodes that came to their end."""
        self._recent.extend([False] * num_episodes)

    def broke(self, fault: str) -> None:
        """Count one that broke off; raise FlywheelError when there have been too many of late."""
        self._recent.append(True)
        self.num_broken, self.last = self.num_broken + 1, fault
        if (num := sum(self._recent)) > TOLERATED:
            raise FlywheelError(
                f"{num} of the last {len(self._recent)} training episodes of task {self._name} broke off, the last one "
                f"because its environment {fault}: put the environment right (flywheel.testing.check_task tries it)."
            )


class SturdyEnvs(SyncVectorEnv):
    """N environments that begin again by themselves (NEXT_STEP); one that misbehaves is replaced by a new one."""

    def __init__(self, task: Task, limits: NDArray[np.intp], tally: Tally, prepare: Callable[[int], None]) -> None:
        """Make one for each of `limits`, int[N]: the steps after which its present episode is cut, whoever sets them.

        `prepare` is called with the number of a world that was made anew, to set its parameters.
        """
        num_worlds = len(limits)
        super().__init__([task.make_env] * num_worlds)
        self.lost: NDArray[np.bool_] = np.zeros(num_worlds, dtype=np.bool_)
        """The worlds whose last step never was: each begins again with its next one."""
        self.leads: dict[int, Callable[[gymnasium.Env[Any, Any]], Any]] = {}
        """What leads the world of a number to its next beginning, and shows it; None where it can't."""
        self._task, self._limits, self._tally, self._prepare = task, limits, tally, prepare
        self._ages = np.zeros(num_worlds, dtype=np.int64)
        self._seeds = np.random.default_rng(0)
        self._unseeded = np.ones(num_worlds, dtype=np.bool_)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode in every world; raise FlywheelError when that keeps failing."""
        self._seeds = np.random.default_rng(seed)
        self._unseeded[:] = True
        for i in range(self.num_envs):
            while not self._begin(i):
                self._prepare(i)
        self._autoreset_envs[:] = False
        return self._batch(), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step every world, or begin it again; `lost` says where neither was possible."""
        self._rewards[:], self._terminations[:], self._truncations[:], self.lost[:] = 0.0, False, False, False
        for i, action in enumerate(iterate(self.action_space, actions)):
            self.lost[i] = not (self._begin(i) if self._autoreset_envs[i] else self._go_on(i, action))
        self._autoreset_envs = self._terminations | self._truncations | self.lost
        return self._batch(), self._rewards.copy(), self._terminations.copy(), self._truncations.copy(), {}

    def _begin(self, i: int) -> bool:
        """Begin an episode and say whether that went well."""
        lead = self.leads.get(i)
        try:
            observation = None if lead is None else lead(self.envs[i])
            if observation is None:
                if lead is not None:
                    self._prepare(i)
                seed = int(self._seeds.integers(2**31)) if self._unseeded[i] or lead is not None else None
                observation, _ = self.envs[i].reset(seed=seed)
            sound(self.single_observation_space, observation)
        except Exception as error:  # an environment is anybody's code
            return self._replace(i, error)
        self._env_obs[i], self._ages[i] = observation, 0
        self._unseeded[i] = lead is not None  # it was seeded with the same number as each time it is led
        return True

    def _go_on(self, i: int, action: Any) -> bool:
        """Take a step and say whether that went well."""
        try:
            observation, reward, terminated, truncated, _ = self.envs[i].step(action)
            sound(self.single_observation_space, observation, reward)
        except Exception as error:
            return self._replace(i, error)
        self._ages[i] += 1
        self._env_obs[i], self._rewards[i], self._terminations[i] = observation, reward, terminated
        self._truncations[i] = truncated or self._ages[i] >= self._limits[i]
        return True

    def _replace(self, i: int, error: Exception) -> bool:
        with contextlib.suppress(Exception):
            self.envs[i].close()  # type: ignore[no-untyped-call]
        self._tally.broke(said(error))
        self.envs[i], self._unseeded[i] = self._task.make_env(), True
        return False

    def _batch(self) -> Any:
        """Return all observations; the one before stands for one that is missing."""
        batch = concatenate(self.single_observation_space, self._env_obs, self._observations)
        self._observations = batch
        return copy.deepcopy(batch)
