"""Before rewards arrive: do the intervals of what open episodes will come to hold what they came to?

    python -m experiments.early             # some minutes
    python -m experiments.early --quick     # a rough answer

E1      the 95 % interval of the mean return, at moments of production: held in at least 90 %
E2      the same of the failure rate

A moment has closed episodes of one policy and 64 others (16 in one case) that are open at a step each has come to; long
ones are open oftener. Worlds are those of experiments/gusty.py, 200 steps long; policies fail in 0.4 to 17 %. Rewards
are 1 a step, the angle's distance to its limit, or the latter with the last 20 of each open episode's not yet known.
What they came to is what the same worlds did afterwards. Every moment has closed and open episodes of its own.

Prints a table, writes results/early.json and exits with 1 when a row falls short.
"""

from __future__ import annotations

import argparse
import dataclasses
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments import gusty
from experiments.off_policy import Played, gains_of, played
from experiments.report import share, tell
from flywheel.analyze.early import estimate
from flywheel.records import Episode

HORIZON = 200
TASK = dataclasses.replace(gusty.GUSTY, margin=None)
"""Sensors see the margin's numbers as they are: a margin on top says nothing more, and takes a while."""


@dataclass(frozen=True)
class Case:
    """A policy (a share of good gains), its world, what is rewarded, and how many episodes there are."""

    name: str
    acts: float
    gust: float
    is_shaped: bool
    num_closed: int = 150
    num_open: int = 64
    num_late: int = 0


CASES = (
    Case("reward 1 a step", 0.3, 1.5, False),
    Case("reward by angle", 0.3, 1.5, True),
    Case("reward by angle, the last 20 late", 0.3, 1.5, True, num_late=20),
    Case("few fail, reward 1 a step", 0.6, 1.2, False),
    Case("hardly any fail, reward 1 a step", 1.0, 1.0, False),
    Case("40 closed and 16 open ones, reward by angle", 0.3, 1.5, True, num_closed=40, num_open=16),
)


def episodes_of(found: Played, is_shaped: bool) -> list[Episode]:
    """Return what was played as closed episodes."""
    rewards, episodes = found.rewards(is_shaped), []
    for i, (acted, failed) in enumerate(zip(found.acted, found.failed, strict=True)):
        num = int(acted.sum())
        seen = np.concatenate([found.observations[i, :num], found.observations[i, num - 1 : num]]).astype(np.float32)
        episodes.append(
            Episode(
                id=str(i), origin="production", task="", parameters={}, draw_key=0, digests=("policy",) * num,
                observations=seen, raw_actions=found.actions[i, :num], rewards=rewards[i, :num], logps=np.zeros(num),
                end="terminated" if failed else "truncated", failed=bool(failed),
            )
        )  # fmt: skip
    return episodes


def cut(episode: Episode, t: int, num_late: int) -> Episode:
    """Return an episode as it was after t steps, with the last rewards not known yet."""
    rewards = episode.rewards[:t].copy()
    if num_late:
        rewards[max(0, t - num_late) :] = np.nan
    return dataclasses.replace(
        episode, digests=episode.digests[:t], observations=episode.observations[: t + 1],
        raw_actions=episode.raw_actions[:t], rewards=rewards, logps=episode.logps[:t], end="lost", failed=False,
    )  # fmt: skip


def moments(case: Case, num: int, rng: np.random.Generator) -> Iterator[tuple[bool, bool]]:
    """Yield of each moment whether the intervals of return and failure rate hold what came."""
    for number in range(num):
        size = case.num_closed + 2 * case.num_open
        whole = episodes_of(played(size, HORIZON, gains_of(case.acts), case.gust, rng), case.is_shaped)
        closed, others = whole[: case.num_closed], whole[case.num_closed :]
        begun, came = opened(others, case, rng)
        found = estimate(TASK, closed, begun, float(number))
        assert found is not None
        total, failed = float(np.mean([e.total for e in came])), float(np.mean([e.failed for e in came]))
        (low, high), (least, most) = found.return_interval, found.failure_interval
        yield low - 1e-9 <= total <= high + 1e-9, least - 1e-9 <= failed <= most + 1e-9


def opened(others: Sequence[Episode], case: Case, rng: np.random.Generator) -> tuple[list[Episode], list[Episode]]:
    """Return episodes as far as they had come at some moment, and the whole ones; long ones are found oftener."""
    lengths = np.array([e.num_steps for e in others], dtype=float)
    chosen = rng.choice(len(others), size=case.num_open, replace=False, p=lengths / lengths.sum())
    came = [others[i] for i in chosen if others[i].num_steps > 1]
    return [cut(e, int(rng.integers(1, e.num_steps)), case.num_late) for e in came], came


def covered(seed: int, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield the rows."""
    for number, case in enumerate(CASES):
        rng = np.random.default_rng([seed, number])
        held = np.array(list(moments(case, 25 if quick else 300, rng)))
        about = f"{case.name}, {case.num_closed} closed and {case.num_open} open episodes"
        yield share("E1", f"the return's interval holds what came: {about}", held[:, 0], 0.9, False, seed)
        yield share("E2", f"the failure rate's interval holds what came: {about}", held[:, 1], 0.9, False, seed)


def main() -> None:
    """Measure, print, write, and exit with 1 when a row falls short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer runs, and nothing is written")
    given, seed, began = parser.parse_args(), secrets.randbelow(2**31), time.monotonic()
    rows = []
    for row in covered(seed, given.quick):
        print(f"{row['id']}  {row['value']}  {row['case']}", flush=True)
        rows.append(row)
    tell("early", began, rows, is_kept=not given.quick)


if __name__ == "__main__":
    main()
