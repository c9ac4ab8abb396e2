"""Parameters from whole episodes: how often does the interval hold the truth, and how far off is the estimate?

    python -m experiments.calibration_tasks             # 20 worlds of each task
    python -m experiments.calibration_tasks --quick     # 2 of each

Plays `production` in worlds whose parameters are drawn all over their ranges (LunarLander: gravity, wind, turbulence;
CartPole without observed states: gravity and length, and the same with a stuck sensor). Prints a table, writes
results/calibration_tasks.json and exits with 1 when a row falls short.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import beta

from experiments.report import report, write
from flywheel.analyze.from_episodes import calibrate
from flywheel.config import AnalyzeConfig
from flywheel.policy import Policy
from flywheel.records import Calibration, Episode
from flywheel.simulate import play
from flywheel.task import Parameter, Task
from flywheel.tasks.cartpole import cartpole
from flywheel.testing import SHORT_POLE, load_linear

CONFIG = AnalyzeConfig()
SHARP = 20.0
LANDING = SHARP * np.array(
    [
        [0, 0, 0, 0, 0, 0, 0, 0],
        [0.25, 0, 0.5, 0, -0.5, -1, 0, 0],
        [0, -0.5, 0, -0.5, 0, 0, -1, -1],
        [-0.25, 0, -0.5, 0, 0.5, 1, 0, 0],
    ]
)
"""Gains of a linear policy after Gymnasium's own heuristic: it lands more often than not."""


def set_wind(env: Any, values: Mapping[str, Any]) -> None:
    """Set gravity, wind_power and turbulence_power, which hold from the next reset on."""
    world = env.unwrapped
    for name, value in values.items():
        setattr(world, name, float(value))
    world.enable_wind = world.wind_power > 0 or world.turbulence_power > 0


def never(episode: Episode) -> bool:
    """Return False: nothing is judged here."""
    return False


LANDER = Task(
    name="lunarlander",
    env="LunarLander-v3",
    failed=never,
    set_parameters=set_wind,
    parameters=(
        Parameter("gravity", -10.0, -11.9, -6.0),
        Parameter("wind_power", 0.0, 0.0, 20.0),
        Parameter("turbulence_power", 0.0, 0.0, 2.0),
    ),
)
CARTPOLE = dataclasses.replace(
    cartpole,
    observed_state=None,
    edge_cases=(),
    drift={},
    parameters=tuple(p for p in cartpole.parameters if p.name in ("gravity", "length")),
)


@dataclass(frozen=True, slots=True)
class Case:
    """A task, who plays it, and whether a sensor sticks."""

    id: str
    task: Task
    policy: Policy
    stuck: int | None = None


@dataclass(frozen=True, slots=True)
class Try:
    """One world, and what was made of its episodes."""

    world: Mapping[str, float]
    found: Calibration
    seconds: float


def cases() -> list[Case]:
    """Return what is tried."""
    lander = load_linear(LANDER, LANDING, SHARP * np.array([0.05, 0, 0, 0]), digest="served")
    pole = load_linear(CARTPOLE, SHORT_POLE, digest="served")
    return [Case("cartpole", CARTPOLE, pole), Case("stuck", CARTPOLE, pole, 3), Case("lunarlander", LANDER, lander)]


def once(case: Case, seed: int) -> Try:
    """Play production in a world drawn by the seed, and calibrate."""
    rng = np.random.default_rng(seed)
    world = {}
    for p in case.task.parameters:
        logs = p.low * p.high > 0
        value = np.exp(rng.uniform(*np.sort(np.log(np.abs([p.low, p.high]))))) if logs else rng.uniform(p.low, p.high)
        world[p.name] = float(np.sign(p.low) * value if logs else value)
    num = CONFIG.episodes
    seeds = rng.integers(2**31, size=num).tolist()
    episodes = play(case.task, case.policy, seeds=seeds, parameters=[world] * num, draw_keys=seeds)
    if case.stuck is not None:
        for episode in episodes:
            episode.observations[:, case.stuck] = 0.0
    began = time.process_time()
    found = calibrate(case.task, case.policy, episodes, CONFIG, seed)
    if found is None:
        sys.exit(f"{case.id} with seed {seed}: nothing was fitted to {num} episodes.")
    return Try(world, found, time.process_time() - began)


def covered(tries: Sequence[Try], name: str) -> list[bool]:
    """Return of each try in which a parameter was identified whether its interval holds the truth."""
    some = [t for t in tries if name not in t.found.not_identified]
    return [t.found.intervals[name][0] <= t.world[name] <= t.found.intervals[name][1] for t in some]


def row(
    id: str, case: str, values: Sequence[float], goal: str, good: Sequence[bool], seeds: Sequence[int]
) -> dict[str, Any]:
    """Return one row: the share of good tries with its 95 % interval; passed if all of that reaches the goal."""
    num, hits = len(good), sum(good)
    low = float(beta.ppf(0.025, hits, num - hits + 1)) if hits else 0.0
    high = float(beta.ppf(0.975, hits + 1, num - hits)) if hits < num else 1.0
    bound = float(goal.split()[-1])
    return {
        "id": id,
        "case": case,
        "value": hits / num if num else None,
        "interval": [round(low, 3), round(high, 3)],
        "goal": goal,
        "passed": bool(num) and low >= bound,
        "runs": num,
        "seed": list(seeds),
        "values": [round(float(v), 4) for v in values],
    }


def rows(case: Case, tries: Sequence[Try], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Return the rows of one case."""
    believed = [t.found.explained >= CONFIG.explained_episodes for t in tries]
    explained = [t.found.explained for t in tries]
    if case.stuck is not None:
        return [row("C3", "a stuck sensor is not explained", explained, ">= 0.8", [not b for b in believed], seeds)]
    table = []
    for p in case.task.parameters:
        off = [abs(t.found.values[p.name] - t.world[p.name]) / (p.high - p.low) for t in tries]
        good = covered(tries, p.name)
        table.append(row("C1", f"{case.id}: interval holds {p.name} where identified; error as a share of the range",
                         off, ">= 0.8", good, seeds))  # fmt: skip
    table.append(row("C2", f"{case.id}: the change is explained", explained, ">= 0.8", believed, seeds))
    seconds = [t.seconds for t in tries]
    table.append(
        row("C4", f"{case.id}: at most 15 s of one core", seconds, ">= 0.8", [s <= 15 for s in seconds], seeds)
    )
    return table


def main() -> None:
    """Run, print, write, and exit with 1 when a row falls short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two worlds of each task")
    parser.add_argument("--worlds", type=int, default=20, help="worlds of each task")
    arguments = parser.parse_args()
    seeds = range(1, 1 + (2 if arguments.quick else arguments.worlds))
    began, results = time.monotonic(), []
    for case in cases():
        tries = []
        for seed in seeds:
            tries.append(once(case, seed))
            print(case.id, json.dumps(dataclasses.asdict(tries[-1])), flush=True)
        results += rows(case, tries, seeds)
    found = report("calibration_tasks", began, results)
    if not arguments.quick:
        write(found)
    table = Table("id", "case", "share", "95 %", "median of the values", "passed")
    for line in results:
        values = f"{np.median(line['values']):.3g}"
        table.add_row(line["id"], line["case"], f"{line['value']}", f"{line['interval']}", values, str(line["passed"]))
    Console().print(table)
    sys.exit(not all(line["passed"] for line in results))


if __name__ == "__main__":
    main()
