"""DQ3: is a candidate refused that is worse than the policy in service? Part of `python -m experiments.gate_power`.

In the world `gusty` the policy in service fails in 2 % of its nominal episodes. Five ways of getting worse were fixed
beforehand, each as strong as it takes to fail in 5 % (`python -m experiments.gate_regression` counts both). A run is
the gate's own: pilot worlds of the policy in service, and up to 200 pairs of worlds at the stretch that they show; with
the 100 nominal pairs that a verdict has in any case that makes 300.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import secrets
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

from experiments.gusty import GUSTY, policy
from experiments.report import share
from flywheel.config import GateConfig
from flywheel.gate import checks
from flywheel.gate.stress import gauge, stress_situations
from flywheel.gate.trials import Alone, Situation, nominal_situations
from flywheel.policy import Policy
from flywheel.records import Trial

CONFIG = GateConfig()
CREW = Alone(GUSTY, CONFIG.lockstep)
GAINS = np.array([3.0, 6.0, 60.0, 24.0])
SERVICE = policy(GAINS)
WAYS = {
    "softer in all": policy(0.58 * GAINS),
    "less damping": policy([1.0, 0.55, 1.0, 0.55] * GAINS),
    "leans to one side": policy(GAINS, bias=1.6),
    "acts at random now and then": policy(GAINS, exploration_rate=0.055),
    "loses its place": policy([0.52, 1.0, 1.0, 1.0] * GAINS),
}
EQUAL = "equal, with other draws"


def play(candidate: Policy, worlds: list[Situation]) -> list[Trial]:
    """Return a candidate's trials."""
    return list(CREW.play(candidate, worlds, 0.0).trials)


def one_run(seed: int) -> dict[str, bool]:
    """Return of each way, of an equal policy and of the same one whether it was refused."""
    known = gauge(GUSTY, CREW, SERVICE, GUSTY.nominal, seed=seed, now=0.0)
    worlds = stress_situations(GUSTY, seed, "judge", 0, CONFIG.stress_sims, GUSTY.nominal, known.stretch)
    old = play(SERVICE, worlds)
    others = [dataclasses.replace(world, key=world.seed + 1) for world in worlds]
    refused = {}
    for name, candidate in {**WAYS, EQUAL: SERVICE}.items():
        new: list[Trial] = []
        while True:
            size = CONFIG.batch if new else CONFIG.num_sims
            new += play(candidate, (others if name == EQUAL else worlds)[len(new) : len(new) + size])
            check = checks.stress(GUSTY, new, old[: len(new)], known, CONFIG.stress_sims, CONFIG.error)
            if check.passed is not None:
                break
        refused[name] = check.passed is False
    same = checks.stress(GUSTY, old, old, known, CONFIG.stress_sims, CONFIG.error)
    return {**refused, "identical": same.passed is False}


def rows(seed: int, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield the rows of DQ3."""
    seeds = np.random.default_rng([seed, 3]).integers(2**31, size=20 if quick else 300).tolist()
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        found = list(pool.map(one_run, seeds, chunksize=5))
    refused = {name: np.array([each[name] for each in found]) for name in found[0]}
    for name in WAYS:
        yield share("DQ3", f"refused in at most 300 pairs: {name}", refused[name], 0.9, False, seed)
    worst = min(WAYS, key=lambda name: float(refused[name].mean()))
    yield share("DQ3", f"the worst of the five: {worst}", refused[worst], 0.9, False, seed)
    yield share("DQ3", "an identical policy is refused", refused["identical"], 0.01, True, seed)
    yield share("DQ3", f"refused: {EQUAL}", refused[EQUAL], 0.05, True, seed)


def main() -> None:
    """Print in how many nominal episodes the policy in service fails, and each of the five."""
    seed, num = secrets.randbelow(2**31), 20_480
    worlds = nominal_situations(seed, "judge", 0, num, GUSTY.nominal)
    for name, candidate in {"in service": SERVICE, **WAYS}.items():
        print(f"{name:<30} {sum(trial.failed for trial in play(candidate, worlds)) / num:.4f}", flush=True)


if __name__ == "__main__":
    main()
