"""Does the control group tell a bad release from a changed world, how soon, and how often is it wrong?

    python -m experiments.control_power             # some four minutes
    python -m experiments.control_power --quick     # a rough answer in half a minute

A run is one release: the policy before it failed in 1.7 % of 2,000 episodes as champion, and keeps a tenth of the new
ones. The rates are those of a CartPole whose gusts grow. Either the release is worse from its first episode on, or the
world is another from its 300th on; in half of the cases gusts come and go besides, for both at once, some 50 episodes
each. The observer's own monitor of outcomes reads the champion's episodes, with the limit that a thousand quiet ones
give, and raises the alarm. From then on `analyze.concurrent.blame` is asked again every 25 episodes (later every 2 %),
until it says whose doing it is, or 20,000 episodes are over. It is wrong where it ever blames the other one.

Prints a table, writes results/control_power.json and exits with 1 when a row falls short.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.report import measured, median, share
from flywheel.analyze.concurrent import Whose, blame
from flywheel.arms import Arms, Count
from flywheel.config import DeployConfig, ObserveConfig
from flywheel.observe.monitors.outcome import OutcomeMonitor

USUAL, FORMER = 0.017, 2_000
"""Failure rate of the policy before, and its episodes as champion."""
LIMIT = 0.0285
"""Upper end of the 95 % interval of a rate of 1.7 % in a thousand episodes: what the monitor takes for quiet."""
CHANGED_AT, MOST, SOON = 300, 20_000, 2_000
"""Episode from which on the world is another, the last one of a run, and so many after the alarm are soon."""
GOAL = 0.02
"""Share of alarms for which the other one may be blamed."""
CALM, GUSTY, GUST = 0.4, 1.6, 50
"""Factors on the failure rates between gusts and in them, and the mean number of episodes of either."""
THRESHOLD = 2.0 * ObserveConfig().false_alarm_episodes
SHARE = DeployConfig().control_share
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Case:
    """What happens in a run."""

    name: str
    truth: Whose
    """Whose doing it is; `unknown` where nothing happens."""
    champion: float
    control: float
    """Failure rates once it has happened."""
    is_gusty: bool = False


@dataclass(frozen=True)
class Found:
    """What was said of a run's alarm, and when."""

    whose: Whose
    num_until: int
    """Episodes of both arms between the alarm and the answer."""


def play(case: Case, rng: np.random.Generator) -> tuple[Flags, Flags]:
    """Return whose each episode of a release is (True: the control's), and which fail."""
    begin = 0 if case.truth == "policy" else CHANGED_AT
    happened = np.arange(MOST) >= begin
    mine = rng.random(MOST) < SHARE
    rates = np.where(happened, np.where(mine, case.control, case.champion), USUAL)
    if case.is_gusty:
        turns = np.cumsum(rng.random(MOST) < 1.0 / GUST) + rng.integers(2)
        rates = rates * np.where(turns % 2 == 0, CALM, GUSTY)
    return mine, rng.random(MOST) < rates


def alarm(mine: Flags, failed: Flags, threshold: float = THRESHOLD) -> tuple[int, int] | None:
    """Return the episode that raises the alarm, and the one where its evidence begins; None where none does."""
    monitor = OutcomeMonitor(LIMIT)
    for i in np.flatnonzero(~mine):
        if monitor.update(float(failed[i]), str(i)) >= threshold:
            return int(i), int(monitor.onset)
    return None


def ask(mine: Flags, failed: Flags, raised: tuple[int, int], rng: np.random.Generator) -> Found:
    """Return what is said first of whose doing an alarm is, asked again and again."""
    at, onset = raised
    former = int(rng.binomial(FORMER, USUAL))
    sums = np.zeros((2, 2, MOST + 1), np.int64)  # episodes and failures, of champion and control
    for arm in (0, 1):
        its = mine == bool(arm)
        sums[0, arm, 1:], sums[1, arm, 1:] = np.cumsum(its), np.cumsum(its & failed)

    def count(arm: int, begin: int, end: int) -> Count:
        num, num_failed = (int(row[arm, end] - row[arm, begin]) for row in sums)
        return Count(num=num, num_failed=num_failed, loss=float(num_failed))

    num = at + 1
    while num <= MOST:
        found = blame(
            Arms(
                champion="new", control="old", share=SHARE, counted_from=0.0, since=float(onset),
                former=Count(num=FORMER, num_failed=former, loss=float(former)),
                before=(count(0, 0, onset), count(1, 0, onset)),
                after=(count(0, onset, num), count(1, onset, num)),
            )
        )  # fmt: skip
        if found.whose != "unknown":
            return Found(found.whose, num - at - 1)
        num += max(25, num // 50)
    return Found("unknown", MOST - at)


def cases() -> Iterator[Case]:
    """Yield what is tried."""
    for is_gusty in (False, True):
        where = ", gusts come and go" if is_gusty else ""
        for rate in (0.085, 0.23):
            yield Case(f"the release fails in {rate:.1%}{where}", "policy", rate, USUAL, is_gusty)
            yield Case(f"the world makes both fail in {rate:.1%}{where}", "world", rate, rate, is_gusty)
    yield Case("the world makes the release fail in 8.5%, the one before in 23.0%", "world", 0.085, 0.23)
    yield Case("the release fails in 3.3%", "policy", 0.033, USUAL)
    yield Case("the world makes both fail in 3.3%", "world", 0.033, 0.033)


def told_apart(seed: int, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield how many alarms are decided, how soon, and how many wrongly."""
    num = 150 if quick else 1500
    for number, case in enumerate(cases()):
        rng, found = np.random.default_rng([seed, number]), list[Found]()
        for _ in range(num):
            mine, failed = play(case, rng)
            if (raised := alarm(mine, failed)) is not None:
                found.append(ask(mine, failed, raised, rng))
        if not found:
            continue
        wrong = np.array([each.whose not in (case.truth, "unknown") for each in found])
        right = np.array([each.whose == case.truth for each in found])
        # 150 runs can't show 2 %
        yield share("CG", f"{case.name}: the other one is blamed", wrong, None if quick else GOAL, True, seed)
        until = np.array([each.num_until for each in found])
        for last, when in ((SOON, f"within {SOON:,} episodes of the alarm"), (MOST, "at all")):
            yield share("CG", f"{case.name}: it is told {when}", right & (until <= last), None, False, seed)
        if (until := until[right]).size:
            yield median("CG", f"{case.name}: episodes from the alarm until then", until, None, seed)


def false_alarms(seed: int, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield what is said of alarms that nothing is behind, by a monitor that raises many of them."""
    num, rng, case = (100 if quick else 600), np.random.default_rng([seed, 99]), Case("", "unknown", USUAL, USUAL)
    found = []
    for _ in range(num):
        mine, failed = play(case, rng)
        if (raised := alarm(mine, failed, threshold=200.0)) is not None:
            found.append(ask(mine, failed, raised, rng))
    for whose in ("policy", "world"):
        said = np.array([each.whose == whose for each in found])
        yield share("CG", f"a false alarm: the {whose} is blamed", said, None, True, seed)


if __name__ == "__main__":
    measured("control_power", __doc__, told_apart, false_alarms)
