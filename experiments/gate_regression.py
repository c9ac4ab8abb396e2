"""DQ3: is a candidate refused that is worse than the policy in service? Part of `python -m experiments.gate_power`.

In the world `gusty` the policy in service fails in 2 % of its nominal episodes. Five ways of getting worse were fixed
beforehand, each as strong as it takes to fail in 5 % (`python -m experiments.gate_regression` counts both). A run is
the gate's own: up to 300 pairs of nominal worlds for `safety`, looked at after each third. What `stress` adds in up to
200 pairs of stressed worlds is told for information.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

from experiments.gusty import GUSTY, policy
from experiments.report import share
from flywheel.config import GateConfig
from flywheel.gate import checks
from flywheel.gate.hearing import SAFETY
from flywheel.gate.sequential import LOOKS
from flywheel.gate.stress import gauge, stress_situations
from flywheel.gate.trials import Alone, Situation, nominal_situations
from flywheel.policy import Policy
from flywheel.records import Check, Trial

CONFIG = GateConfig()
STRESSED = 8
"""One run in so many has stressed worlds, too."""
CREW = Alone(GUSTY, CONFIG.lockstep)
GAINS = np.array([3.0, 6.0, 60.0, 24.0])
SERVICE = policy(GAINS)
WAYS = {
    "softer in all": policy(0.39 * GAINS),
    "less damping": policy([1.0, 0.45, 1.0, 0.45] * GAINS),
    "leans to one side": policy(GAINS, bias=2.2),
    "acts at random now and then": policy(GAINS, exploration_rate=0.1),
    "loses its place": policy([0.37, 1.0, 1.0, 1.0] * GAINS),
}
EQUAL, SAME = "equal, with other draws", "an identical policy"
Ask = Callable[[Sequence[Trial], Sequence[Trial]], Check]


def play(candidate: Policy, worlds: Sequence[Situation]) -> list[Trial]:
    """Return a candidate's trials."""
    return list(CREW.play(candidate, worlds, 0.0).trials)


def is_refused(new: Sequence[Trial], old: Sequence[Trial], looks: Iterable[int], ask: Ask) -> bool:
    """Say whether a candidate is refused at any look, before it has passed at one."""
    answers = (ask(new[:num], old[:num]).passed for num in looks)
    return next((answer is False for answer in answers if answer is not None), False)


def one_run(seed: int) -> dict[str, list[bool]]:
    """Return of all ways, an equal and the same policy whether `safety` refused it; in some, whether `stress` did."""
    nominal = nominal_situations(seed, "judge", 0, CONFIG.compare_sims, GUSTY.nominal)
    refused: dict[str, list[bool]] = {name: [] for name in (*WAYS, EQUAL, SAME)}

    def ask_all(worlds: Sequence[Situation], looks: Iterable[int], ask: Ask) -> None:
        old = play(SERVICE, worlds)
        others = [dataclasses.replace(world, key=world.seed + 1) for world in worlds]
        for name, candidate in WAYS.items():
            refused[name].append(is_refused(play(candidate, worlds), old, looks, ask))
        refused[EQUAL].append(is_refused(play(SERVICE, others), old, looks, ask))
        refused[SAME].append(is_refused(old, old, looks, ask))

    thirds = [CONFIG.compare_sims * look // LOOKS for look in range(1, LOOKS + 1)]
    ask_all(
        nominal, thirds,
        lambda new, old: checks.safety(GUSTY, new, old, CONFIG.compare_sims, CONFIG.error, SAFETY * CONFIG.error),
    )  # fmt: skip
    if seed % STRESSED:
        return refused
    known = gauge(GUSTY, CREW, SERVICE, GUSTY.nominal, seed=seed, now=0.0)
    ask_all(
        stress_situations(GUSTY, seed, "judge", 0, CONFIG.stress_sims, GUSTY.nominal, known.stretch),
        range(CONFIG.num_sims, CONFIG.stress_sims + 1, CONFIG.batch),
        lambda new, old: checks.stress(
            GUSTY, new, old, known, CONFIG.stress_sims, (1.0 - SAFETY) * CONFIG.error
        ),
    )  # fmt: skip
    return refused


def same_policy(seed: int) -> bool:
    """Say whether `safety` refuses the policy in service itself."""
    old = play(SERVICE, nominal_situations(seed, "judge", 0, CONFIG.num_sims, GUSTY.nominal))
    return checks.safety(GUSTY, old, old, CONFIG.compare_sims, CONFIG.error, SAFETY * CONFIG.error).passed is False


def rows(seed: int, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield the rows of DQ3."""
    seeds = np.random.default_rng([seed, 3]).integers(2**31, size=20 if quick else 400).tolist()
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        found = list(pool.map(one_run, seeds, chunksize=5))
        same = list(pool.map(same_policy, (number + 1 for number in seeds), chunksize=5))
    refused = {name: np.array([each[name][0] for each in found]) for name in found[0]}
    for name in WAYS:
        yield share("DQ3", f"refused in at most 300 pairs: {name}", refused[name], 0.9, False, seed)
    worst = min(WAYS, key=lambda name: float(refused[name].mean()))
    yield share("DQ3", f"the worst of the five: {worst}", refused[worst], 0.9, False, seed)
    yield share("DQ3", f"refused: {SAME}", np.array([*refused[SAME], *same]), 0.01, True, seed)
    yield share("DQ3", f"refused: {EQUAL}", refused[EQUAL], 0.05, True, seed)
    stressed = [each for each in found if len(each[EQUAL]) > 1]
    for name in (*WAYS, EQUAL):
        case = f"refused in at most 200 stressed pairs: {name}"
        yield share("DQ3", case, np.array([each[name][1] for each in stressed]), None, False, seed)


def main() -> None:
    """Print in how many nominal episodes the policy in service fails, and each of the five."""
    seed, num = secrets.randbelow(2**31), 20_480
    worlds = nominal_situations(seed, "judge", 0, num, GUSTY.nominal)
    for name, candidate in {"in service": SERVICE, **WAYS}.items():
        print(f"{name:<30} {sum(trial.failed for trial in play(candidate, worlds)) / num:.4f}", flush=True)


if __name__ == "__main__":
    main()
