"""The main job, over and over with fresh seeds: is a change noticed, is production good again, is nothing lost?

    python -m experiments.wheel             # ten runs in which the world changes, three in which it doesn't
    python -m experiments.wheel --quick     # one of each

Prints a table, writes results/wheel.json, keeps each run's summary beside it, and exits with 1 when a row falls short.
"""

from __future__ import annotations

import argparse
import json
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.report import report, write
from flywheel import archive
from flywheel.analyze.replay import replayed

LIMIT_S = 180.0
TOLD = ("seed", "wall_s", "production", "detected_after_episodes", "seconds", "decisions")


def turn_once(
    number: int, seed: int, *, drift: bool, keep: Path | None, task: str = "cartpole", limit_s: float = 900.0
) -> dict[str, Any]:
    """Run the command once in a fresh directory; return its summary with the seed, the exit code and its seconds."""
    with tempfile.TemporaryDirectory() as place:
        run_dir = (keep or Path(place)) / f"{'drift' if drift else 'quiet'}-{number}"
        command = [sys.executable, "-m", "flywheel.run", "--run-dir", str(run_dir), "--seed", str(seed)]
        command += ["--task", task, "--deploy.port", "0"] + ([] if drift else ["--no-drift"])
        began = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
        seconds = time.monotonic() - began
        path = run_dir / "summary.json"
        if not path.exists():
            sys.exit(
                f"Run {number} with seed {seed} gave no summary (code {done.returncode}):\n{done.stdout}{done.stderr}"
            )
        decided = [each for each in replayed(archive.read_turns(run_dir)) if each.decision is not None]
        return {
            **json.loads(path.read_text()),
            "seed": seed,
            "code": done.returncode,
            "wall_s": round(seconds, 1),
            "decisions": [sum(each.is_same for each in decided), len(decided)],
        }


def row(
    id: str,
    case: str,
    runs: Sequence[dict[str, Any]],
    value: Callable[[dict[str, Any]], Any],
    fine: Callable[[Any], bool],
) -> dict[str, Any]:
    """Return one row of the results: how many runs were fine, and what each one's value was."""
    values = [value(run) for run in runs]
    good = sum(bool(fine(v)) for v in values)
    return {
        "id": id,
        "case": case,
        "value": good,
        "interval": None,
        "goal": f"{len(runs)} of {len(runs)} runs",
        "passed": good == len(runs),
        "runs": len(runs),
        "seed": [run["seed"] for run in runs],
        "values": values,
    }


def _share(run: dict[str, Any]) -> float | None:
    production = run["production"]
    if production["recovered"] is None or not production["before"]:
        return None
    return round(production["recovered"] / production["before"], 4)


def rows(drifted: Sequence[dict[str, Any]], quiet: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what the issue asks of these runs, a row a question."""
    every = [*drifted, *quiet]
    cured = {"rollback_and_retrain", "retrain_prioritize_recent"}
    return [
        row("W1", "noticed within 30 episodes of the change", drifted, lambda r: r["detected_after_episodes"],
            lambda v: v is not None and v <= 30),
        row("W2", "recovered at least 0.95 of the return before", drifted, _share,
            lambda v: v is not None and v >= 0.95),
        row("W3", "0 request errors", every, lambda r: r["requests"]["errors"], lambda v: v == 0),
        row("W4", "every acknowledged episode is stored", every,
            lambda r: [r["episodes"]["acknowledged"], r["episodes"]["stored"]], lambda v: v[0] == v[1] > 0),
        row("W5", "without a change nothing is rolled back or retrained for one", quiet,
            lambda r: [turn["strategy"] for turn in r["turns"]], lambda v: not set(v) & cured),
        row("W6", f"at most {LIMIT_S:.0f} s", drifted, lambda r: r["wall_s"], lambda v: v <= LIMIT_S),
        row("W7", "return after the change on the old policy (for information)", drifted,
            lambda r: r["production"]["after_shift"], lambda v: v is not None),
        row("DQ13", "all decisions recomputed from the journal are the same", every, lambda r: r["decisions"],
            lambda v: v[0] == v[1] > 0),
    ]  # fmt: skip


def markdown(report: dict[str, Any]) -> str:
    """Return the table that stands in the README."""
    lines = ["| | question | runs | values |", "|---|---|---|---|"]
    for line in report["results"]:
        values = [v for v in line["values"] if isinstance(v, int | float)]
        spread = f"{min(values):.4g} to {max(values):.4g}, median {statistics.median(values):.4g}" if values else ""
        lines.append(f"| {line['id']} | {line['case']} | {line['value']} of {line['runs']} | {spread} |")
    return "\n".join(lines)


def main() -> None:
    """Run, print, write, and exit with 1 when a row falls short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one run of each kind")
    parser.add_argument("--drifted", type=int, default=10, help="runs in which the world changes")
    parser.add_argument("--quiet", type=int, default=3, help="runs in which it does not")
    parser.add_argument("--keep", type=Path, help="directory in which the runs are kept")
    arguments = parser.parse_args()
    counts = (1, 1) if arguments.quick else (arguments.drifted, arguments.quiet)
    began, found = time.monotonic(), []
    for drift, count in zip((True, False), counts, strict=True):
        runs = []
        for number in range(count):
            run = turn_once(number, secrets.randbelow(2**31 - 1) + 1, drift=drift, keep=arguments.keep)
            print(json.dumps({name: run[name] for name in TOLD}), flush=True)
            runs.append(run)
        found.append(runs)
    results = rows(*found)
    told = report("wheel", began, results)
    if not arguments.quick:
        write(told)
        print(markdown(told))
    table = Table("id", "case", "runs that are fine", "values")
    for line in results:
        table.add_row(
            line["id"], line["case"], f"{line['value']} of {line['runs']}", " ".join(map(str, line["values"]))
        )
    Console().print(table)
    sys.exit(not all(line["passed"] for line in results))


if __name__ == "__main__":
    main()
