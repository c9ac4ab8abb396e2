"""A soak: does any process that serves grow, and is any request refused, while it answers for a long time?

    python -m experiments.soak                        # 15 minutes of load, warm-up included
    python -m experiments.soak --decisions 1000000    # until so many decisions are made
    python -m experiments.soak --quick                # one minute, and nothing is written

A wheel serves a policy that its gate let pass; 8 connections play episodes and end them (experiments/serve_callers.py).
Resident memory of the replica, the observer, the store and the registry is read each two seconds, and, for information,
that of a bare Ray actor that nobody calls. The first quarter is warm-up. The rest is cut into blocks, for
neighbouring readings say the same; the slope is the median of the slopes of all pairs of block means (Theil 1950, Sen
1968), with Sen's 95 % interval. A row passes where that contains 0 or lies below it.

Prints a table, writes results/soak.json and exits with 1 when a row falls short.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
from scipy.stats import theilslopes

from experiments.bench_gate import INFO
from experiments.report import tell
from experiments.serve_callers import calling
from experiments.serve_safety import wheel
from flywheel.config import Config, DeployConfig

LOOK_S = 2.0
WARM_UP = 0.25
"""Share of the load's time whose readings count for nothing."""
BLOCKS = 15
BARE = "a bare Ray actor that nobody calls"
NAMES = {"PolicyReplica": "replica", "ObserverActor": "observer", "StoreActor": "store", "RegistryActor": "registry"}
"""What is part of a process's title, and what it is."""
Readings = dict[str, list[tuple[float, float]]]
"""By process, seconds and MiB of each look."""


def processes() -> dict[str, psutil.Process]:
    """Return what serves here, by name; raise RuntimeError where one of them is missing."""
    found: dict[str, psutil.Process] = {}
    for process in psutil.Process().children(recursive=True):
        title = next(iter(process.cmdline()), "")
        found |= {name: process for part, name in NAMES.items() if title.startswith("ray::") and part in title}
    if missing := set(NAMES.values()) - found.keys():
        raise RuntimeError(f"There is no process of {', '.join(sorted(missing))}.")
    return found


class Bare:
    """What Ray keeps by itself."""

    def pid(self) -> int:
        """Return the process's id."""
        return os.getpid()


def slope(looks: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """Return the slope in MiB an hour, and both ends of its 95 % interval."""
    kept = np.array(looks)
    means = np.array([block.mean(axis=0) for block in np.array_split(kept, BLOCKS)])
    found, _, low, high = theilslopes(means[:, 1], means[:, 0] / 3600.0, alpha=0.95)
    return float(found), float(low), float(high)


def memory(name: str, looks: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Return the row of a process."""
    kept = [look for look in looks if look[0] >= WARM_UP * looks[-1][0]]
    value, low, high = slope(kept)
    first, last = kept[0][1], kept[-1][1]
    return {
        "id": "SOAK", "case": f"{name}: MiB an hour ({first:.2f} MiB after warm-up, {last:.2f} at the end)",
        "value": round(value, 3), "interval": [round(low, 3), round(high, 3)],
        "goal": INFO if name == BARE else "the interval contains 0", "passed": name == BARE or low <= 0.0,
        "runs": len(kept), "seed": 7,
    }  # fmt: skip


def soaked(seconds: float, decisions: int) -> Iterator[dict[str, Any]]:
    """Yield all rows, after so many seconds or, where they are given, decisions."""
    looks: Readings = defaultdict(list)
    with (
        tempfile.TemporaryDirectory() as directory,
        wheel(Path(directory) / "run", Config(deploy=DeployConfig(port=0, quota=1e6))) as made,
    ):
        bare = ray.remote(num_cpus=0)(Bare).remote()
        most = {"most": decisions, "seconds": 24 * 3600.0} if decisions else {"seconds": seconds}
        with calling(Path(directory), **made.calls(8, **most)) as callers:
            watched, began = processes() | {BARE: psutil.Process(ray.get(bare.pid.remote()))}, time.monotonic()
            while not callers.pause(LOOK_S):
                for name, process in watched.items():
                    looks[name].append((time.monotonic() - began, process.memory_info().rss / 2**20))
            called, answers = callers.called()
        took = float(np.ptp(answers.at))
        dropped = sum(status["dropped"] for status in made.status())
    for name, found in looks.items():
        yield memory(name, found)
    failed = sum(called.otherwise.values())
    for case, value in (
        (f"failed requests, in {called.num_answers:,} decisions and {called.num_ended:,} episodes", failed),
        ("episodes whose end was not acknowledged", called.num_open),
        ("steps that were not logged", dropped),
    ):
        yield {
            "id": "SOAK", "case": case, "value": value, "interval": None, "goal": "<= 0", "passed": value == 0,
            "runs": called.num_answers, "seed": 7,
        }  # fmt: skip
    yield {
        "id": "SOAK", "case": "decisions a second, 8 connections", "value": round(called.num_answers / took, 1),
        "interval": None, "goal": INFO, "passed": True, "runs": called.num_answers, "seed": 7,
    }  # fmt: skip


def main() -> None:
    """Measure, print, write, and exit with 1 when a row falls short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one minute, and nothing is written")
    parser.add_argument("--minutes", type=float, default=15.0, help="how long there is load, warm-up included")
    parser.add_argument("--decisions", type=int, default=0, help="how many decisions are made, instead of minutes")
    given, began = parser.parse_args(), time.monotonic()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    rows = list(soaked(60.0 if given.quick else 60.0 * given.minutes, 0 if given.quick else given.decisions))
    tell("soak", began, rows, is_kept=not given.quick)


if __name__ == "__main__":
    main()
