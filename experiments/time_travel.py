"""Time travel: are replays exact, faults found at their step, forks cheap, and their effects' intervals right?

    python -m experiments.time_travel                 # some minutes
    python -m experiments.time_travel --quick         # a rough answer in under a minute
    python -m experiments.time_travel --only T3       # one measure; the file keeps the others' rows

T1  recorded episodes of the gate, replayed from seed and policy, equal to the last bit
T2  a fault put in at a random step (policy swapped, action overridden, world changed): is that step found?
    (a change of the world of which an episode's rest shows nothing at all, such as wind on a lander that stands, is
    counted as `alike` and left out)
T3  one fork and replay of 500 CartPole steps; thirty, which give the effect
T4  from opening the page to a fork's result, in headless Chromium on a run with 10,000 episodes (see page_journey)
T5  what a span costs, what is lost of 2,000 a second, and what tracing adds to the p99 of a decision (see span_cost)
TE  how often the effect's 95 % interval holds the truth, which 4,096 pairs of runs tell

Prints a table, writes results/time_travel.json and exits with 1 when a row falls short. A measure is a function in
MEASURES that returns rows.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import secrets
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import stats

from experiments.page_journey import journeys
from experiments.report import RESULTS, report, write
from experiments.span_cost import tracing
from flywheel.policy import Policy
from flywheel.records import Episode
from flywheel.simulate import play
from flywheel.store.encode import decode, encode
from flywheel.tapes import chain
from flywheel.task import Task
from flywheel.tasks.cartpole import cartpole
from flywheel.tasks.lunarlander import lunarlander
from flywheel.tasks.pendulum import pendulum
from flywheel.testing import GOOD, SHORT_POLE, load_linear
from flywheel.trace import Fork, against_simulator, noise_of, recheck
from flywheel.trace.effect import mean_interval

A, B = "a" * 64, "b" * 64
LANDING = np.array(
    [[0, 0, 0, 0, 0, 0, 0, 0], [0.25, 0, 0.5, 0, -0.5, -1, 0, 0], [0, -0.5, 0, -0.5, 0, 0, -1, -1],
     [-0.25, 0, -0.5, 0, 0.5, 1, 0, 0]]
)  # fmt: skip
"""Gains after Gymnasium's own heuristic."""
SWING = [[0.0, -6.0, -1.2], [0.0, 0.0, 0.0]]
CHANGED = 0.1
"""A world's parameter changes by at least this share of its range."""
WITHIN = 2
"""Steps by which a change of the world may be missed."""


@dataclass(frozen=True, slots=True)
class Case:
    """A task and the policies that act in it: A, and B for the one that takes its place."""

    task: Task
    policies: Mapping[str, Policy]


def cases() -> list[Case]:
    """Return the three tasks; LunarLander's policies draw their actions here, so that a probability tells a policy."""
    lander = dataclasses.replace(lunarlander, greedy=False)
    gains: list[tuple[Task, dict[str, tuple[Any, Any]]]] = [
        (cartpole, {A: (GOOD, None), B: (SHORT_POLE, None)}),
        (pendulum, {A: (SWING, [0.0, -1.0]), B: (1.1 * np.array(SWING), [0.0, -1.0])}),
        (lander, {A: (8 * LANDING, [0.4, 0, 0, 0]), B: (6 * LANDING, [0.2, 0, 0, 0])}),
    ]
    return [
        Case(task, {digest: load_linear(task, matrix, bias, digest) for digest, (matrix, bias) in both.items()})
        for task, both in gains
    ]


def recorded(case: Case, rng: np.random.Generator, num: int, digest: str = A, anywhere: bool = False) -> list[Episode]:
    """Return episodes as the gate plays them, many at once, and as the store gives them back."""
    seeds = rng.integers(2**53, size=num).tolist()
    parameters = [dict(case.task.nominal) for _ in range(num)]
    for values in parameters if anywhere else []:
        values |= {p.name: float(rng.uniform(p.low, p.high)) for p in case.task.parameters}
    episodes = play(case.task, case.policies[digest], seeds=seeds, parameters=parameters, draw_keys=seeds)
    return [decode(encode(episode), 0.0, 0.0) for episode in episodes]


def row(id_: str, case: str, goods: Sequence[bool], goal: float, seed: int, **more: Any) -> dict[str, Any]:
    """Return a row on a share; passed if the one-sided 95 % bound reaches the goal (all of them, where that is 1)."""
    num, hits = len(goods), sum(goods)
    low = float(stats.beta.ppf(0.05, hits, num - hits + 1)) if hits else 0.0
    high = float(stats.beta.ppf(0.95, hits + 1, num - hits)) if hits < num else 1.0
    return {
        "id": id_,
        "case": case,
        "value": hits / num,
        "interval": [round(low, 4), round(high, 4)],
        "goal": f">= {goal:g}",
        "passed": hits == num if goal == 1 else low >= goal,
        "runs": num,
        "seed": seed,
        **more,
    }


def exact_replays(seed: int, quick: bool) -> Iterator[dict[str, Any]]:
    """T1: play each recorded episode again alone, at parameters from all over their ranges."""
    num = 20 if quick else 1000
    for number, case in enumerate(cases()):
        episodes = recorded(case, np.random.default_rng([seed, number]), num, anywhere=True)
        same, num_steps = [], 0
        for episode in episodes:
            fork = Fork(case.task, episode, 0, case.policies)
            same.append(chain(fork.replay().fork) == chain(episode))
            fork.close()
            num_steps += episode.num_steps
        told = f"{case.task.name}: recorded episodes replayed bit for bit"
        yield row("T1", told, same, 1.0, seed, steps=num_steps)


def swapped(case: Case, episode: Episode, at: int, rng: np.random.Generator) -> Episode:
    """Return the episode with another policy's decisions from a step on, all under the name of the first."""
    fork = Fork(case.task, episode, at, case.policies).edit_parameter("policy", B).replay().fork
    return dataclasses.replace(fork, digests=(A,) * fork.num_steps)


def overridden(case: Case, episode: Episode, at: int, rng: np.random.Generator) -> Episode:
    """Return the episode with another action at a step than its policy decided, with that decision's probability."""
    spec, was = case.policies[A].spec, episode.raw_actions[at]
    other = (int(was) + 1) % spec.num_actions if spec.num_actions else np.asarray(was) + rng.normal(0.0, 0.3, was.shape)
    fork = Fork(case.task, episode, at, case.policies).edit_parameter("action", other).replay().fork
    logps = fork.logps.copy()
    logps[at] = episode.logps[at]
    return dataclasses.replace(fork, digests=(A,) * fork.num_steps, logps=logps)


def elsewhere(case: Case, episode: Episode, at: int, rng: np.random.Generator) -> Episode:
    """Return the episode with one parameter of its world changed from a step on, which its record doesn't say."""
    parameter = case.task.parameters[rng.integers(len(case.task.parameters))]
    least = CHANGED * (parameter.high - parameter.low)
    while abs((value := float(rng.uniform(parameter.low, parameter.high))) - parameter.nominal) < least:
        pass
    fork = Fork(case.task, episode, at, case.policies).edit_parameter(parameter.name, value).replay().fork
    hidden = None if case.task.observed_state is not None else fork.seed
    return dataclasses.replace(fork, parameters=episode.parameters, seed=hidden, origin="production")


def faults(seed: int, quick: bool) -> Iterator[dict[str, Any]]:
    """T2: put a fault into each episode and look for it; and look for one where there is none."""
    num = 10 if quick else 300
    for number, case in enumerate(cases()):
        task, rng = case.task, np.random.default_rng([seed, number])
        episodes = [e for e in recorded(case, rng, num + 20) if e.num_steps > 1]
        reference, episodes = [dataclasses.replace(e, seed=None) for e in episodes[:20]], episodes[20:]
        shows = task.observed_state is not None
        noise = noise_of(task, reference, {}) if shows else None
        steps = [int(rng.integers(e.num_steps)) for e in episodes]

        def decided(episode: Episode, case: Case = case) -> int | None:
            found = recheck(episode, case.policies, tolerance=0.0)  # they were made here
            return None if found is None else found.step

        def left(episode: Episode, task: Task = task, noise: Any = noise) -> int | None:
            found = against_simulator(task, episode, {}, noise=noise)
            return None if found is None else found.step - (found.kind in ("observation", "end"))

        for name, put, find in (("policy swapped", swapped, decided), ("action overridden", overridden, decided)):
            exact = [find(put(case, e, t, rng)) == t for e, t in zip(episodes, steps, strict=True)]
            yield row("T2", f"{task.name}: {name}, step found exactly", exact, 0.99, seed)
        changed = [(elsewhere(case, e, t, rng), t) for e, t in zip(episodes, steps, strict=True)]
        num_alike = sum(chain(c) == chain(e) for (c, _), e in zip(changed, episodes, strict=True))
        pairs = [(left(c), t) for (c, t), e in zip(changed, episodes, strict=True) if chain(c) != chain(e)]
        near = [found is not None and 0 <= found - t <= WITHIN for found, t in pairs]
        late = [found - t for found, t in pairs if found is not None]
        told = f"{task.name}: world changed, step found within {WITHIN}"
        yield row("T2", told, near, 0.95, seed, late=dict(Counter(late)), alike=num_alike)
        fine = [decided(e) is None and left(dataclasses.replace(e, seed=None if shows else e.seed)) is None
                for e in episodes]  # fmt: skip
        yield row("T2", f"{task.name}: no fault, nothing found", fine, 0.99, seed)


def costs(seed: int, quick: bool) -> Iterator[dict[str, Any]]:
    """T3: fork an episode at its first step and run all 500 again, with an edit, in a warm process."""
    case = cases()[0]
    rng = np.random.default_rng(seed)
    episodes = [e for e in recorded(case, rng, 8 if quick else 48) if e.num_steps == 500]

    def seconds(episode: Episode, times: int) -> float:
        began = time.perf_counter()
        result = Fork(case.task, episode, 0, case.policies).edit_parameter("gravity", 10.0).replay(times=times)
        took = time.perf_counter() - began
        assert result.fork.num_steps == 500
        return took

    for times, goal in ((1, 0.1), (30, 0.3)):
        seconds(episodes[0], times)
        took = np.sort([seconds(episode, times) for episode in episodes])
        num = len(took)
        ends = stats.binom.ppf([0.05, 0.95], num, 0.5).astype(int)  # of the median, by the order of the values
        told = "one fork and replay of 500 steps" if times == 1 else "thirty, with the same number unedited"
        yield {
            "id": "T3",
            "case": f"cartpole: {told}, median seconds",
            "value": round(float(np.median(took)), 4),
            "interval": [round(float(took[max(0, ends[0] - 1)]), 4), round(float(took[min(num - 1, ends[1])]), 4)],
            "goal": f"<= {goal:g}",
            "passed": bool(took[min(num - 1, ends[1])] <= goal),
            "runs": num,
            "seed": seed,
            "p95": round(float(np.quantile(took, 0.95)), 4),
        }


def coverage(seed: int, quick: bool) -> Iterator[dict[str, Any]]:
    """TE: draw thirty pairs of runs out of many, again and again, and see whether the interval holds their mean."""
    num, runs, pairs = (512, 200, 30) if quick else (4096, 4000, 30)
    pole, swing, _ = cases()
    for case, at, digest, name, value in (
        (pole, 100, B, "length", 2.0),
        (pole, 100, A, "exploration_rate", 0.3),
        (pole, 100, A, "exploration_rate", 0.2),
        (swing, 60, A, "l", 1.3),
        (swing, 60, A, "temperature", 3.0),
    ):
        rng = np.random.default_rng([seed, at])
        (episode,) = recorded(case, rng, 1, digest)
        fork = Fork(case.task, episode, min(at, episode.num_steps // 2), case.policies)
        effect = fork.edit_parameter(name, value).replay(times=num, seed=seed).effect
        assert effect is not None
        differences = np.array(effect.differences)
        low, high = case.task.return_range or (0.0, 0.0)
        intervals = [mean_interval(rng.choice(differences, pairs), high - low) for _ in range(runs)]
        held = [a <= differences.mean() <= b for a, b in intervals]
        told = f"{case.task.name}, {name} {value:g}: the effect's 95 % interval holds the truth"
        width = float(np.median([b - a for a, b in intervals]))
        yield row("TE", told, held, 0.93, seed, truth=round(float(differences.mean()), 2), width=round(width, 1))


MEASURES: dict[str, Callable[[int, bool], Iterator[dict[str, Any]]]] = {
    "T1": exact_replays,
    "T2": faults,
    "T3": costs,
    "T4": journeys,
    "T5": tracing,
    "TE": coverage,
}
"""(seed, quick) -> rows, by the id of the measure."""


def main() -> None:
    """Run, print, write, and exit with 1 when a row falls short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few runs of each; nothing is written")
    parser.add_argument("--only", nargs="+", choices=list(MEASURES), default=list(MEASURES), help="these measures")
    parser.add_argument("--seed", type=int, default=0, help="root of all seeds; a fresh one by default")
    arguments = parser.parse_args()
    seed = arguments.seed or secrets.randbelow(2**31)
    began, results = time.monotonic(), []
    for id_ in arguments.only:
        for found in MEASURES[id_](seed, arguments.quick):
            results.append(found)
            print(json.dumps(found), flush=True)
    if not arguments.quick:
        file = RESULTS / "time_travel.json"
        kept = json.loads(file.read_text())["results"] if file.exists() else []
        results = [r for r in kept if r["id"] not in arguments.only] + results
        results.sort(key=lambda each: each["id"])
        write(report("time_travel", began, results))
    table = Table("id", "case", "value", "95 %", "goal", "runs", "passed")
    for line in results:
        values = (line["id"], line["case"], f"{line['value']:.4g}", str(line["interval"]), line["goal"])
        table.add_row(*values, str(line["runs"]), str(line["passed"]))
    Console(width=140).print(table)
    sys.exit(not all(line["passed"] for line in results))


if __name__ == "__main__":
    main()
