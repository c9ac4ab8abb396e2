"""DQ5: what verdicts cover, and whether a rare failure is found; part of `python -m experiments.gate_power`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from experiments.report import share
from flywheel.gate import SafetyGate
from flywheel.gate.search import search
from flywheel.gate.trials import Alone
from flywheel.records import Episode
from flywheel.task import Limits, Parameter, Task
from flywheel.tasks.cartpole import cartpole
from flywheel.testing import load_linear

NUM_SIMS = 500
RARE = 3e-3
SIZE = 5
NAMES = tuple("abcde")


class Trap(gymnasium.Env[NDArray[np.float32], int]):
    """An episode of one step; it fails where its parameters are within `radius` of `centre`, and shows how far off."""

    observation_space = gymnasium.spaces.Box(-10.0, 10.0, (1,))
    action_space = gymnasium.spaces.Discrete(2)
    centre = np.zeros(SIZE)
    radius = 0.0
    noise = 0.0
    values: Mapping[str, float] = dict.fromkeys(NAMES, 0.5)

    def reset(self, **given: Any) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin."""
        super().reset(seed=given.get("seed"))
        return np.ones(1, np.float32), {}

    def step(self, action: int) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """End."""
        place = np.array([self.values[name] for name in NAMES])
        off = float(np.linalg.norm(place - Trap.centre)) - Trap.radius
        if off > 0:
            off = max(off + Trap.noise * float(self.np_random.normal()), 1e-6)
        return np.array([off], np.float32), 1.0, off <= 0, off > 0, {}


def set_parameters(env: Any, values: Mapping[str, Any]) -> None:
    """Say where the world is."""
    env.unwrapped.values = dict(values)


def fell(episode: Episode) -> bool:
    """Say whether it ended badly."""
    return episode.end == "terminated"


def sloped(episode: Episode) -> float:
    """Return a margin that falls towards the failure."""
    return float(episode.observations[-1, 0])


def flat(episode: Episode) -> float:
    """Return a margin that says nothing until it is too late."""
    return 0.0 if fell(episode) else 1.0


PARAMETERS = tuple(Parameter(name, 0.5, 0.0, 1.0) for name in NAMES)


def trap(margin: Any) -> Task:
    """Return the task with a margin."""
    return Task(name="trap", env=Trap, failed=fell, margin=margin, parameters=PARAMETERS, set_parameters=set_parameters)


def set_trap(rng: np.random.Generator, noise: float) -> None:
    """Put the failures somewhere, around a point of the ranges, so that a random world fails with probability RARE."""
    Trap.centre, Trap.noise = rng.random(SIZE), noise
    away = np.linalg.norm(rng.random((200_000, SIZE)) - Trap.centre, axis=1)
    Trap.radius = float(np.quantile(away, RARE))


def rows(seed: int, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield the rows of DQ5."""
    gate = SafetyGate(dataclasses.replace(cartpole, limits=Limits(max_latency_s=60.0)))
    good = load_linear(cartpole)
    verdicts = [gate.judge(good, seed=seed + i, now=0.0) for i in range(5 if quick else 60)]
    passing = [{check.name: check for check in each.checks} for each in verdicts if each.outcome == "pass"]
    whole = np.array([found["coverage"].value == 1.0 for found in passing])
    yield share("DQ5", "passing verdicts with all pairs of settings tried", whole, 0.95, False, seed)
    rng = np.random.default_rng([seed, 5])
    for case, margin, noise, goal in (
        ("margin falls towards it", sloped, 0.0, 0.95),
        ("margin falls towards it, with noise", sloped, 0.1, 0.95),
        ("a needle without a slope", flat, 0.0, None),
    ):
        one, found = trap(margin), []
        policy = load_linear(one, [1.0])
        for i in range(40 if quick else 200):
            set_trap(rng, noise)
            check, _ = search(one, Alone(one, 256), policy, one.nominal, num=NUM_SIMS, seed=seed + i, now=0.0)
            found.append(check.value < 1.0)
        yield share("DQ5", f"failure of 3e-3 found in {NUM_SIMS}: {case}", np.array(found), goal, False, seed)
