"""The rollback alarm of `observer_power` on many streams of outcomes at once: the product's arithmetic, vectorized.

An outcome is whether an episode failed; in CartPole a failed one's loss is 1 and any other's 0, so that the `loss`
monitor, which is held to the gate's 5 % at least, adds nothing that `failed` has not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.observer_worlds import BEFORE, PROMISED, THRESHOLDS, play
from experiments.report import share
from flywheel.observe.monitors.outcome import HEAD_START, WEIGHTS, FailureMonitor, shown, stakes

CLEAN = 0.017
BAD = (0.033, 0.085, 0.23)
"""Failure rates: of the good policy, and of bad ones."""
AFTER = 5_000
"""Episodes after a bad deployment that are counted."""
REACTION = 10
"""Episodes that begin between the alarm and the rollback: a second's, at the rate of the wheel's own traffic."""
MOST = 150_000
"""Episodes of a run at most; one without an alarm counts as so long, which is less than it is."""
Numbers = NDArray[np.float64]
Whole = NDArray[np.int64]
Flags = NDArray[np.bool_]
Rates = Callable[[int], Numbers]
"""t -> the probability that the next episode fails, float64[N]."""


class Alarms:
    """`FailureMonitor` for many streams at once, each held to a limit of its own."""

    def __init__(self, limits: Numbers, head_start: float = HEAD_START) -> None:
        self.limits = np.clip(limits, 1e-4, 0.999)
        self.stakes = np.array([stakes(limit) for limit in self.limits])
        self.evidence = np.full(self.stakes.shape, head_start * THRESHOLDS["failed"])

    def read(self, failed: Flags) -> Flags:
        """Let each stream read one outcome; say which ones alarm."""
        self.evidence = (1.0 + self.evidence) * (1.0 + self.stakes * (failed - self.limits)[:, None])
        return np.asarray(self.total >= THRESHOLDS["failed"])

    @property
    def total(self) -> Numbers:
        """The evidence of each stream."""
        return self.evidence @ (np.array(WEIGHTS) / sum(WEIGHTS))


class Cusum:
    """The oracle: Page's CUSUM of the log likelihood ratio, which knows both failure rates."""

    def __init__(self, num: int, clean: float, bad: float, height: float) -> None:
        self.gains = np.log((1.0 - bad) / (1.0 - clean)), np.log(bad / clean)
        self.sum, self.height = np.zeros(num), height

    def read(self, failed: Flags) -> Flags:
        """Let each stream read one outcome; say which ones alarm."""
        self.sum = np.maximum(self.sum, 0.0) + np.where(failed, self.gains[1], self.gains[0])
        return self.sum >= self.height

    @staticmethod
    def calibrated(num: int, clean: float, bad: float, run: float, rng: np.random.Generator) -> Cusum:
        """Return one with a mean run to a false alarm of `run` episodes.

        Between two times at zero a path is a cycle. The mean run to a height is the mean length of a cycle over the
        probability that one gets there.
        """
        probe, num_steps = Cusum(2_000, clean, bad, np.inf), 4_000
        top, tops = np.zeros(2_000), list[Numbers]()
        for _ in range(num_steps):
            probe.read(rng.random(2_000) < clean)
            over = probe.sum <= 0.0
            tops.append(top[over & (top > 0.0)])
            top = np.where(over, 0.0, np.maximum(top, probe.sum))
        peaks = np.sort(np.concatenate(tops))[::-1]
        return Cusum(num, clean, bad, float(peaks[max(int(2_000 * num_steps / run) - 1, 0)]))


def runs(detector: Alarms | Cusum, rates: Rates, rng: np.random.Generator, most: int = MOST) -> Whole:
    """Return the episodes that each stream has read at its first alarm."""
    num = len(rates(0))
    found, open_ = np.full(num, most), np.ones(num, np.bool_)
    for t in range(most):
        hit = detector.read(rng.random(num) < rates(t)) & open_
        found[hit], open_ = t + 1, open_ & ~hit
        if not open_.any():
            break
    return found


def delays_after(make: Callable[[], Alarms | Cusum], num: int, bad: float, rng: np.random.Generator) -> Whole:
    """Return delays after `BEFORE` clean episodes, of streams without an alarm until then."""
    detector = make()
    quiet = np.ones(num, np.bool_)
    for _ in range(BEFORE):
        quiet &= ~detector.read(rng.random(num) < CLEAN)
    return runs(detector, lambda _: np.full(num, bad), rng, 20_000)[quiet]


def limits_shown(num: int, episodes: int, rng: np.random.Generator) -> Numbers:
    """Return what releases are held to whose predecessors were seen for so many episodes."""
    failed = rng.binomial(episodes, CLEAN, num)
    return np.minimum(PROMISED, [shown(int(k), episodes) for k in failed])


def false_alarms(seed: int, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield the rows on the mean run to a false rollback alarm, in streams with known rates."""
    num, rng = 200 if quick else 800, np.random.default_rng([seed, 6])
    known = np.full(num, CLEAN)
    iid = runs(Alarms(known), lambda _: known, rng)
    yield at_least("DQ6", "iid: episodes to a false rollback alarm", iid, 10_000.0, seed)
    high, low = 1.5 * CLEAN, 0.5 * CLEAN
    switch = Switch(num, low, high, 200, rng)
    yield at_least(
        "DQ6",
        "failure rate switches between 0.5x and 1.5x",
        runs(Alarms(np.full(num, high)), switch, rng),
        10_000.0,
        seed,
    )
    learnt = runs(Alarms(limits_shown(num, 1_000, rng)), lambda _: known, rng)
    yield at_least("DQ6", "baseline from 1,000 episodes", learnt, 10_000.0, seed)


class Switch:
    """Failure rates that change between two values, by chance, every `sojourn` episodes."""

    def __init__(self, num: int, low: float, high: float, sojourn: int, rng: np.random.Generator) -> None:
        self._is_high, self._values = rng.random(num) < 0.5, (low, high)
        self._sojourn, self._rng = sojourn, rng

    def __call__(self, _: int) -> Numbers:
        """Return the rates of the next episodes."""
        self._is_high ^= self._rng.random(len(self._is_high)) < 1.0 / self._sojourn
        return np.where(self._is_high, self._values[1], self._values[0])


def against_oracle(seed: int, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield the rows on the rollback alarm's delay against that of an oracle with the same mean run."""
    num, rng = 400 if quick else 3_000, np.random.default_rng([seed, 7])
    known = np.full(num, CLEAN)
    for name, limits, goal in (
        ("known baseline", known, 1.3),
        ("baseline from 1,000 episodes", limits_shown(num, 1_000, rng), 1.7),
    ):
        few = limits[: min(num, 600)]
        rates = np.full(len(few), CLEAN)
        run = float(runs(Alarms(few), lambda _: rates, rng, 60_000).mean())  # noqa: B023 - called at once
        pairs = []
        for bad in BAD:
            ours = delays_after(lambda: Alarms(limits), num, bad, rng)  # noqa: B023 - called at once
            oracle = Cusum.calibrated(num, CLEAN, bad, run, rng)
            best = delays_after(lambda: oracle, num, bad, rng)  # noqa: B023 - called at once
            pairs.append((ours, best))
            both = f"{np.median(ours):.0f} / {np.median(best):.0f}"
            yield ratio(
                "DQ7",
                f"{name}: median delay / the oracle's at {bad:.1%} failures ({both})",
                [(ours, best)],
                None,
                rng,
                seed,
            )
        yield ratio("DQ7", f"{name}: median of the three ratios", pairs, goal, rng, seed)


def avoided(seed: int, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield the rows on excess failures that a rollback avoids after a bad deployment."""
    num, rng = 500 if quick else 4_000, np.random.default_rng([seed, 10])
    for seen in (20_000, 1_000):
        for bad, goal in zip(BAD, (0.9, 0.98, 0.995), strict=True):
            found = runs(Alarms(limits_shown(num, seen, rng)), lambda _: np.full(num, bad), rng, AFTER)  # noqa: B023
            saved = 1.0 - np.minimum(found + REACTION, AFTER) / AFTER
            case = f"share of excess failures avoided at {bad:.1%}, the policy before seen for {seen:,} episodes"
            yield at_least("DQ10", case, saved, goal if seen == 20_000 else None, seed, of=np.median)


def harmless(seed: int, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield rows, for information, on outcome alarms at all in 1,000 episodes after a change that harms little.

    They lead to no rollback where the world alarm came first; the policy does fail more than the one before has shown.
    """
    num, rng = 300 if quick else 2_000, np.random.default_rng([seed, 9])
    pool = 4_000 if quick else 20_000
    before, after = (
        np.array([e.failed for _ in range(pool // 1_000) for e in play(1_000, rng, **changed)])
        for changed in ({}, {"masspole": 0.3})
    )
    for seen in (1_000, 20_000):
        failed = rng.choice(before, (num, seen)).sum(axis=1)
        limits = np.minimum(PROMISED, [shown(int(k), seen) for k in failed])
        detector, alarmed, quiet = Alarms(limits), np.zeros(num, np.bool_), np.ones(num, np.bool_)
        for t in range(2 * BEFORE):
            hit = detector.read(rng.choice(before if t < BEFORE else after, num))
            quiet &= ~hit | (t >= BEFORE)
            alarmed |= hit
        case = (
            f"an outcome alarm at all after pole mass x3 ({before.mean():.1%} -> {after.mean():.1%} failures), "
            f"the policy before seen for {seen:,} episodes"
        )
        yield share("DQ8", case, alarmed[quiet], None, True, seed)


def same(seed: int, _: bool) -> Iterator[dict[str, Any]]:
    """Yield the row that ties these streams to the monitor itself: the same outcomes, read one by one."""
    rng = np.random.default_rng([seed, 1])
    limits = rng.uniform(0.005, 0.05, 20)
    failed = rng.random((3_000, 20)) < 1.5 * limits
    start = HEAD_START * THRESHOLDS["failed"]
    many, one = Alarms(limits), [FailureMonitor(float(limit), start) for limit in limits]
    agree = []
    for row in failed:
        many.read(row)
        agree.append([m.update(float(x), "") for m, x in zip(one, row, strict=True)])
    equal = np.allclose(many.total, agree[-1], rtol=1e-9)
    yield {
        "id": "REAL", "case": "the monitor itself has the same evidence after the same outcomes", "value": float(equal),
        "interval": None, "goal": ">= 1", "passed": bool(equal), "runs": failed.size, "seed": seed,
    }  # fmt: skip


def at_least(
    id_: str, case: str, values: NDArray[Any], goal: float | None, seed: int, of: Callable[..., Any] = np.mean
) -> dict[str, Any]:
    """Return a row on a mean or median, by bootstrap; it passes where its one-sided 95 % bound reaches the goal."""
    rng = np.random.default_rng(seed)
    again = [float(of(rng.choice(values, len(values)))) for _ in range(1_000)]
    low, bound, high = (float(v) for v in np.quantile(again, (0.025, 0.05, 0.975)))
    digits = 0 if values.max() > 10 else 4
    return {
        "id": id_, "case": case, "value": round(float(of(values)), digits),
        "interval": [round(low, digits), round(high, digits)],
        "goal": "for information" if goal is None else f">= {goal:g}", "passed": goal is None or bound >= goal,
        "runs": len(values), "seed": seed,
    }  # fmt: skip


def ratio(
    id_: str, case: str, pairs: list[tuple[Whole, Whole]], goal: float | None, rng: np.random.Generator, seed: int
) -> dict[str, Any]:
    """Return a row on the median, over pairs, of the ratio of two medians, with its bootstrap interval."""

    def of(given: list[tuple[Whole, Whole]]) -> float:
        return float(np.median([np.median(ours) / np.median(best) for ours, best in given]))

    again = [of([(rng.choice(a, len(a)), rng.choice(b, len(b))) for a, b in pairs]) for _ in range(500)]
    low, high, bound = (float(v) for v in np.quantile(again, (0.025, 0.975, 0.95)))
    return {
        "id": id_, "case": case, "value": round(of(pairs), 3), "interval": [round(low, 3), round(high, 3)],
        "goal": "for information" if goal is None else f"<= {goal:g}", "passed": goal is None or bound <= goal,
        "runs": sum(len(a) for a, _ in pairs), "seed": seed,
    }  # fmt: skip
