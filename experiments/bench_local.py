"""How fast a decision is in the program's own process, and whether it is the one that the server would have made.

    python -m experiments.bench_local             # a minute
    python -m experiments.bench_local --quick     # a rough answer, and nothing is written

S5  `episode.act` of flywheel.client.Local, from an observation to what the environment gets, with each step in the
    spool before it is answered: networks of 64 and 64 tanh units for CartPole (two actions) and Hopper (a Box of
    three). For information beside it: the same without the disk, and `Policy.act` with draws for one row after another

The kinds take turns block by block, so that noise meets all of them; a value is the median of the blocks' medians, and
its interval that of order statistics.
Prints a table, writes results/bench_local.json and exits with 1 when a row falls short.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from experiments.bench_gate import INFO, SEED, number
from experiments.hand_policies import cartpole_policy
from experiments.report import tell
from flywheel.client.local import LocalEpisode
from flywheel.client.quick import Quick
from flywheel.client.spool import Spool
from flywheel.client.supply import Lease
from flywheel.draws import draws
from flywheel.policy import Policy, to_env
from flywheel.records import Array
from flywheel.task import Limits, Task, spec_of
from flywheel.tasks.cartpole import cartpole
from flywheel.testing import load_linear

STEPS = 2_000
"""Decisions of one block."""
KEY = 0x5EED
Row = dict[str, Any]
Act = Callable[[Array], object]


def on_disk(policy: Policy, directory: Path) -> Callable[[int], Act]:
    """Return what begins an episode as Local does, and gives its `act`."""
    spool = Spool(directory, 2**30)

    def begin(block: int) -> Act:
        lease = Lease(episode=str(block), digest="0" * 64, draw_key=KEY, given_at=0.0, seal="0" * 64)
        episode = LocalEpisode(spool, lease, policy)

        def act(observation: Array) -> object:
            action = episode.act(observation)
            episode.reward(1.0)
            return action

        return act

    return begin


def in_memory(policy: Policy) -> Callable[[int], Act]:
    """Return what acts without the disk."""

    def begin(_: int) -> Act:
        quick, t = Quick(policy, KEY, "e"), iter(range(STEPS))

        def act(observation: Array) -> object:
            quick.see(observation)
            return quick.to_env(quick.act(next(t))[0])

        return act

    return begin


def by_rows(policy: Policy) -> Callable[[int], Act]:
    """Return what acts by the policy's own method, one row at a time."""

    def begin(_: int) -> Act:
        t = iter(range(STEPS))

        def act(observation: Array) -> object:
            drawn = draws(np.array([KEY], np.uint64), np.array([next(t)]), policy.spec.num_draws)
            return to_env(policy.spec, policy.act(observation[None], drawn)[0])[0]

        return act

    return begin


def block(act: Act, observations: Array) -> NDArray[np.int64]:
    """Return how long each decision took, int64[STEPS] nanoseconds."""
    found = np.zeros(STEPS, np.int64)
    for t in range(STEPS):
        seen, began = observations[t], time.perf_counter_ns()
        act(seen)
        found[t] = time.perf_counter_ns() - began
    return found


def timed(case: str, nanos: NDArray[np.int64], goal: float | None) -> Row:
    """Return a row on the microseconds of blocks int64[B, STEPS]; without a goal it is for information."""
    medians = np.sort(np.median(nanos, axis=1)) / 1e3
    num = len(medians)
    low, high, bound = (float(medians[min(max(int(binom.ppf(p, num, 0.5)), 0), num - 1)]) for p in (0.025, 0.975, 0.95))
    return {
        "id": "S5", "case": f"{case}: µs at the median (p99 {np.percentile(nanos, 99) / 1e3:.0f})",
        "value": round(float(np.median(medians)), 2), "interval": [round(low, 2), round(high, 2)],
        "goal": INFO if goal is None else f"<= {goal:g}", "passed": goal is None or bound <= goal, "runs": num,
        "seed": SEED,
    }  # fmt: skip


def same(policy: Policy, observations: Array) -> Row:
    """Return the row on whether decisions one after another are those of `Policy.act` for all rows."""
    num = len(observations)
    drawn = draws(np.full(num, KEY, np.uint64), np.arange(num), policy.spec.num_draws)
    quick, equal = Quick(policy, KEY, "e"), 0
    for start in range(0, num, 256):
        some = slice(start, start + 256)
        for t, action, logp in zip(range(start, num), *policy.act(observations[some], drawn[some]), strict=False):
            quick.see(observations[t])
            found = quick.act(t)
            equal += bool(np.array_equal(np.reshape(found[0], action.shape), action) and found[1]() == logp)
    case = f"actions and log probabilities equal to Policy.act's, of {num:,} ({policy.spec.rule.kind})"
    return number("S5", case, equal / num, "1", equal == num)


def rows(quick: bool) -> Iterator[Row]:
    """Yield every row."""
    hopper = Task(name="hopper", env="Hopper-v5", failed=lambda _: False, limits=Limits(), version="1")
    spec = spec_of(hopper)  # of means and deviations, which a policy written by hand doesn't have
    gains = np.random.default_rng(SEED).normal(0.0, 0.1, (spec.num_outputs, *spec.observation_shape))
    policies = {"CartPole": cartpole_policy(cartpole), "Hopper": load_linear(hopper, gains, digest="0" * 64)}
    with tempfile.TemporaryDirectory() as directory:
        for name, policy in policies.items():
            observations = np.random.default_rng(SEED).normal(0.0, 0.1, (STEPS, *policy.spec.observation_shape))
            seen = observations.astype(policy.spec.observation_dtype)
            kinds = {
                "kept on the disk": on_disk(policy, Path(directory) / name),
                "not kept": in_memory(policy),
                "Policy.act for one row": by_rows(policy),
            }
            blocks = [[block(begin(i), seen) for begin in kinds.values()] for i in range(5 if quick else 40)]
            for kind, nanos in zip(kinds, np.stack(blocks, axis=1), strict=True):
                yield timed(f"{name}, {kind}", nanos, 30.0 if kind == "kept on the disk" else None)
            yield same(policy, seen)


def main() -> None:
    """Measure, print, write, and exit with 1 when a row falls short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer blocks, and nothing is written")
    given, began, found = parser.parse_args(), time.monotonic(), []
    for row in rows(given.quick):
        print(f"{row['id']}  {row['value']}  {row['case']}", flush=True)
        found.append(row)
    tell("bench_local", began, found, is_kept=not given.quick)


if __name__ == "__main__":
    main()
