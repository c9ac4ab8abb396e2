"""The whole wheel on the built-in tasks beside CartPole: is a change noticed, and does a new policy cure it?

    python -m experiments.tasks                      # three runs of each task
    python -m experiments.tasks --quick              # one run of each
    python -m experiments.tasks --only pendulum      # one task; the file keeps the others' rows

Prints a table, writes results/tasks.json, and exits with 1 when a row falls short.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.report import RESULTS, report, write
from experiments.wheel import row, turn_once

LIMITS_S = {"pendulum": 360.0, "lunarlander": 900.0}
"""Seconds that a run may take on 2 cores, by task."""
TOLD = ("seed", "code", "wall_s", "production", "detected_after_episodes", "seconds")


def rows(task: str, runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what is asked of a task's runs, a row a question."""
    found = [
        row("noticed", "the change was noticed", runs, lambda r: r["detected_after_episodes"],
            lambda v: v is not None),
        row("cured", "production is good again", runs, lambda r: [r["code"]], lambda v: v == [0]),
        row("before", "return before the change", runs, lambda r: r["production"]["before"],
            lambda v: v is not None),
        row("after", "return after it, on the old policy", runs, lambda r: r["production"]["after_shift"],
            lambda v: v is not None),
        row("new", "return after it, on the new policy", runs, lambda r: r["production"]["recovered"],
            lambda v: v is not None),
        row("whole", "0 request errors, every acknowledged episode stored", runs,
            lambda r: [r["requests"]["errors"], r["episodes"]["acknowledged"] - r["episodes"]["stored"]],
            lambda v: v == [0, 0]),
        row("seconds", f"at most {LIMITS_S[task]:.0f} s", runs, lambda r: r["wall_s"],
            lambda v: v <= LIMITS_S[task]),
    ]  # fmt: skip
    return [{**line, "id": f"{task}: {line['id']}"} for line in found]


def others(only: str | None) -> list[dict[str, Any]]:
    """Return the rows of results/tasks.json that are about other tasks than the one that was run."""
    path = RESULTS / "tasks.json"
    found = json.loads(path.read_text())["results"] if only and path.exists() else []
    return [line for line in found if not line["id"].startswith(f"{only}:")]


def main() -> None:
    """Run, print, write, and exit with 1 when a row falls short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one run of each task")
    parser.add_argument("--only", choices=LIMITS_S, help="only this task")
    parser.add_argument("--runs", type=int, default=3, help="runs of each task")
    parser.add_argument("--keep", type=Path, help="directory in which the runs are kept")
    arguments = parser.parse_args()
    began, results = time.monotonic(), []
    for task in [arguments.only] if arguments.only else LIMITS_S:
        runs = []
        for number in range(1 if arguments.quick else arguments.runs):
            seed, keep = secrets.randbelow(2**31 - 1) + 1, arguments.keep and arguments.keep / task
            run = turn_once(number, seed, drift=True, keep=keep, task=task, limit_s=4 * LIMITS_S[task])
            print(json.dumps({"task": task, **{name: run[name] for name in TOLD}}), flush=True)
            runs.append(run)
        results += rows(task, runs)
    for line in results:
        print(f"{line['value']} of {line['runs']}  {line['id']}: {line['case']}: {line['values']}")
    if not arguments.quick:
        kept = [*others(arguments.only), *results]
        kept.sort(key=lambda line: list(LIMITS_S).index(line["id"].partition(":")[0]))
        write(report("tasks", began, kept))
    sys.exit(not all(line["passed"] for line in results))


if __name__ == "__main__":
    main()
