"""Is the gate still predictive: how often is it contradicted wrongly, and how soon rightly?

    python -m experiments.predictive             # some minutes
    python -m experiments.predictive --quick     # a rough answer

GP1     courses in which production is as the gate foretold, contradicted at any look: at most 5 %
GP2     production that fails in 8 % where the gate's trials have 2 %: contradicted within 500 episodes in 80 %

A course is one release: the gate's nominal trials, as many as a verdict beside a policy in service plays, and 2,000
episodes of production, with a look after each. Outcomes are 500 steps, or fewer where they fail. Quiet courses are of
policies at several failure rates, of ones at the tolerance, and of one whose failures come in runs (half and one and a
half times as many, changing every 200 episodes).

Prints a table, writes results/predictive.json and exits with 1 when a row falls short.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.report import measured, median, share
from flywheel.analyze.predictive import ERRORS, compare, failure_evidence
from flywheel.config import AnalyzeConfig
from flywheel.outcomes import Outcome
from flywheel.records import Trial, Verdict
from flywheel.tapes import NOMINAL

CONFIG = AnalyzeConfig()
TRIALS = 300
"""Nominal worlds of a verdict beside a policy in service: `gate.compare_sims`."""
EPISODES = 2000
SPAN = (0.0, 500.0)
Flags = NDArray[np.bool_]


def totals_of(failed: Flags, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return returns: 500, or somewhere below where it failed."""
    return np.where(failed, rng.uniform(10.0, 450.0, len(failed)), 500.0)


def verdict_of(failed: Flags, rng: np.random.Generator) -> Verdict:
    """Return a verdict whose nominal trials came out so."""
    trials = tuple(
        Trial(
            seed=i, parameters={}, scenario=NOMINAL, total=float(total), length=1, failed=bool(fell), margin=math.nan,
            episode="",
        )
        for i, (fell, total) in enumerate(zip(failed, totals_of(failed, rng), strict=True))
    )  # fmt: skip
    return Verdict(
        digest="policy", baseline=None, task="", config="", simulator="", outcome="pass", checks=(), trials=trials,
        seed=0, cost_s=0.0, judged_at=0.0, valid_until=0.0,
    )  # fmt: skip


def outcomes_of(failed: Flags, rng: np.random.Generator) -> list[Outcome]:
    """Return production's outcomes that came out so."""
    return [
        Outcome(
            started_at=float(i), id=str(i), digest="policy", end="terminated" if fell else "truncated",
            failed=bool(fell), total=float(total), num_steps=1, ended_at=float(i),
        )
        for i, (fell, total) in enumerate(zip(failed, totals_of(failed, rng), strict=True))
    ]  # fmt: skip


def contradicted(foretold: float, rates: NDArray[np.float64], rng: np.random.Generator) -> bool:
    """Say whether one course is ever contradicted; `rates` float64[N] are production's, episode by episode."""
    verdict = verdict_of(rng.random(TRIALS) < foretold, rng)
    seen = outcomes_of(rng.random(len(rates)) < rates, rng)
    found = compare(verdict, seen, gap=CONFIG.sim_gap, loss=CONFIG.sim_loss, span=SPAN)
    return found is not None and found.is_contradicted


def quiet(seed: int, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield how often quiet courses are contradicted."""
    num = 60 if quick else 700
    runs = np.where(np.arange(EPISODES) // 200 % 2 == 0, 0.5, 1.5)
    gap = CONFIG.sim_gap
    courses = {
        "0.2 % fail as foretold": (0.002, np.full(EPISODES, 0.002)),
        "2 % fail as foretold": (0.02, np.full(EPISODES, 0.02)),
        "5 % fail as foretold": (0.05, np.full(EPISODES, 0.05)),
        f"2 % foretold, {gap:.1%} more in production, which may be": (0.02, np.full(EPISODES, 0.02 + gap)),
        "2 % fail as foretold, in runs": (0.02, 0.02 * runs),
    }
    for number, (name, (foretold, rates)) in enumerate(courses.items()):
        rng = np.random.default_rng([seed, number])
        wrong = np.array([contradicted(foretold, rates, rng) for _ in range(num)])
        yield share("GP1", f"{name}: contradicted within {EPISODES:,} episodes", wrong, 0.05, True, seed)


def power(seed: int, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield how often, and after how many episodes, a wrong foretelling is contradicted."""
    num = 60 if quick else 1_500
    cases = ((0.02, 0.08, False, 0.8), (0.02, 0.08, True, 0.8), (0.02, 0.05, True, None), (0.005, 0.05, True, None))
    for number, (foretold, real, is_drawn, goal) in enumerate(cases):
        rng, found, after = np.random.default_rng([seed, 100 + number]), list[bool](), list[int]()
        for _ in range(num):
            num_failed = int(rng.binomial(TRIALS, foretold)) if is_drawn else round(TRIALS * foretold)
            settled = failure_evidence(rng.random(500) < real, num_failed, TRIALS, CONFIG.sim_gap) >= -math.log(
                ERRORS[0]
            )
            found.append(bool(settled.any()))
            after.append(int(settled.argmax()) + 1 if settled.any() else 500)
        what = f"a policy that fails in {foretold:.1%} has {TRIALS} trials" if is_drawn else f"{foretold:.0%} foretold"
        case = f"{what}, {real:.0%} fail in production"
        yield share("GP2", f"{case}: contradicted within 500 episodes", np.array(found), goal, False, seed)
        yield median("GP2", f"{case}: episodes until then", np.array(after), None, seed)


if __name__ == "__main__":
    measured("predictive", __doc__, quiet, power)
