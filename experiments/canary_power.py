"""Does the canary roll back what is worse, and promote what isn't; who answers meanwhile, and how soon is it back?

    python -m experiments.canary_power             # some twenty minutes
    python -m experiments.canary_power --quick     # a rough answer

DQ9     how many episodes the canary takes, and how often it is wrong, by simulated runs of its own arithmetic
S1, S2  who answers, and how soon a rollback holds, on a wheel that serves (experiments/serve_safety.py)

The champion fails in 1.9 % of all episodes. A run is one challenger on its whole way, 1 % -> 10 % -> 50 % -> full, with
a look after every outcome; it is rolled back, promoted, or kept out after 2,000 episodes of its own. With 64 clients
there are 64 episodes at once, failed ones are shorter, the share that is in force is the one that what was read so far
has led to, and outcomes are read in order of start. Episodes count from when they begin, read or not.

Prints a table, writes results/canary_power.json and exits with 1 when a row falls short.
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

from experiments.report import median, share, tell
from flywheel.config import DeployConfig
from flywheel.deploy import evidence
from flywheel.deploy.canary import STEEP, Canary, Ramp
from flywheel.outcomes import Outcome
from flywheel.records import End

CONFIG = DeployConfig()
CHAMPION = 0.019
FULL, SHORT = 500.0, (10.0, 200.0)
"""Steps of an episode that is mastered, and the least and the most of one that fails."""
KEPT = 1024
"""Episodes of a run that may be unread at once."""
ENDS = ("promoted", "rolled_back", "stopped", "timed_out")
Flags = NDArray[np.bool_]
Whole = NDArray[np.int64]
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Arms:
    """How often episodes of champion and challenger fail, and are lost."""

    failed: tuple[float, float]
    lost: tuple[float, float] = (0.0, 0.0)
    urgent: bool = False


@dataclass(frozen=True)
class Found:
    """How runs ended (an index of ENDS), and the episodes that had begun by then."""

    end: Whole
    num_challengers: Whole
    num_all: Whole

    def ended(self, how: str) -> Flags:
        """Say of each run whether it ended so."""
        return np.asarray(self.end == ENDS.index(how))


class Tests:
    """`canary.Ramp` for many runs at once: the same bets, the same rules."""

    def __init__(self, num: int, urgent: bool, config: DeployConfig) -> None:
        self.config = config
        self.margin, self.error = (
            (config.incident_margin, config.rollback_error) if urgent else (config.canary_margin, config.promote_error)
        )
        self.rung = np.full(num, len(config.ramp) - 1 if urgent else 0)
        self.worse = np.zeros((num, len(evidence.RATIOS)))
        self.good = np.zeros((num, len(evidence.GOOD)))
        self.lost = np.zeros((num, len(evidence.APART)))
        self.num = np.zeros((num, 2), np.int64)
        self.num_failed = np.zeros((num, 2), np.int64)
        self.end = np.full(num, -1)

    def read(self, at: Whole, mine: Flags, failed: Flags, lost: Flags, given: Numbers) -> None:
        """Let the runs `at` read one outcome each, and look; those that are over read nothing."""
        open_ = self.end[at] < 0
        at, mine, failed, lost, given = at[open_], mine[open_], failed[open_], lost[open_], given[open_]
        self.lost[at[lost]] += evidence.whose(mine[lost], given[lost], evidence.APART)
        known, fell = at[~lost], at[failed]
        num, num_failed = self.num[known], self.num_failed[known]
        given_known, mine_known = given[~lost], mine[~lost]
        self.good[known] += evidence.good(failed[~lost], mine_known, given_known, self.margin, num, num_failed)
        self.worse[fell] += evidence.whose(mine[failed], given[failed], evidence.RATIOS)
        self.num[known, mine_known.astype(np.int64)] += 1
        self.num_failed[fell, mine[failed].astype(np.int64)] += 1
        self._look(at)

    def _look(self, at: Whole) -> None:
        config, num, rung, last = self.config, self.num[at, 1], self.rung[at], len(self.config.ramp) - 1
        good, enough = evidence.total(self.good[at], evidence.GOOD), -np.log(self.error)
        worse = evidence.total(self.worse[at], evidence.WORSE) >= -np.log(config.rollback_error)
        uneven = ~worse & (evidence.total(self.lost[at], evidence.LOST) >= -np.log(config.lost_error))
        climbs = ~worse & ~uneven & (rung < last) & (num >= config.ramp_first)
        climbs &= (rung == 0) | (good >= enough * (rung / max(last, 1)) ** STEEP)
        rest = ~worse & ~uneven & ~climbs
        proven = rest & (rung == last) & (good >= enough) & (num >= config.ramp_first)
        late = rest & ~proven & (num >= config.canary_episodes)
        self.rung[at[climbs]] += 1
        for how, which in (("rolled_back", worse), ("stopped", uneven), ("promoted", proven), ("timed_out", late)):
            self.end[at[which]] = ENDS.index(how)


def one_client(arms: Arms, num: int, rng: np.random.Generator, config: DeployConfig) -> Found:
    """Return how runs end whose episodes are played one after another."""
    tests, steps = Tests(num, arms.urgent, config), np.zeros(num, np.int64)
    while len(at := np.flatnonzero(tests.end < 0)):
        steps[at] += 1
        given = np.array(config.ramp)[tests.rung[at]]
        tests.read(at, *_played(arms, given, rng), given)
    return Found(tests.end, tests.num[:, 1], steps)


def _played(arms: Arms, given: Numbers, rng: np.random.Generator) -> tuple[Flags, Flags, Flags]:
    """Return whose the next episodes are, which fail, and which of the others are lost."""
    mine = rng.random(len(given)) < given
    failed = rng.random(len(given)) < np.where(mine, arms.failed[1], arms.failed[0])
    if not any(arms.lost):
        return mine, failed, np.zeros(len(given), np.bool_)
    return mine, failed, ~failed & (rng.random(len(given)) < np.where(mine, arms.lost[1], arms.lost[0]))


def at_once(arms: Arms, num: int, rng: np.random.Generator, config: DeployConfig, clients: int = 64) -> Found:
    """Return how runs end in which so many clients play; an outcome waits for all that began before it."""
    tests, started = Tests(num, arms.urgent, config), np.zeros((num, 2), np.int64)
    free_at = rng.uniform(0.0, FULL, (num, clients))
    known_at, given = np.full((num, KEPT), np.inf), np.zeros((num, KEPT))
    mine, failed, lost = (np.zeros((num, KEPT), np.bool_) for _ in range(3))
    last, begun, read = np.zeros(num), np.zeros(num, np.int64), np.zeros(num, np.int64)
    while len(at := np.flatnonzero(tests.end < 0)):
        client = free_at[at].argmin(axis=1)
        now = free_at[at, client]
        due = np.arange(len(at))
        while len(due := due[(read[at[due]] < begun[at[due]])]):
            slot = read[at[due]] % KEPT
            due = due[known_at[at[due], slot] <= now[due]]
            here, slot = at[due], read[at[due]] % KEPT
            tests.read(here, mine[here, slot], failed[here, slot], lost[here, slot], given[here, slot])
            read[here] += 1
        slot = begun[at] % KEPT
        given[at, slot] = np.array(config.ramp)[tests.rung[at]]
        mine[at, slot], failed[at, slot], lost[at, slot] = _played(arms, given[at, slot], rng)
        over = now + np.where(failed[at, slot], rng.uniform(*SHORT, len(at)), FULL)
        free_at[at, client] = over
        last[at] = known_at[at, slot] = np.maximum(last[at], over)
        begun[at] += 1
        started[at, mine[at, slot].astype(np.int64)] += 1
        if (begun - read).max() >= KEPT:
            raise AssertionError(f"More than {KEPT} episodes are unread: raise KEPT.")
    return Found(tests.end, started[:, 1], started.sum(axis=1))


def decisions(seed: int, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield the rows that have a goal, and how long what isn't worse takes."""
    num = 300 if quick else 3_000
    for clients, play in (("1 client", one_client), ("64 clients", at_once)):
        rng = np.random.default_rng([seed, 64 if play is at_once else 1])
        many = dict.fromkeys((0.019, 0.01, 0.039, 0.04, 0.08), num) | {0.04: 4 * num}  # near its goal, and soon over
        found = {rate: play(Arms((CHAMPION, rate)), size, rng, CONFIG) for rate, size in many.items()}
        equal, better = found[0.019], found[0.01]
        yield share("DQ9", f"{clients}: an equal policy is rolled back", equal.ended("rolled_back"), 0.05, True, seed)
        for rate, most in ((0.04, 600), (0.08, 200)):
            case = f"{clients}: one at {rate:.0%} instead of 1.9% is rolled back within 2,000 of its episodes"
            yield share("DQ9", case, found[rate].ended("rolled_back"), 0.99, False, seed)
            its = np.where(found[rate].ended("rolled_back"), found[rate].num_challengers, CONFIG.canary_episodes)
            yield median("DQ9", f"{clients}: its episodes until then, at {rate:.0%}", its, most, seed)
        worse = found[0.039].ended("promoted")
        yield share("DQ9", f"{clients}: one that is worse by 2 points is promoted", worse, 0.05, True, seed)
        for name, runs in (("an equal one", equal), ("one at 1.0% instead of 1.9%", better)):
            done = runs.ended("promoted")
            yield share("DQ9", f"{clients}: {name} is promoted", done, None, False, seed)
            yield median("DQ9", f"{clients}: its episodes until then, {name}", runs.num_challengers[done], None, seed)
            yield median("DQ9", f"{clients}: all episodes until then, {name}", runs.num_all[done], None, seed)


def special(seed: int, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield the rows on an incident, and on lost episodes."""
    num, rng = 300 if quick else 2_000, np.random.default_rng([seed, 2])
    for clients, play in (("1 client", one_client), ("64 clients", at_once)):
        for champion, rate in ((0.9, CHAMPION), (CHAMPION, CHAMPION), (0.05, 0.15)):
            found = play(Arms((champion, rate), urgent=True), num, rng, CONFIG)
            case = f"{clients}, the champion is condemned and fails in {champion:.1%}: one at {rate:.1%}"
            is_worse = rate > champion + CONFIG.incident_margin - 1e-9  # .15 is less than .05 + .10 as a float
            goal = CONFIG.rollback_error if is_worse else None
            yield share("DQ9", f"{case} is promoted", found.ended("promoted"), goal, True, seed)
            yield median("DQ9", f"{case}: all episodes until the end", found.num_all, None, seed)
    even = one_client(Arms((CHAMPION, CHAMPION), (0.02, 0.02)), num, rng, CONFIG)
    case = "2% of both arms' episodes are lost"
    yield share("DQ9", f"{case}: the canary is stopped", even.ended("stopped"), CONFIG.lost_error, True, seed)
    uneven = one_client(Arms((CHAMPION, CHAMPION), (0.02, 0.1)), num, rng, CONFIG)
    case = "2% of the champion's and 10% of the challenger's are lost"
    yield share("DQ9", f"{case}: the canary is stopped", uneven.ended("stopped"), None, False, seed)
    yield median("DQ9", f"{case}: its episodes until then", uneven.num_challengers, None, seed)


def real(seed: int, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield the row that ties these runs to the canary itself: the same outcomes, heard one by one."""
    same, config = [], dataclasses.replace(CONFIG, settle_s=0.0, shadow_decisions=0)
    for number in range(5 if quick else 40):
        rate, rng = (0.019, 0.01, 0.04, 0.08, 0.039)[number % 5], np.random.default_rng([seed, 3, number])
        arms = Arms((CHAMPION, rate), (0.01, 0.01 if number % 2 else 0.05), urgent=number % 3 == 2)
        ramp, tests, at = Ramp(config), Tests(1, arms.urgent, config), np.zeros(1, np.int64)
        canary, agrees, now = ramp.begin("new", "old", 0.0, urgent=arms.urgent), True, 0.0
        while agrees and not canary.is_over:
            now += 1.0
            given = np.array(config.ramp)[tests.rung]
            mine, failed, lost = _played(arms, given, rng)
            tests.read(at, mine, failed, lost, given)
            canary = ramp.hear(canary, [_outcome(now, bool(mine[0]), bool(failed[0]), bool(lost[0]))], now)
            agrees = _agrees(canary, tests)
        same.append(agrees)
    yield {
        "id": "REAL", "case": "the canary itself ends the same way after the same outcome",
        "value": sum(same) / len(same), "interval": None, "goal": ">= 1", "passed": all(same), "runs": len(same),
        "seed": seed,
    }  # fmt: skip


def _outcome(now: float, is_challengers: bool, failed: bool, lost: bool) -> Outcome:
    end: End = "lost" if lost else "terminated" if failed else "truncated"
    digest = "new" if is_challengers else "old"
    return Outcome(
        started_at=now, id=f"{now:.0f}", digest=digest, end=end, failed=failed, total=0.0, num_steps=1, ended_at=now
    )


def _agrees(canary: Canary, tests: Tests) -> bool:
    """Say whether the canary stands where the run does."""
    if canary.is_over:
        return bool(tests.end[0] == ENDS.index(canary.state))
    return bool(tests.end[0] < 0 and tests.rung[0] == canary.rung)


def judged(_: int, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield the rows of S1."""
    from experiments import serve_safety  # it loads Ray

    yield from serve_safety.judged(quick)


def rollbacks(_: int, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield the rows of S2."""
    from experiments import serve_safety

    yield from serve_safety.rollbacks(quick)


MEASURES = {"DQ9": (decisions, special, real), "S1": (judged,), "S2": (rollbacks,)}


def main() -> None:
    """Measure, print, write, and exit with 1 when a row falls short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer runs, and nothing is written")
    parser.add_argument("--only", choices=sorted(MEASURES), help="only these rows, and nothing is written")
    given, seed, began = parser.parse_args(), secrets.randbelow(2**31), time.monotonic()
    measures = [m for id_, some in MEASURES.items() if given.only in (None, id_) for m in some]
    rows = []
    for row in (row for measure in measures for row in measure(seed, given.quick)):
        print(f"{row['id']}  {row['value']}  {row['case']}", flush=True)
        rows.append(row)
    tell("canary_power", began, rows, is_kept=not given.quick and not given.only)


if __name__ == "__main__":
    main()
