"""How fast the store takes episodes in and gives transitions out.

    python -m experiments.bench_store             # ten minutes, 2 GB of memory and 3 GB of disk
    python -m experiments.bench_store --quick     # a rough answer, and nothing is written
    python -m experiments.bench_store --only P6

P5  256 transitions of 1,000,000 from flywheel.store.table.Table ÷ NumPy's own fancy indexing of the same six columns
    (observations, next observations, actions, rewards, terminated, log probabilities) at rows drawn by
    `Generator.integers`; and RLlib's EpisodeReplayBuffer ÷ the Table, both filled with the same episodes
P6  durable appends of 200-step episodes in groups of 16 ÷ writing the same bytes to a file and fsyncing it after each
    group; where the time goes stands beside it
P7  256 transitions of 10,000,000, in a mapped file, ÷ of 10,000; columns and draws of both are warm

The kinds take turns block by block, so that noise meets all of them. A value is the ratio of the medians of the blocks'
medians, and its interval is bootstrapped over blocks. Prints a table, writes results/bench_store.json and exits with 1
when a row falls short.
"""

from __future__ import annotations

import argparse
import cProfile
import dataclasses
import os
import pstats
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.report import tell
from flywheel.records import Episode
from flywheel.sampling import Sampling
from flywheel.store.encode import content, encode
from flywheel.store.intake import Intake
from flywheel.store.table import Table
from flywheel.task import spec_of
from flywheel.tasks.cartpole import cartpole

NUM = 256
"""Transitions of a draw."""
GROUP = 16
"""Episodes of a commit, as the store's body makes them."""
CALLS = 40
"""Calls of one block, of which the median counts."""
SEED = 20_260
Row = dict[str, Any]
Kinds = Mapping[str, Callable[[], object]]


def episodes(num: int, length: int, seed: int) -> list[Episode]:
    """Return CartPole-sized episodes of random steps."""
    rng = np.random.default_rng(seed)
    observations = rng.normal(size=(num, length + 1, 4)).astype(np.float32)
    actions, logps = rng.integers(0, 2, (num, length)), np.log(rng.random((num, length)))
    digests, rewards = ("a" * 64,) * length, np.ones(length)
    return [
        Episode(
            id=f"{seed}-{length}-{i}", origin="production", task="t" * 64, parameters={}, draw_key=i, digests=digests,
            observations=observations[i], raw_actions=actions[i], rewards=rewards, logps=logps[i], end="terminated",
            failed=i % 20 == 0, started_at=float(i), ended_at=float(i + 1),
        )
        for i in range(num)
    ]  # fmt: skip


def blocks(kinds: Kinds, num: int, calls: int) -> dict[str, NDArray[np.float64]]:
    """Return seconds float64[blocks], the median of each block's calls, by kind; one block of each is warm-up."""
    found: dict[str, list[float]] = {name: [] for name in kinds}
    for block in range(num + 1):
        for name, call in kinds.items():
            taken = np.zeros(calls)
            for i in range(calls):
                began = time.perf_counter()
                call()
                taken[i] = time.perf_counter() - began
            if block:
                found[name].append(float(np.median(taken)))
    return {name: np.array(values) for name, values in found.items()}


def ratio(id_: str, case: str, above: NDArray[np.float64], below: NDArray[np.float64], goal: float, most: bool) -> Row:
    """Return a row on the ratio of two kinds' medians; blocks are drawn again in pairs for its interval."""
    rng, n = np.random.default_rng(SEED), len(above)
    drawn = rng.integers(0, n, (4000, n))
    ratios = np.median(above[drawn], axis=1) / np.median(below[drawn], axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    bound = float(np.quantile(ratios, 0.95 if most else 0.05))
    return {
        "id": id_, "case": case, "value": round(float(np.median(above) / np.median(below)), 3),
        "interval": [round(float(low), 3), round(float(high), 3)], "goal": f"{'<=' if most else '>='} {goal:g}",
        "passed": bool(bound <= goal if most else bound >= goal), "runs": n, "seed": SEED,
    }  # fmt: skip


def told(id_: str, case: str, values: NDArray[np.float64], unit: float = 1e6) -> Row:
    """Return a row for information: a median, in microseconds, with its extremes."""
    low, high = values.min(), values.max()
    return {
        "id": id_, "case": case, "value": round(float(np.median(values)) * unit, 1),
        "interval": [round(float(low) * unit, 1), round(float(high) * unit, 1)], "goal": "for information",
        "passed": True, "runs": len(values), "seed": SEED,
    }  # fmt: skip


class Plain:
    """The same columns, drawn from as anybody would with NumPy alone."""

    def __init__(self, made: list[Episode]) -> None:
        """Copy the episodes' steps side by side."""
        self.observations = np.concatenate([e.observations[:-1] for e in made])
        self.next_observations = np.concatenate([e.observations[1:] for e in made])
        self.actions = np.concatenate([e.raw_actions for e in made])
        self.rewards = np.concatenate([e.rewards for e in made]).astype(np.float32)
        self.logps = np.concatenate([e.logps for e in made]).astype(np.float32)
        self.terminated = np.zeros(len(self.rewards), np.bool_)
        self.terminated[np.cumsum([e.num_steps for e in made]) - 1] = True

    def sample(self, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        """Return 256 transitions, all alike."""
        rows = rng.integers(0, len(self.rewards), NUM)
        return (
            self.observations[rows], self.next_observations[rows], self.actions[rows], self.rewards[rows],
            self.terminated[rows], self.logps[rows],
        )  # fmt: skip


def theirs(made: list[Episode]) -> Any:
    """Return RLlib's buffer, filled with the same episodes."""
    from ray.rllib.env.single_agent_episode import SingleAgentEpisode
    from ray.rllib.utils.replay_buffers.episode_replay_buffer import EpisodeReplayBuffer

    buffer = EpisodeReplayBuffer(capacity=sum(e.num_steps for e in made) + 1)
    for e in made:
        buffer.add(
            SingleAgentEpisode(
                observations=list(e.observations), actions=list(e.raw_actions), rewards=list(e.rewards),
                terminated=True, len_lookback_buffer=0,
            )
        )  # fmt: skip
    return buffer


def p5(quick: bool) -> list[Row]:
    """256 transitions of a million, ours beside NumPy's and RLlib's."""
    num = 100_000 if quick else 1_000_000
    rows = list[Row]()
    for length in (200, 20):
        made = episodes(num // length, length, SEED)
        table = Table(spec_of(cartpole), capacity=num)
        for e in made:
            table.add(e)
        plain, buffer, rng = Plain(made), theirs(made), np.random.default_rng(SEED)
        recent = Sampling(half_life=len(made) / 4)
        kinds: Kinds = {
            "NumPy": lambda plain=plain, rng=rng: plain.sample(rng),
            "uniform": lambda table=table, rng=rng: table.sample(rng, NUM),
            "recent-first": lambda table=table, rng=rng, rule=recent: table.sample(rng, NUM, rule),
        }
        found = blocks(kinds, 10 if quick else 40, CALLS)
        beside = blocks(
            {"ours": kinds["uniform"], "RLlib": lambda b=buffer: b.sample(num_items=NUM, batch_length_T=1)},
            5 if quick else 12,
            5,
        )
        where = f"{num:,} transitions in episodes of {length}"
        for name in ("uniform", "recent-first"):
            rows.append(ratio("P5", f"{name} ÷ NumPy, {where}", found[name], found["NumPy"], 2.0, True))
        rows.append(ratio("P5", f"RLlib ÷ ours, {where}", beside["RLlib"], beside["ours"], 50.0, False))
        rows += [told("P5", f"{name}, µs, {where}", values) for name, values in found.items()]
    return rows


def p6(quick: bool) -> list[Row]:
    """Durable appends beside writing and fsyncing the same bytes."""
    num = 20 if quick else 150
    with tempfile.TemporaryDirectory() as place:
        store, file = Intake(Path(place) / "store"), open(Path(place) / "plain", "wb", buffering=0)  # noqa: SIM115
        groups = [episodes(GROUP, 200, SEED + i) for i in range(num)]
        bodies = [b"".join(encode(e) for e in group) for group in groups]
        ours, plain, parts = np.zeros(num), np.zeros(num), np.zeros((2, num))
        for i, (group, data) in enumerate(zip(groups, bodies, strict=True)):
            began = time.perf_counter()
            store.append(group)
            ours[i] = time.perf_counter() - began
            began = time.perf_counter()
            file.write(data)
            os.fsync(file.fileno())
            plain[i] = time.perf_counter() - began
            began = time.perf_counter()
            encoded = [encode(e) for e in group]
            parts[0, i] = time.perf_counter() - began
            began = time.perf_counter()
            for body in encoded:
                content(body)
            parts[1, i] = time.perf_counter() - began
        file.close()
        store.close()
    case = f"appends of 200 steps in groups of {GROUP} ÷ the same {len(bodies[0]):,} bytes written and fsynced"
    rows = [ratio("P6", case, ours[5:], plain[5:], 3.0, True)]
    names = ("one group, µs", "the same bytes, µs", "of a group: encoding, µs", "of a group: sha256, µs")
    return rows + [told("P6", name, values[5:]) for name, values in zip(names, (ours, plain, *parts), strict=True)]


def profile() -> None:
    """Print where an append spends its time."""
    with tempfile.TemporaryDirectory() as place, Intake(Path(place)) as store:
        groups = [episodes(GROUP, 200, SEED + i) for i in range(100)]
        with cProfile.Profile() as seen:
            for group in groups:
                store.append(group)
        pstats.Stats(seen).sort_stats("tottime").print_stats(18)


def p7(quick: bool) -> list[Row]:
    """Ten million transitions in mapped files beside ten thousand."""
    small, large = 10_000, 1_000_000 if quick else 10_000_000
    made, rng = episodes(large // 200, 200, SEED), np.random.default_rng(SEED)
    place = Path(tempfile.mkdtemp())
    try:
        tables = {}
        for num in (small, 100_000, 1_000_000, large)[: 3 if quick else 4]:
            mapped = place / str(num) if num == large else None
            tables[num] = Table(spec_of(cartpole), capacity=num, directory=mapped)
            for e in made[: num // 200]:
                tables[num].add(e)
        tables[large]._steps["left"].sum()  # every page of the mapped file is in the page cache
        rows = list[Row]()
        for name, rule in (("uniform", None), ("recent-first", Sampling(half_life=10_000.0))):
            kinds = {str(num): (lambda t=table, r=rule: t.sample(rng, NUM, r)) for num, table in tables.items()}
            found = blocks(kinds, 10 if quick else 40, CALLS)
            case = f"{name}: {large:,} transitions in mapped files ÷ {small:,}"
            rows.append(ratio("P7", case, found[str(large)], found[str(small)], 2.0, True))
            rows += [told("P7", f"{name}, {num:,} transitions, µs", found[str(num)]) for num in tables]
        rows.append(_plainly(made, small, large, rng, quick))
        return rows
    finally:
        shutil.rmtree(place)


def _plainly(made: list[Episode], small: int, large: int, rng: np.random.Generator, quick: bool) -> Row:
    """Return a row on what NumPy's own indexing loses when its columns no longer fit the processor's caches."""
    columns = {num: Plain(made[: num // 200]) for num in (small, large)}
    kinds = {str(num): (lambda p=plain: p.sample(rng)) for num, plain in columns.items()}
    found = blocks(kinds, 10 if quick else 40, CALLS)
    row = ratio("P7", f"NumPy alone, in memory: {large:,} ÷ {small:,}", found[str(large)], found[str(small)], 2.0, True)
    return {**row, "goal": "for information", "passed": True}


EXPERIMENTS = {"P5": p5, "P6": p6, "P7": p7}


@dataclasses.dataclass(frozen=True)
class Asked:
    """What the command line asks for."""

    quick: bool
    only: str
    profile: bool


def main() -> None:
    """Run the experiments and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a rough answer")
    parser.add_argument("--only", choices=[*EXPERIMENTS], default="", help="one of them")
    parser.add_argument("--profile", action="store_true", help="where an append spends its time, and nothing else")
    asked = Asked(**vars(parser.parse_args()))
    if asked.profile:
        profile()
        return
    began = time.monotonic()
    rows = [row for id_, run in EXPERIMENTS.items() if asked.only in ("", id_) for row in run(asked.quick)]
    tell("bench_store", began, rows, is_kept=not asked.quick and not asked.only)


if __name__ == "__main__":
    main()
