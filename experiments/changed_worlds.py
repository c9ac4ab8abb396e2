"""Worlds that changed in ways that no parameter of a simulator explains, made without what corrects them."""

from __future__ import annotations

import dataclasses
import functools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv, VectorWrapper

from flywheel.policy import Policy
from flywheel.records import Array, Episode, Rule
from flywheel.simulate import play
from flywheel.task import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What becomes of a world."""

    swapped: bool = False
    """Discrete actions 0 and 1 are each other."""
    stuck: bool = False
    """Every discrete action is action 0."""
    gain: float = 1.0
    """Factor on a box action."""
    delay: int = 0
    """Steps by which an action is late."""
    initial: float | None = None
    """What acts before the first one arrives; None: the first one."""
    push: tuple[float, ...] = ()
    """What is added to the state before each step."""
    gusts: float = 0.0
    """Deviation of what is added to the velocity before each step, by chance."""
    cost: float = 0.0
    """What a reward is less for each unit of the first observed number."""


class Changed(VectorWrapper):
    """A task's vector form in the changed world; for one episode after each reset."""

    def __init__(self, task: Task, change: Change, num_worlds: int) -> None:
        """Make it."""
        assert task.vector is not None
        super().__init__(task.vector(num_worlds))
        self._task, self._change = task, change
        self._late: deque[Array] = deque()
        self._rng = np.random.default_rng(num_worlds)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Begin."""
        self._late.clear()
        return self.env.reset(seed=seed, options=options)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step by what arrives."""
        change, now = self._change, np.asarray(actions)
        if change.swapped:
            now = 1 - now
        if change.stuck:
            now = np.zeros_like(now)
        if change.gain != 1.0:
            now = (now * change.gain).astype(now.dtype)
        if not self._late:
            first = now if change.initial is None else np.full_like(now, change.initial)
            self._late.extend([first] * change.delay)
        self._late.append(now)
        if change.push or change.gusts:
            assert self._task.state is not None and self._task.set_state is not None
            there = np.array(self._task.state(self.env)) + (np.array(change.push) if change.push else 0.0)
            there[:, 1] += change.gusts * self._rng.normal(size=len(there))
            self._task.set_state(self.env, there)
        seen, rewards, terminated, truncated, info = self.env.step(self._late.popleft())
        return seen, np.asarray(rewards, np.float64) - change.cost * np.abs(seen[:, 0]), terminated, truncated, info


def _made(task: Task, change: Change, num_worlds: int) -> VectorEnv[Any, Any, Any]:
    return Changed(task, change, num_worlds)


def changed(task: Task, change: Change) -> Task:
    """Return the task of the changed world: what production is, and nobody knows of."""
    return dataclasses.replace(task, vector=functools.partial(_made, task, change), version="changed")


def episodes(
    task: Task, change: Change, policy: Policy, seeds: Sequence[int], *, noise: float = 0.0, rule: Rule | None = None
) -> list[Episode]:
    """Return what production shows of the changed world: an episode a seed, with `noise` on what is observed of it.

    The policy acts on what is there; the noise is the record's.
    """
    world = changed(task, change)
    nominal = [dict(task.nominal)] * len(seeds)
    played = play(world, policy, seeds=seeds, parameters=nominal, draw_keys=seeds, origin="production", rule=rule)
    rng = np.random.default_rng(seeds[0])
    return [
        dataclasses.replace(
            each,
            id=f"episode_{number:05d}_{each.seed}",
            observations=(each.observations + rng.normal(0.0, noise, each.observations.shape)).astype(np.float32),
            parameters={},
            seed=None,
            started_at=float(number),
        )
        for number, each in enumerate(played)
    ]
