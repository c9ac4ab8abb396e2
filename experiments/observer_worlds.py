"""Production for `observer_power`: whole episodes of CartPole in gusts, thousands at once, and the world alarm's delay.

The world is `gusty`'s `CLEAR`, with draws of a generator instead of hashed ones, which are faster. The policy draws its
actions: it is soft, and fails in 1.7 % of its episodes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.gusty import _LIMITS, CLEAR, NOMINAL, NUM_STEPS, Air, Gusty
from experiments.report import median, share
from flywheel.observe.arm import SHARES, budgeted
from flywheel.observe.monitors.outcome import HEAD_START, FailureMonitor, shown
from flywheel.observe.monitors.world import WorldMonitor
from flywheel.records import Episode

THRESHOLDS = budgeted(10_000.0, list(SHARES))
SOFT = (0.56, 2.6, 14.2, 6.1)
"""Gains of the policy: the odds of pushing right are the exponential of their product with the observation."""
PROMISED = 0.05
"""The gate's promise: failed episodes at most."""
STREAMS = 4
"""Streams of the harmless change for each monitor that has read clean episodes."""
BASELINE, BEFORE = 100, 1_000
"""Episodes that the monitors learn from by default, and those before the change."""
SHIFTS: dict[str, tuple[dict[str, float], int, int]] = {
    "length x2": ({"length": 1.0}, 3, 40),
    "force -20 %": ({"force_mag": 8.0}, 3, 40),
    "gravity +22 %": ({"gravity": 12.0}, 8, 100),
    "pole mass x3": ({"masspole": 0.3}, 8, 60),
    "gusts +9 %": ({"gust": 1.09}, 110, 600),
}
"""What changes, the delay that is allowed, and the changed episodes that are played at most."""


class Drawn(Gusty):
    """The same worlds; noise and wind come from a generator."""

    def __init__(self, num_worlds: int, air: Air, rng: np.random.Generator) -> None:
        super().__init__(num_worlds, air)
        self._rng = rng
        self.state[:, :4] = rng.uniform(-0.05, 0.05, (num_worlds, 4))

    def normals(self, row: int, num: int) -> NDArray[np.float64]:
        """Return normal draws, float64[N, num]."""
        return self._rng.normal(size=(self.num_envs, num))


def play(num: int, rng: np.random.Generator, **changed: float) -> list[Episode]:
    """Return episodes of the soft policy in clear air, where some parameters are changed."""
    worlds = Drawn(num, CLEAR, rng)
    worlds.values = {**NOMINAL, **changed}
    seen, acted = np.empty((NUM_STEPS + 1, num, 4), np.float32), np.empty((NUM_STEPS, num), np.int64)
    length, fell = np.full(num, NUM_STEPS), np.zeros(num, np.bool_)
    seen[0] = worlds.observe()
    for t in range(NUM_STEPS):
        acted[t] = rng.random(num) * (1.0 + np.exp(-np.clip(seen[t] @ np.array(SOFT), -50.0, 50.0))) < 1.0
        seen[t + 1] = worlds.step(acted[t])[0]
        new = (np.abs(worlds.state[:, [0, 2]]) > _LIMITS).any(axis=1) & ~fell
        length[new], fell = t + 1, fell | new
        worlds.state[fell, :5] = 0.0  # nobody looks at it any more
    return [_episode(seen[: n + 1, i], acted[:n, i], bool(fell[i])) for i, n in enumerate(length)]


def _episode(seen: NDArray[np.float32], acted: NDArray[np.int64], failed: bool) -> Episode:
    num = len(acted)
    return Episode(
        id="", origin="production", task="", parameters={}, draw_key=0, digests=("policy",), observations=seen.copy(),
        raw_actions=acted.copy(), rewards=np.ones(num), logps=np.zeros(num), failed=failed,
        end="terminated" if failed else "truncated",
    )  # fmt: skip


def delays(seed: int, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield the rows on the world alarm: its delay after each change, and how long there is none without one."""
    num, rng = 12 if quick else 120, np.random.default_rng([seed, 8])
    found: dict[str, list[int]] = {name: [] for name in SHIFTS}
    rolled_back: list[bool] = []
    num_false, num_clean = 0, 0
    for _ in range(num):
        monitor, outcomes, alarmed = WorldMonitor(BASELINE), _outcomes(rng), True
        while alarmed:  # a delay is counted where there was no alarm before
            monitor, outcomes = WorldMonitor(BASELINE), _outcomes(rng)
            clean = play(BEFORE, rng)
            alarmed = any(monitor.update("clean", episode) >= THRESHOLDS["world"] for episode in clean)
            num_false, num_clean = num_false + alarmed, num_clean + monitor.num_read
            for episode in clean:
                outcomes.update(float(episode.failed), "clean")
        for name, (changed, _, most) in SHIFTS.items():
            found[name].append(_delay(copy.deepcopy(monitor), play(most, rng, **changed)))
        rolled_back += [
            _is_rolled_back(copy.deepcopy(monitor), copy.deepcopy(outcomes), rng)
            for _ in range(STREAMS if outcomes.evidence < THRESHOLDS["failed"] else 0)
        ]
    for name, (_, goal, _) in SHIFTS.items():
        yield median("DQ8", f"episodes from the change to the world alarm: {name}", np.array(found[name]), goal, seed)
    yield between("DQ8", "episodes between false world alarms", num_clean, num_false, 10_000.0, seed)
    case = "rollback on pole mass x3: an outcome alarm within 1,000 episodes that no world alarm came before"
    yield share("DQ8", case, np.array(rolled_back), 0.01, True, seed)


def _outcomes(rng: np.random.Generator) -> FailureMonitor:
    """Return an outcome monitor that is held to what 1,000 clean episodes of the policy before have shown."""
    limit = shown(sum(episode.failed for episode in play(1_000, rng)), 1_000)
    return FailureMonitor(min(PROMISED, limit), HEAD_START * THRESHOLDS["failed"])


def _is_rolled_back(world: WorldMonitor, outcomes: FailureMonitor, rng: np.random.Generator) -> bool:
    """Say whether the outcome monitor alarms first: a world that changed is no reason to roll back (strategy.py)."""
    for _ in range(1_000 // 20):
        for episode in play(20, rng, masspole=0.3):
            if world.update("changed", episode) >= THRESHOLDS["world"]:
                return False
            if outcomes.update(float(episode.failed), "changed") >= THRESHOLDS["failed"]:
                return True
    return False


def _delay(monitor: WorldMonitor, changed: list[Episode]) -> int:
    """Return the changed episodes read at the alarm, one more than there are where none is raised."""
    for number, episode in enumerate(changed, start=1):
        if monitor.update("changed", episode) >= THRESHOLDS["world"]:
            return number
    return len(changed) + 1


def between(id_: str, case: str, num_episodes: int, num_alarms: int, goal: float, seed: int) -> dict[str, Any]:
    """Return a row on the mean number of episodes between alarms, counted over many: their rate is Poisson's."""
    from scipy.stats import chi2

    def limit(alarms: int, share: float) -> float:
        return float(2.0 * num_episodes / chi2.ppf(share, 2 * alarms)) if alarms else float("inf")

    low, bound = limit(num_alarms + 1, 0.975), limit(num_alarms + 1, 0.95)
    high = limit(num_alarms, 0.025)
    value = num_episodes / num_alarms if num_alarms else float(num_episodes)
    return {
        "id": id_, "case": case if num_alarms else f"{case} (none was raised)", "value": round(value),
        "interval": [round(low), round(high) if np.isfinite(high) else None], "goal": f">= {goal:g}",
        "passed": bound >= goal, "runs": num_episodes, "seed": seed,
    }  # fmt: skip
