"""What logged episodes say of another policy: exact where they must be, covered as promised, else silent.

    python -m experiments.off_policy             # some ten minutes
    python -m experiments.off_policy --quick     # a rough answer

DQ12    the same policy has the logged mean; 95 % intervals hold the truth in 93 to 97 %; below ESS 50 nothing is said

Logs are of the world of experiments/gusty.py with a short horizon: gusts, noisy sensors, a stochastic linear policy.
The target has other gains. Its true mean is that of many episodes of its own. Two rewards: 1 a step, in gusts that let
every fifth episode fail, and the angle's distance to its limit. Each repeat is a log of its own.

Prints a table, writes results/off_policy.json and exits with 1 when a row falls short.
"""

from __future__ import annotations

import argparse
import dataclasses
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from experiments import gusty
from experiments.report import share, tell
from flywheel.analyze.off_policy import LEAST, METHODS, Logged, estimate, evaluate
from flywheel.simulate import play
from flywheel.testing import GOOD

AT_ONCE = 20
"""Logs that are simulated together."""
TRUTH = 200_000
"""Episodes of the target's own that say what it is worth: their mean is 20 times as sure as an estimate."""
Numbers = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Case:
    """Whose episodes are logged, whose worth is asked for, and in which world; gains are shares of good ones."""

    name: str
    num: int
    horizon: int
    acts: float
    target: float
    gust: float
    is_shaped: bool


CASES = (
    Case("horizon 60 in gusts x1.3, reward by angle", 500, 60, 0.35, 0.30, 1.3, True),
    Case("horizon 150 in gusts x1.6, reward 1 a step", 500, 150, 0.28, 0.25, 1.6, False),
)
FAR = Case("a target far away", 300, 100, 0.3, 0.1, 1.5, False)


@dataclass(frozen=True)
class Played:
    """Episodes of N worlds, padded to T steps."""

    observations: Numbers
    actions: NDArray[np.int64]
    acted: Flags
    failed: Flags

    def rewards(self, is_shaped: bool) -> Numbers:
        """Return float64[N, T]: the angle's distance to its limit as a share of it, or 1 a step."""
        each = 1.0 - np.abs(self.observations[..., 2]) / 0.2095 if is_shaped else 1.0
        return np.where(self.acted, each, 0.0)


def played(num: int, horizon: int, gains: Numbers, gust: float, rng: np.random.Generator) -> Played:
    """Return so many episodes of a linear policy, whose log odds of pushing right are its gains times what it sees."""
    world, state = gusty.Gusty(num), np.zeros((num, 7))
    state[:, :4], state[:, 5] = rng.uniform(-0.05, 0.05, (num, 4)), rng.integers(2**53, size=num)
    world.values, world.state = {**gusty.NOMINAL, "gust": gust}, state
    observations, actions = np.zeros((num, horizon, 4)), np.zeros((num, horizon), np.int64)
    acted, alive = np.zeros((num, horizon), np.bool_), np.ones(num, np.bool_)
    seen = world.observe()
    for t in range(horizon):
        observations[:, t], acted[:, t] = seen, alive
        actions[:, t] = rng.random(num) < 1.0 / (1.0 + np.exp(-np.clip(seen @ gains, -50, 50)))
        seen, _, fell, _, _ = world.step(actions[:, t])
        alive &= ~fell
    return Played(observations, actions, acted, ~alive)


def gains_of(part: float) -> Numbers:
    """Return a share of a good policy's gains."""
    return part * np.array(GOOD)


def _logps(found: Played, gains: Numbers) -> Numbers:
    odds = found.observations @ gains
    return -np.logaddexp(0.0, np.where(found.actions == 1, -odds, odds))


def logged(case: Case, num: int, rng: np.random.Generator) -> Logged:
    """Return episodes of the policy that acts, with the target's ratios."""
    acts, target = gains_of(case.acts), gains_of(case.target)
    found = played(num, case.horizon, acts, case.gust, rng)
    ratios = np.where(found.acted, _logps(found, target) - _logps(found, acts), 0.0)
    rewards = found.rewards(case.is_shaped)
    return Logged(
        observations=found.observations, rewards=rewards, ratios=ratios, acted=found.acted, failed=found.failed
    )


def _part(whole: Logged, some: slice) -> Logged:
    return Logged(**{field.name: getattr(whole, field.name)[some] for field in dataclasses.fields(Logged)})


def logs(case: Case, num: int, rng: np.random.Generator) -> Iterator[Logged]:
    """Yield so many logs."""
    for begin in range(0, num, AT_ONCE):
        size = min(AT_ONCE, num - begin)
        whole = logged(case, size * case.num, rng)
        yield from (_part(whole, slice(i * case.num, (i + 1) * case.num)) for i in range(size))


def coverage(seed: int, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield how often each method's interval holds the truth."""
    for number, case in enumerate(CASES):
        rng, num = np.random.default_rng([seed, number]), 100 if quick else 3_000
        truth, fails = worth(case, TRUTH // 10 if quick else TRUTH, rng)
        held: dict[str, list[bool]] = {method: [] for method in (*METHODS, "failure rate")}
        effective = []
        for repeat, log in enumerate(logs(case, num, rng)):
            found = estimate(log, "target", 0, repeat, (0.0, float(case.horizon)))
            effective.append(found.effective)
            for each in found.returns:
                held[each.method].append(each.interval[0] <= truth <= each.interval[1])
            if found.failed is not None:
                held["failure rate"].append(found.failed.interval[0] <= fails <= found.failed.interval[1])
        place = f"{case.name}, {case.num} episodes that count as {np.median(effective):.0f}"
        for method in METHODS:
            yield within(f"{method}: the interval holds {truth:.4g} ({place})", np.array(held[method]), seed)
        case_text = f"the failure rate's interval holds {fails:.1%} ({place})"
        yield share("DQ12", case_text, np.array(held["failure rate"]), 0.93, False, seed)


def worth(case: Case, num: int, rng: np.random.Generator) -> tuple[float, float]:
    """Return the target's mean return and failure rate, by episodes of its own."""
    totals, failed = [], []
    for begin in range(0, num, 20_000):
        size = min(20_000, num - begin)
        found = played(size, case.horizon, gains_of(case.target), case.gust, rng)
        totals.append(found.rewards(case.is_shaped).sum(axis=1))
        failed.append(found.failed)
    return float(np.concatenate(totals).mean()), float(np.concatenate(failed).mean())


def within(case: str, held: Flags, seed: int) -> dict[str, Any]:
    """Return a row on a coverage that is to be 93 to 97 %: both one-sided 95 % bounds are on the right side."""
    row = share("DQ12", case, held, 0.93, False, seed)
    k, n = int(held.sum()), len(held)
    upper = float(beta.ppf(0.95, k + 1, n - k)) if k < n else 1.0
    return row | {"goal": "93 to 97 %", "passed": bool(row["passed"]) and upper <= 0.97}


def exact(seed: int, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield by how much the estimates of a policy on its own log, under another digest, miss the logged mean."""
    worst, num = 0.0, 3 if quick else 10
    for number in range(num):
        acts = gusty.policy(gains_of(0.2 + 0.02 * number))
        rng, size = np.random.default_rng([seed, 5, number]), 60
        starts = [(*rng.uniform(-0.05, 0.05, 4), 0.0, float(rng.integers(2**53)), 0.0) for _ in range(size)]
        keys = rng.integers(2**32, size=size).tolist()
        given = {"seeds": range(size), "parameters": [gusty.NOMINAL] * size, "draw_keys": keys, "states": starts}
        episodes = play(gusty.GUSTY, acts, **given)
        copy = gusty.policy(gains_of(0.2 + 0.02 * number))
        copy.digest = "a copy"
        found, mean = evaluate(episodes, copy, number), float(np.mean([episode.total for episode in episodes]))
        worst = max([worst, *(abs(each.value - mean) for each in found.returns)])
        assert len(found.returns) == len(METHODS)
    yield {
        "id": "DQ12", "case": "the same policy: largest distance of IS, WIS, PDIS, DR to the logged mean",
        "value": worst, "interval": None, "goal": "<= 0", "passed": worst == 0.0, "runs": num, "seed": seed,
    }  # fmt: skip


def refused(seed: int, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield how many of the logs whose weights leave fewer than 50 episodes are refused."""
    rng, found = np.random.default_rng([seed, 9]), list[bool]()
    for repeat, log in enumerate(logs(FAR, 40 if quick else 1_000, rng)):
        last = np.exp(log.ratios.sum(axis=1))
        if last.sum() ** 2 / np.square(last).sum() < LEAST:
            told = estimate(log, "far", 0, repeat)
            found.append(not told.returns and told.failed is None and bool(told.refusal))
    yield {
        "id": "DQ12", "case": "refused where the effective sample size is below 50", "value": sum(found) / len(found),
        "interval": None, "goal": ">= 1", "passed": all(found) and len(found) >= (10 if quick else 500),
        "runs": len(found), "seed": seed,
    }  # fmt: skip


def main() -> None:
    """Measure, print, write, and exit with 1 when a row falls short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer runs, and nothing is written")
    given, seed, began = parser.parse_args(), secrets.randbelow(2**31), time.monotonic()
    rows = []
    for row in (row for measure in (exact, refused, coverage) for row in measure(seed, given.quick)):
        print(f"{row['id']}  {row['value']}  {row['case']}", flush=True)
        rows.append(row)
    tell("off_policy", began, rows, is_kept=not given.quick)


if __name__ == "__main__":
    main()
