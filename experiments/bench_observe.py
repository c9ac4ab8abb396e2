"""How many steps a second one observer takes in, from Steps to durable Episodes with monitors updated; is memory flat?

    python -m experiments.bench_observe                   # some minutes
    python -m experiments.bench_observe --only speed      # or memory
    python -m experiments.bench_observe --quick           # a rough answer, and nothing is written

O1  one process, one thread: 64 clients' steps come interleaved, as a replica gathers them, 32 of each client in a
    message, and each end in a message of its own. The observer assembles them; the store makes up to 16 episodes
    durable in one commit on the disk; then their outcomes wait for their turn and the monitors read them. Beside it,
    in the same blocks: a dict of lists in the observer's place, which writes to the same kind of store, assembles only
    what comes in order, once and whole, and watches nothing

A block is 100,000 steps; a row is the median of the blocks, with the interval of order statistics. Messages are made
beforehand and not timed. Memory is the process's, read after each block, the first half left out as warm-up: the
slope is the median of the slopes of all pairs (Theil 1950, Sen 1968), with Sen's 95 % interval.

Prints a table, writes results/bench_observe.json and exits with 1 when a row falls short.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from scipy.stats import binom, theilslopes

from experiments.bench_gate import INFO, SEED, number
from experiments.report import tell
from flywheel.config import ObserveConfig
from flywheel.observe.observer import Observer
from flywheel.records import Episode, Release, Steps
from flywheel.store.intake import Intake
from flywheel.store.on_ray import GROUP
from flywheel.task import task_digest
from flywheel.tasks.cartpole import cartpole
from tests.observe.streams import real

CLIENTS, EACH = 64, 32
"""Clients that act at once, and steps of each in a message."""
BLOCK = 100_000
DIGEST = "d" * 64
RATE = 20_000.0
"""Steps a second that the stream's own clock shows."""
TICK_S = 0.25
"""Seconds after which the observer looks for episodes that nothing was heard of."""
WARM_UP = 0.5
"""Share of the blocks after which memory is looked at: ids of what was over within a minute are remembered."""
Row = dict[str, Any]


class Stream:
    """Steps of clients that play one episode after another, all of the same length, each begun at another time."""

    def __init__(self, length: int) -> None:
        """Begin with the clients somewhere in their first episodes, which began with this stream."""
        (played,) = real(1, seed=SEED)
        self._played = played
        self._length = length
        self._left = np.linspace(2, length, CLIENTS).astype(np.int64)
        self._t = np.zeros(CLIENTS, np.int64)
        self._ids = [f"e{i:09d}" for i in range(CLIENTS)]
        self._num = CLIENTS
        self.now = 1_000.0

    def block(self, num: int) -> list[tuple[float, Steps]]:
        """Return messages of at least so many steps, each with the time at which it comes."""
        found, steps = [], 0
        while steps < num:
            rows = list[tuple[int, str, int, bool]]()
            for _ in range(EACH):
                for client in range(CLIENTS):
                    is_end = self._t[client] == self._left[client]
                    rows.append((client, self._ids[client], int(self._t[client]), bool(is_end)))
                    self._t[client] += 1
                    if is_end:
                        self._t[client], self._left[client] = 0, self._length
                        self._ids[client], self._num = f"e{self._num:09d}", self._num + 1
            steps += sum(not row[3] for row in rows)
            self.now += len(rows) / RATE
            found.append((self.now, self._steps([row for row in rows if not row[3]])))
            found += [(self.now, self._steps([row])) for row in rows if row[3]]
        return found

    def _steps(self, rows: list[tuple[int, str, int, bool]]) -> Steps:
        t = np.array([row[2] for row in rows], np.int64)
        num, ends = len(rows), np.array([row[3] for row in rows])
        where = np.minimum(t, self._played.num_steps - 1)
        return Steps(
            episodes=tuple(row[1] for row in rows),
            t=t,
            digests=tuple("" if row[3] else DIGEST for row in rows),
            observations=self._played.observations[where],
            raw_actions=np.where(ends, 0, self._played.raw_actions[where]),
            logps=np.where(ends, 0.0, -0.7),
            draw_keys=np.array([row[0] for row in rows], np.uint64),
            rewards=np.where(t == 0, np.nan, 1.0),
            ends=tuple("truncated" if row[3] else "no" for row in rows),
            seen_at=np.full(num, self.now),
        )


class Ours:
    """The observer and the store, as their actors drive them."""

    def __init__(self, directory: Path) -> None:
        self._store, self._pending = Intake(directory), list[Episode]()
        self.observer = Observer(cartpole, ObserveConfig())
        self.observer.release(Release(digest=DIGEST, stage="full", share=1.0, previous=None, released_at=0.0), 0.05)
        self.num_kept, self._ticked_at = 0, 0.0

    def take(self, now: float, steps: Steps) -> None:
        """Take in a message; what it ends is durable, and read, with the next full commit."""
        assert not self.observer.crowded(steps, now)
        self.observer.add(steps, now)
        if any(not missing for missing in self.observer.missing(steps).values()):
            self._pending += self.observer.whole(steps)
        if len(self._pending) >= GROUP:
            answers = self._store.append(self._pending)
            self.observer.close(self._pending, answers, now)
            self.num_kept += len(self._pending)
            self._pending.clear()
            self.observer.tick(now)
        if now - self._ticked_at >= TICK_S:
            self._ticked_at = now
            assert not self.observer.overdue(now)


class Bare:
    """A dict of lists, and the same store."""

    def __init__(self, directory: Path) -> None:
        self._store, self._pending, self._task = Intake(directory), list[Episode](), task_digest(cartpole)
        self._open: dict[str, list[tuple[Any, ...]]] = {}
        self.num_kept = 0

    def take(self, now: float, steps: Steps) -> None:
        """Take in a message of rows that come in order."""
        columns = (steps.observations, steps.raw_actions, steps.rewards, steps.logps, steps.draw_keys, steps.digests)
        for id_, end, *row in zip(steps.episodes, steps.ends, *columns, strict=True):
            self._open.setdefault(id_, []).append(tuple(row))
            if end != "no":
                self._pending.append(self._episode(id_, end, now))
        if len(self._pending) >= GROUP:
            self._store.append(self._pending)
            self.num_kept += len(self._pending)
            self._pending.clear()

    def _episode(self, id_: str, end: Any, now: float) -> Episode:
        observations, actions, rewards, logps, keys, digests = zip(*self._open.pop(id_), strict=True)
        return Episode(
            id=id_,
            origin="production",
            task=self._task,
            parameters={},
            draw_key=int(keys[0]),
            digests=digests[:-1],
            observations=np.array(observations),
            raw_actions=np.array(actions[:-1]),
            rewards=np.array(rewards[1:]),
            logps=np.array(logps[:-1]),
            end=end,
            failed=False,
            started_at=now,
            ended_at=now,
        )


def timed(taker: Ours | Bare, messages: list[tuple[float, Steps]]) -> float:
    """Return the steps a second that a block went in with."""
    num, began = sum(len(steps.t) for _, steps in messages), time.perf_counter()
    for now, steps in messages:
        taker.take(now, steps)
    return num / (time.perf_counter() - began)


def speed(quick: bool) -> Iterator[Row]:
    """Yield the rows on steps a second."""
    for length in (500, 50):
        with tempfile.TemporaryDirectory() as directory:
            stream = Stream(length)
            ours, bare = Ours(Path(directory) / "ours"), Bare(Path(directory) / "bare")
            rates = []
            for i in range(4 if quick else 16):
                messages = stream.block(BLOCK)
                both = timed(ours, messages), timed(bare, messages)
                rates += [both] if i else []  # the first block meets empty caches, and a baseline that is learnt
            assert ours.num_kept == bare.num_kept > BLOCK / length and ours.observer.counts.conflicts == 0
            mine, theirs = np.array(rates).T
            yield rate(f"steps a second, episodes of {length}", mine, RATE)
            yield rate(f"steps a second, episodes of {length}: a dict of lists, no monitors", theirs, None)


def rate(case: str, values: np.ndarray[Any, Any], goal: float | None) -> Row:
    """Return a row on the median of blocks; without a goal it is for information."""
    ordered, num = np.sort(values), len(values)
    low, high, bound = (float(ordered[min(max(int(binom.ppf(p, num, 0.5)), 0), num - 1)]) for p in (0.025, 0.975, 0.05))
    return {
        "id": "O1", "case": case, "value": round(float(np.median(ordered))), "interval": [round(low), round(high)],
        "goal": INFO if goal is None else f">= {goal:,.0f}", "passed": goal is None or bound >= goal, "runs": num,
        "seed": SEED,
    }  # fmt: skip


def memory(quick: bool) -> Iterator[Row]:
    """Yield the rows on memory."""
    num_blocks, process = (24, psutil.Process()) if quick else (100, psutil.Process())
    with tempfile.TemporaryDirectory() as directory:
        stream, ours, looks = Stream(200), Ours(Path(directory)), list[float]()
        for _ in range(num_blocks):
            timed(ours, stream.block(BLOCK))
            looks.append(process.memory_info().rss / 2**20)
        counts = ours.observer.counts
        assert counts.kept > 0.9 * num_blocks * BLOCK and ours.observer.heard(0)[0] > 0.9 * ours.num_kept
    kept = looks[int(WARM_UP * num_blocks) :]
    millions = np.arange(len(kept)) * BLOCK / 1e6
    value, _, low, high = (float(each) for each in theilslopes(kept, millions, 0.95))
    yield {
        "id": "O1", "case": f"MiB per million steps, of {num_blocks * BLOCK / 1e6:g} million ({kept[0]:.1f} MiB after "
        f"warm-up, {kept[-1]:.1f} at the end)", "value": round(value, 3), "interval": [round(low, 3), round(high, 3)],
        "goal": "the interval contains 0", "passed": low <= 0.0, "runs": len(kept), "seed": SEED,
    }  # fmt: skip
    yield number(
        "O1", "rows that are not accounted for", _unaccounted(ours.observer), "0", not _unaccounted(ours.observer)
    )


def _unaccounted(observer: Observer) -> int:
    c = observer.counts
    held = c.kept + c.duplicates + c.conflicts + c.stray + c.truncated + observer.status(0)["counts"]["open_rows"]
    return int(c.received - held)


def main() -> None:
    """Measure, print, write, and exit with 1 when a row falls short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer blocks, and nothing is written")
    parser.add_argument("--only", choices=("speed", "memory"), help="measure one of them, and write nothing")
    given, began, found = parser.parse_args(), time.monotonic(), []
    for name, rows in (("speed", speed), ("memory", memory)):
        if given.only in (None, name):
            for row in rows(given.quick):
                print(f"{row['id']}  {row['value']}  {row['case']}", flush=True)
                found.append(row)
    tell("bench_observe", began, found, is_kept=not given.quick and not given.only)


if __name__ == "__main__":
    main()
