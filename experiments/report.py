"""The file that every experiment leaves behind, where, and its rows of probabilities and means."""

from __future__ import annotations

import argparse
import json
import os
import platform
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.stats import beta, binom

RESULTS = Path(__file__).parent / "results"
Measure = Callable[[int, bool], Iterable[dict[str, Any]]]
"""From (a seed, whether it is --quick) to rows."""


def report(name: str, began: float, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what results/NAME.json says of an experiment that began at the monotonic time `began`."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    return {
        "experiment": name,
        "commit": commit,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "seconds": round(time.monotonic() - began, 1),
        "results": list(results),
    }


def write(found: dict[str, Any]) -> None:
    """Write results/NAME.json."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{found['experiment']}.json").write_text(json.dumps(found, indent=1) + "\n")


def tell(name: str, began: float, rows: Sequence[dict[str, Any]], *, is_kept: bool) -> NoReturn:
    """Print the rows as a table, write them where they are to be kept, and exit with 1 when one falls short."""
    table = Table("id", "case", "value", "95 %", "goal", "runs", "passed")
    for row in rows:
        table.add_row(*(str(row[name]) for name in ("id", "case", "value", "interval", "goal", "runs", "passed")))
    Console(width=140).print(table)
    if is_kept:
        write(report(name, began, rows))
    sys.exit(not all(row["passed"] for row in rows))


def measured(name: str, told: str | None, *measures: Measure, **parts: Measure) -> NoReturn:
    """Run the measures, each with (a fresh seed, --quick), print their rows as they come, and `tell` them.

    `parts` are measures that --only runs alone, by name.
    """
    parser = argparse.ArgumentParser(description=told, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer runs, and nothing is written")
    if parts:
        parser.add_argument("--only", choices=[*parts], default="", help="a part alone, and nothing is written")
    given, seed, began = parser.parse_args(), secrets.randbelow(2**31), time.monotonic()
    only = getattr(given, "only", "")
    asked = [*measures, *parts.values()] if not only else [parts[only]]
    rows = []
    for row in (row for measure in asked for row in measure(seed, given.quick)):
        print(f"{row['id']}  {row['value']}  {row['case']}", flush=True)
        rows.append(row)
    tell(name, began, rows, is_kept=not given.quick and not only)


def share(id_: str, case: str, hits: NDArray[np.bool_], goal: float | None, most: bool, seed: int) -> dict[str, Any]:
    """Return a row on a probability, which passes where its one-sided 95 % bound is on the right side of the goal.

    Without a goal it is for information.
    """
    k, n = int(hits.sum()), len(hits)
    low = float(beta.ppf(0.025, k, n - k + 1)) if k else 0.0
    high = float(beta.ppf(0.975, k + 1, n - k)) if k < n else 1.0
    bound = float(beta.ppf(0.95, k + 1, n - k)) if most else float(beta.ppf(0.05, k, n - k + 1))
    bound = 1.0 if most and k == n else bound
    passed = goal is None or bool(bound <= goal if most else bound >= goal)
    return {
        "id": id_, "case": case, "value": k / n, "interval": [round(low, 5), round(high, 5)],
        "goal": "for information" if goal is None else f"{'<=' if most else '>='} {goal:g}",
        "passed": passed, "runs": n, "seed": seed,
    }  # fmt: skip


def mean(id_: str, case: str, values: NDArray[np.int64], goal: float | None, seed: int) -> dict[str, Any]:
    """Return a row on a mean, with its normal interval; without a goal it is for information."""
    value, half = float(values.mean()), 1.96 * float(values.std()) / len(values) ** 0.5
    passed = goal is None or bool(value + half * 1.645 / 1.96 <= goal)
    return {
        "id": id_, "case": case, "value": round(value, 1), "interval": [round(value - half, 1), round(value + half, 1)],
        "goal": "for information" if goal is None else f"<= {goal:g}", "passed": passed, "runs": len(values),
        "seed": seed,
    }  # fmt: skip


def median(id_: str, case: str, values: NDArray[np.int64], goal: float | None, seed: int) -> dict[str, Any]:
    """Return a row on a median, with the interval that order statistics give; without a goal it is for information."""
    ordered, n = np.sort(values), len(values)
    low, high = (int(ordered[min(max(int(binom.ppf(p, n, 0.5)), 0), n - 1)]) for p in (0.025, 0.975))
    bound = ordered[min(int(binom.ppf(0.95, n, 0.5)), n - 1)]
    return {
        "id": id_, "case": case, "value": int(np.median(values)), "interval": [low, high],
        "goal": "for information" if goal is None else f"<= {goal:g}", "passed": goal is None or bool(bound <= goal),
        "runs": n, "seed": seed,
    }  # fmt: skip
