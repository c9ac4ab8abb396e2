"""A2: parameters from noisy production: how often does the interval hold the truth, how far off is the estimate?

    python -m experiments.calibration             # 300 worlds by transitions, 100 by whole episodes, 60 a fault
    python -m experiments.calibration --quick     # some of each, in about a minute
    python -m experiments.calibration --only "whole episodes"     # these rows alone, and nothing is written

Worlds, noise and seeds are fresh in every run (`--seed` repeats one). By transitions: CartPole with process and sensor
noise of random strength, half of the worlds in gusts, which the simulator doesn't know. By whole episodes: CartPole in
gusts whose simulator shows no state. Then changes that parameters make and changes that none makes, told from each
other. Prints a table, writes results/calibration.json and exits with 1 when a row falls short.
`python -m experiments.calibration_tasks` is about other tasks.
"""

from __future__ import annotations

import argparse
import dataclasses
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binom

from experiments.gusty import GUSTY, policy
from experiments.noisy_pole import World, produce
from experiments.report import share, tell
from flywheel.analyze import from_episodes
from flywheel.analyze.calibrate import calibrate
from flywheel.config import AnalyzeConfig
from flywheel.records import Calibration
from flywheel.simulate import play
from flywheel.task import Task
from flywheel.tasks.cartpole import cartpole
from flywheel.testing import SHORT_POLE

EPISODES = 50
"""Episodes of one fit to a world drawn at random, as A2 has it."""
CONFIG = AnalyzeConfig(episodes=EPISODES)
CHANGED = AnalyzeConfig()
"""Of a fit to a change, which reads as many episodes from before it."""
GUST = 0.65
"""Deviation of the wind, as in experiments.gusty."""
SPANS = {"gravity": (6.0, 20.0), "length": (0.3, 1.5), "force_mag": (7.0, 15.0)}
"""Ranges of the worlds that are drawn, evenly in logs."""
STRENGTHS = (0.5, 2.0)
"""Factors on the noise, drawn alike."""


def only(task: Task, names: Sequence[str]) -> Task:
    """Return a task with some of its parameters."""
    some = tuple(p for p in task.parameters if p.name in names)
    return dataclasses.replace(task, parameters=some, edge_cases=(), drift={})


POLE = only(cartpole, list(SPANS))
GUSTS = only(GUSTY, list(SPANS))


@dataclass(frozen=True, slots=True)
class Try:
    """One world, what was made of its episodes, and whether it had gusts."""

    world: Mapping[str, float]
    found: Calibration
    gusty: bool

    def told(self) -> list[str]:
        """Return the parameters that were said to be identified."""
        return [name for name in self.world if name not in self.found.not_identified]

    def inside(self) -> list[bool]:
        """Say of each of them whether its interval holds the truth."""
        pairs = [(self.found.intervals[name], self.world[name]) for name in self.told()]
        return [low <= true <= high for (low, high), true in pairs]

    def errors(self) -> list[float]:
        """Return the relative error of each of them."""
        return [abs(self.found.values[name] / self.world[name] - 1.0) for name in self.told()]


def drawn(spans: Mapping[str, tuple[float, float]], rng: np.random.Generator) -> dict[str, float]:
    """Return parameters drawn evenly in logs."""
    return {name: float(np.exp(rng.uniform(*np.log(span)))) for name, span in spans.items()}


def by_transitions(number: int, rng: np.random.Generator) -> Try:
    """Fit transitions of a world drawn at random; every second one has gusts."""
    world, gusty = drawn(SPANS, rng), bool(number % 2)
    seen, shaken = (np.exp(rng.uniform(*np.log(STRENGTHS), 4)) for _ in range(2))
    plain = World(parameters={})
    noisy = World(
        parameters=world,
        sensor=tuple(seen * plain.sensor),
        process=tuple(shaken * plain.process),
        gust=GUST * gusty,
    )
    found = calibrate(POLE, produce(noisy, EPISODES, rng), CONFIG)
    assert found is not None
    return Try(world, found, gusty)


def by_episodes(number: int, rng: np.random.Generator) -> Try:
    """Fit whole episodes of a gusty world within the middle of the ranges."""
    spans = {p.name: tuple(np.exp(np.log([p.low, p.high]) @ [[0.8, 0.2], [0.2, 0.8]])) for p in GUSTS.parameters}
    world = drawn(spans, rng)
    seeds = rng.integers(2**31, size=EPISODES).tolist()
    served = policy(SHORT_POLE)
    episodes = play(GUSTS, served, seeds=seeds, parameters=[world] * EPISODES, draw_keys=seeds)
    found = from_episodes.calibrate(GUSTS, served, episodes, CONFIG, int(rng.integers(2**31)))
    assert found is not None
    return Try(world, found, True)


def changed(gust: float, rng: np.random.Generator, **change: Any) -> float:
    """Return how much of a change all of CartPole's parameters explain, with episodes from before it."""
    before = World(parameters={}, gust=gust)
    since = dataclasses.replace(before, **change)
    known, shown = (produce(world, CHANGED.episodes, rng) for world in (before, since))
    found = calibrate(cartpole, shown, CHANGED, before=known)
    assert found is not None
    return found.explained


def truth(case: str, tries: Sequence[Try], seed: int) -> list[dict[str, Any]]:
    """Return the rows on intervals and errors; bounds are over tries, whose parameters are not independent."""
    some = [t for t in tries if t.told()]
    shares = np.array([np.mean(t.inside()) for t in some])
    value = float(np.mean([hit for t in some for hit in t.inside()]))
    se = float(shares.std(ddof=1) / len(shares) ** 0.5)
    inside = {
        "id": "A2", "case": f"{case}: true parameter inside the 95 % interval", "value": round(value, 4),
        "interval": [round(value - 1.96 * se, 4), round(value + 1.96 * se, 4)], "goal": "0.9 to 0.98",
        "passed": bool(value - 1.645 * se >= 0.9 and value + 1.645 * se <= 0.98), "runs": len(tries), "seed": seed,
    }  # fmt: skip
    names = list(tries[0].world)
    rows = [inside, middle(f"{case}: relative error", [float(np.median(t.errors())) for t in some], 0.05, seed)]
    for name in names:
        errors = [t.errors()[t.told().index(name)] for t in some if name in t.told()]
        rows.append(middle(f"{case}: relative error of {name}, where identified", errors, None, seed))
    return rows


def middle(case: str, errors: Sequence[float], goal: float | None, seed: int) -> dict[str, Any]:
    """Return a row on a median, with the interval that order statistics give."""
    ordered, n = np.sort(errors), len(errors)
    at = [min(max(int(binom.ppf(p, n, 0.5)), 0), n - 1) for p in (0.025, 0.975, 0.95)]
    low, high, bound = (float(ordered[i]) for i in at)
    return {
        "id": "A2", "case": f"{case}, median", "value": round(float(np.median(ordered)), 4),
        "interval": [round(low, 4), round(high, 4)], "goal": "for information" if goal is None else f"<= {goal:g}",
        "passed": goal is None or bound <= goal, "runs": n, "seed": seed,
    }  # fmt: skip


CHANGES: Mapping[str, tuple[bool, float, Callable[[np.random.Generator], dict[str, Any]]]] = {
    "wires of the two actions swapped": (False, 0.0, lambda rng: {"swapped": True}),
    "actions a step late": (False, 0.0, lambda rng: {"delayed": True}),
    "a steady wind": (False, 0.0, lambda rng: {"wind": float(rng.uniform(0.5, 1.5))}),
    "other length, gravity and force": (True, 0.0, lambda rng: {"parameters": drawn(SPANS, rng)}),
    "other length, gravity and force, in gusts": (True, GUST, lambda rng: {"parameters": drawn(SPANS, rng)}),
}
"""Name of a change: whether parameters make it, the gusts before and after, and what changes."""


def explaining(num: int, seed: int) -> list[dict[str, Any]]:
    """Return a row on each change."""
    rows = []
    for place, (name, (is_explained, gust, change)) in enumerate(CHANGES.items()):
        rng = np.random.default_rng([seed, 2, place])
        shares = np.array([changed(gust, rng, **change(rng)) for _ in range(num)])
        case = f"{name}: {'explained' if is_explained else 'not explained by these parameters'}"
        rows.append(share("A2", case, (shares >= CHANGED.explained) == is_explained, 0.95, False, seed))
        print(name, np.round(np.sort(shares), 3).tolist(), flush=True)
    return rows


KINDS: Mapping[str, Callable[[int, np.random.Generator], Try]] = {
    "transitions": by_transitions, "whole episodes": by_episodes,
}  # fmt: skip
"""What a fit reads, and one try of it."""


def main() -> None:
    """Run, print, write, and exit with 1 when a row falls short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the worlds, and a rough answer")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31), help="root of all that is drawn")
    parser.add_argument("--only", choices=[*KINDS, "changes"], help="these rows, and nothing is written")
    given = parser.parse_args()
    began, rows = time.monotonic(), []
    counts = (20, 8, 3) if given.quick else (300, 100, 60)
    for place, ((case, once), num) in enumerate(zip(KINDS.items(), counts[:2], strict=True)):
        if given.only not in (None, case):
            continue
        rng = np.random.default_rng([given.seed, place])
        tries = [once(number, rng) for number in range(num)]
        rows += truth(case, tries, given.seed)
        for kind in {t.gusty for t in tries} if len({t.gusty for t in tries}) > 1 else ():
            hits = np.array([hit for t in tries if t.gusty == kind for hit in t.inside()])
            rows.append(share("A2", f"{case}: inside, {'in gusts' if kind else 'without gusts'}", hits, None, False,
                              given.seed))  # fmt: skip
    if given.only in (None, "changes"):
        rows += explaining(counts[2], given.seed)
    tell("calibration", began, rows, is_kept=not (given.quick or given.only))


if __name__ == "__main__":
    main()
