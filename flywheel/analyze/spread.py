"""A heavy simulator's steps and episodes, cut into parts that others may compute, where their time is worth it.

A step is a function of state, action and parameters, an episode one of seed, parameters and policy: the fit is the same
whoever computes which part.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flywheel.analyze.space import Floats
from flywheel.policy import Policy
from flywheel.records import Episode, Parameters, Spec
from flywheel.simulate import play
from flywheel.simulate.transitions import Simulator, Transitions
from flywheel.task import Task

PARTS = 8
"""Most parts of one question."""
WORTH_S = 2.0
"""Seconds below which a question is answered at home: sending it, and making worlds elsewhere, may take as long."""

Map = Callable[[Callable[[Any], Any], Sequence[Any]], Sequence[Any]]
"""As `map`: a function of every part, in their order."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Steps:
    """Transitions whose successors are asked for."""

    task: Task
    data: Transitions
    parameters: Sequence[Mapping[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plays:
    """Episodes that are asked for."""

    task: Task
    network: bytes
    spec: Spec
    digest: str
    seeds: Sequence[int]
    parameters: Sequence[Parameters]
    draw_keys: Sequence[int]


def stepped(part: Steps) -> Floats:
    """Return successors float64[M, N, S], in worlds of their own."""
    with Simulator(part.task) as simulator:
        return simulator.successors(part.data, part.parameters)


def played(part: Plays) -> list[Episode]:
    """Return the episodes."""
    policy = Policy(part.network, part.spec, part.digest)
    return play(part.task, policy, seeds=part.seeds, parameters=part.parameters, draw_keys=part.draw_keys)


class Stepper:
    """The simulator's successors: at home, or by `map` once a question at home took long."""

    def __init__(self, task: Task, simulator: Simulator, map: Map | None = None) -> None:
        """Ask the simulator itself first."""
        self._task, self._simulator, self._map, self._each_s = task, simulator, map, 0.0

    def successors(self, data: Transitions, parameters: Sequence[Mapping[str, float]]) -> Floats:
        """As Simulator.successors."""
        num = len(data) * len(parameters)
        if self._map is not None and num * self._each_s > WORTH_S:
            pieces = np.array_split(np.arange(len(data)), min(PARTS, len(data)))
            asked = [Steps(task=self._task, data=data.at(rows), parameters=parameters) for rows in pieces]
            return np.concatenate(list(self._map(stepped, asked)), axis=1)
        began = time.perf_counter()
        found = self._simulator.successors(data, parameters)
        self._each_s = (time.perf_counter() - began) / max(1, num)
        return found


class Stage:
    """The policy in the simulator: at home, or by `map` once episodes at home took long."""

    def __init__(self, task: Task, policy: Policy, map: Map | None = None) -> None:
        """Play at home first."""
        self._task, self._policy, self._map, self._each_s = task, policy, map, 0.0

    def play(self, seeds: Sequence[int], parameters: Sequence[Parameters], draw_keys: Sequence[int]) -> list[Episode]:
        """As simulate.play."""
        num, policy = len(seeds), self._policy
        if self._map is not None and num * self._each_s > WORTH_S:
            ends = [num * i // min(PARTS, num) for i in range(min(PARTS, num) + 1)]
            asked = [
                Plays(
                    task=self._task,
                    network=policy.network,
                    spec=policy.spec,
                    digest=policy.digest,
                    seeds=seeds[first:last],
                    parameters=parameters[first:last],
                    draw_keys=draw_keys[first:last],
                )
                for first, last in itertools.pairwise(ends)
            ]
            return [episode for some in self._map(played, asked) for episode in some]
        began = time.perf_counter()
        found = play(self._task, policy, seeds=seeds, parameters=parameters, draw_keys=draw_keys)
        self._each_s = (time.perf_counter() - began) / max(1, num)
        return found
