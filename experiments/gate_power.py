"""The gate: how often does it deploy what it should, and what it shouldn't? How much of the world does it see?

    python -m experiments.gate_power             # some minutes
    python -m experiments.gate_power --quick     # a rough answer

The truth is known. In DQ1, 2 and 4 a candidate fails each episode with a given probability, and the limit is 5 %.

DQ1  P(deploy) of a policy at the limit and above it, with a whole budget
DQ2  P(deploy) of good ones, and the simulations that the failure rate takes; those of the whole verdict, with every
     edge case; and, with batches of 10, how soon bad ones are refused
DQ4  a loop that tries 30 candidates at 5 %, or 100 at 8 %, and then 20 at 1 %, while production confirms nothing
DQ3  how often a candidate that is worse than the policy in service in one of five ways is refused for that
DQ5  whether verdicts try all pairs of settings, and whether a rare failure is found
DQ5b what becomes of a failure in production
REAL whether real verdicts of SafetyGate, on a simulator with that probability, say the same of the same simulations

Prints a table, writes results/gate_power.json and exits with 1 when a row falls short.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import secrets
import time
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from experiments import gate_coverage, gate_regression, gate_suite
from experiments.report import mean, share, tell
from flywheel.config import GateConfig
from flywheel.gate import SafetyGate
from flywheel.gate.hearing import look_after
from flywheel.gate.sequential import aim, log_evidence
from flywheel.gate.stress import PILOT, STRETCHES, cell_situations
from flywheel.records import Episode
from flywheel.task import Limits, Task
from flywheel.tasks.cartpole import cartpole
from flywheel.testing import load_linear

LIMIT = 0.05
CONFIG = GateConfig()
TENS = dataclasses.replace(CONFIG, num_sims=10, batch=10)
BLOCK = 2_000
"""Candidates that are simulated at once."""


class Coin(gymnasium.Env[NDArray[np.float32], int]):
    """An episode of one step, which fails with a probability."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (1,))
    action_space = gymnasium.spaces.Discrete(2)
    rate = 0.0

    def reset(self, **given: Any) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin."""
        super().reset(seed=given.get("seed"))
        return np.zeros(1, np.float32), {}

    def step(self, action: int) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """End, well or badly."""
        bad = bool(self.np_random.random() < Coin.rate)
        return np.zeros(1, np.float32), 1.0, bad, not bad, {}


def fell(episode: Episode) -> bool:
    """Say whether it ended badly."""
    return episode.end == "terminated"


COIN = Task(name="coin", env=Coin, failed=fell, limits=Limits(max_failure_rate=LIMIT, max_latency_s=60.0))
GATE = SafetyGate(COIN, GateConfig(workers=1))  # what Coin.rate is set to stays in this process


@dataclasses.dataclass(frozen=True)
class Outcomes:
    """What became of candidates."""

    passed: NDArray[np.bool_]
    settled: NDArray[np.int64]
    """Simulations after which the failure rate was answered."""
    simulated: NDArray[np.int64]
    """Simulations that were made: whole batches."""


@functools.cache
def looks_of(config: GateConfig) -> tuple[int, ...]:
    """Return after how many simulations the gate looks at them."""
    looks = [look_after(0, config)]
    while looks[-1] < config.max_sims:
        looks.append(look_after(looks[-1], config))
    return tuple(looks)


@functools.cache
def most_failed(num: int, error: float) -> NDArray[np.int64]:
    """Return with how many failures at most, after each simulation, a candidate passes; int[num], -1 for none."""
    k, n = np.arange(num + 1)[:, None], np.arange(1, num + 1)
    return np.asarray((log_evidence(k, n, LIMIT, "below") >= -np.log(error)).sum(axis=0) - 1)


@functools.cache
def least_failed(num: int, error: float) -> NDArray[np.int64]:
    """Return with how many failures at least, after each simulation, a candidate is refused; int[num]."""
    k, n = np.arange(num + 1)[:, None], np.arange(1, num + 1)
    return np.asarray((log_evidence(k, n, aim(LIMIT), "above") < -np.log(error)).sum(axis=0))


def decide(failed: NDArray[np.bool_], config: GateConfig, error: float) -> Outcomes:
    """Return what the gate makes of streams bool[R, max_sims] of failures, as `checks.failure_rate` between batches."""
    k = np.cumsum(failed, axis=1, dtype=np.int16)
    good = k <= most_failed(config.max_sims, error)
    bad = k >= least_failed(config.max_sims, config.error)
    looks = np.array(looks_of(config))
    passing = np.where(good.any(axis=1), good.argmax(axis=1) + 1, config.max_sims + 1)
    refusing = bad[:, looks - 1]
    refused = np.where(refusing.any(axis=1), looks[refusing.argmax(axis=1)], config.max_sims + 1)
    look = looks[np.minimum(np.searchsorted(looks, passing), len(looks) - 1)]  # where an answer is seen
    passed = (passing <= config.max_sims) & (look <= refused)
    simulated = np.where(passed, look, np.minimum(refused, config.max_sims))
    return Outcomes(passed, np.where(passed, passing, simulated), simulated)


def candidates(rate: float, num: int, rng: np.random.Generator, config: GateConfig, error: float) -> Outcomes:
    """Return what becomes of so many candidates that fail at a rate."""
    found = []
    for size in [BLOCK] * (num // BLOCK) + ([num % BLOCK] if num % BLOCK else []):
        failed = rng.random((size, config.max_sims), dtype=np.float32) < rate
        found.append(decide(failed, config, error))
    return Outcomes(*(np.concatenate([getattr(each, f.name) for each in found]) for f in dataclasses.fields(Outcomes)))


def one_candidate(seed: int, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield the rows of DQ1 and DQ2."""
    num, fresh = 4_000 if quick else 100_000, GATE.allowance(0)
    for rate, goal in ((0.05, 0.05), (0.06, 0.02), (0.08, 0.001)):
        found = candidates(rate, num, np.random.default_rng([seed, 1]), CONFIG, fresh)
        yield share("DQ1", f"P(deploy) at {rate:.0%}", found.passed, goal, True, seed)
    cells = len(cell_situations(cartpole, seed, "judge", cartpole.nominal))
    fixed = CONFIG.edge_trials * len(cartpole.edge_cases) + cells + CONFIG.search_sims
    rival = len(STRETCHES) * PILOT + cells + 2 * CONFIG.stress_sims  # at most
    for rate, least, most in ((0.01, 0.99, 150), (0.02, 0.95, 250)):
        found = candidates(rate, num // 2, np.random.default_rng([seed, 2]), CONFIG, fresh)
        yield share("DQ2", f"P(deploy) at {rate:.0%}", found.passed, least, False, seed)
        yield mean("DQ2", f"simulations for the failure rate at {rate:.0%}", found.settled, most, seed)
        case = f"simulations of CartPole's whole verdict at {rate:.0%}"
        yield mean("DQ2", f"{case}, the search's {CONFIG.search_sims} among them", found.simulated + fixed, None, seed)
        both = 2 * found.simulated + fixed + rival
        yield mean("DQ2", f"{case}, both policies', at most", both, None, seed)
    for rate, most in ((0.08, 90), (0.3, 20)):
        found = candidates(rate, num // 10, np.random.default_rng([seed, 3]), TENS, fresh)
        refused = found.simulated[~found.passed]
        yield mean("DQ2", f"simulations until {rate:.0%} is refused, batches of 10", refused, most, seed)


def whole_loop(seed: int, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield the rows of DQ4: bad candidates one after another, then good ones, on one budget that nobody fills."""
    num, rng = 100 if quick else 2_000, np.random.default_rng([seed, 4])
    for rate, num_bad, loops in ((0.05, 30, 10 * num), (0.08, 100, num)):
        bad = [candidates(rate, loops, rng, CONFIG, GATE.allowance(tries)).passed for tries in range(num_bad)]
        good = [candidates(0.01, num, rng, CONFIG, GATE.allowance(num_bad + i)) for i in range(20)]
        what = f"{num_bad} candidates at {rate:.0%}"
        yield share("DQ4", f"{what}: any is deployed", np.any(bad, axis=0), 0.1, True, seed)
        deployed = np.concatenate([each.passed for each in good])
        yield share("DQ4", f"{what}, then 20 at 1%: those are deployed", deployed, 0.9, False, seed)
    for tries in (0, 1, 5, 30, 100):
        found = candidates(0.01, num, rng, CONFIG, GATE.allowance(tries))
        case = f"simulations for the failure rate at 1% after {tries} candidates (error {GATE.allowance(tries):.2g})"
        yield mean("DQ4", case, found.settled, None, seed)


def real(seed: int, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield the row that ties these streams to real verdicts."""
    policy, same = load_linear(COIN, [1.0]), []
    for i in range(10 if quick else 100):
        Coin.rate, tries = (0.01, 0.02, 0.03, 0.05, 0.08)[i % 5], (0, 3)[i % 2]
        verdict = GATE.judge(policy, seed=seed + i, now=0.0, tries=tries)
        failed = np.zeros((1, CONFIG.max_sims), dtype=np.bool_)
        failed[0, : len(verdict.trials)] = [trial.failed for trial in verdict.trials]
        mine = decide(failed, CONFIG, GATE.allowance(tries))
        agrees = mine.passed[0] == (verdict.outcome == "pass") and mine.simulated[0] == len(verdict.trials)
        same.append(bool(agrees))
    value = sum(same) / len(same)
    yield {
        "id": "REAL", "case": "real verdicts say the same", "value": value, "interval": None, "goal": ">= 1",
        "passed": value == 1.0, "runs": len(same), "seed": seed,
    }  # fmt: skip


MEASURES = (one_candidate, whole_loop, real, gate_regression.rows, gate_coverage.rows, gate_suite.rows)


def main() -> None:
    """Measure, print, write, and exit with 1 when a row falls short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer candidates, and nothing is written")
    quick, seed, began = parser.parse_args().quick, secrets.randbelow(2**31), time.monotonic()
    rows = [row for measure in MEASURES for row in measure(seed, quick)]
    tell("gate_power", began, rows, is_kept=not quick)


if __name__ == "__main__":
    main()
