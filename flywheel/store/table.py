"""Steps in memory, to be drawn from: what training reads while the store keeps the record."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flywheel.records import Episode, Spec
from flywheel.sampling import Batch, Floats, Ints, Sampling
from flywheel.store.columns import Columns, Queue, bytes_of_row
from flywheel.store.priorities import Priorities
from flywheel.store.weights import Entries, weights_of

_ENTRY = np.dtype(
    [
        ("start", np.int64),
        ("count", np.int64),
        ("episode", np.int64),
        ("failed", np.bool_),
        ("policy", np.int64),
        ("origin", np.int64),
        ("started_at", np.float64),
        ("is_out", np.bool_),
    ]
)
ROOM = 9 / 8
"""Rows for each transition of the capacity: every run has one row more than transitions, for its last observation."""
_ALIKE = Sampling()
_SMALLEST = 1e-6
"""What is added to each TD error, so that no transition is forgotten for good (Schaul et al. 2016, section 3.3)."""


class Table:
    """The last transitions of a task, whole episodes in one piece; the oldest leave when it is full.

    An episode is cut where a reward isn't known and where another policy acts; each run of steps is an entry.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        capacity: int = 1_000_000,
        most_mib: float = 4096.0,
        num_steps: int = 1,
        gamma: float = 0.99,
        directory: Path | None = None,
    ) -> None:
        """Hold up to `capacity` transitions and `most_mib` MiB; in mapped files of `directory`, where one is given.

        `num_steps` is how many steps a transition looks ahead (fewer at a run's end), each discounted by `gamma`.
        """
        most = int(most_mib * 2**20 / bytes_of_row(spec))
        self.capacity = max(1, min(capacity, int(most / ROOM)))
        self._columns = Columns(spec, max(2, int(self.capacity * ROOM) + 1), directory)
        self._entries, self._head = Queue(_ENTRY), 0
        self._num_steps = num_steps
        self._gammas = gamma ** np.arange(num_steps + 1)
        self._policies: dict[str, int] = {}
        self._origins: dict[str, int] = {}
        self._runs: dict[str, list[int]] = {}
        self._ids: dict[int, str] = {}
        self._out: dict[tuple[str, str], str] = {}
        self._num_episodes = self.num_transitions = 0
        self._drawn: tuple[Sampling, Floats, float] | None = None
        self._priorities: tuple[float, Priorities] | None = None
        self._greatest = 1.0

    @property
    def excluded(self) -> dict[tuple[str, str], str]:
        """What is excluded from training: ("policy", "origin" or "episode", its name) → why."""
        return dict(self._out)

    def add(self, episode: Episode) -> int:
        """Hold an episode, in place of what was held of it before, and return how many of its transitions are held."""
        self.drop(episode.id)
        number, num = self._num_episodes, 0
        self._num_episodes += 1
        runs = []
        for begin, end in _runs(episode):
            begin = max(begin, end - min(self.capacity, self._columns.num_rows - 1))
            runs.append(self._hold(episode, begin, end, number))
            num += end - begin
        runs = [run for run in runs if run >= self._entries.num_left]
        if runs:
            self._runs[episode.id], self._ids[number] = runs, episode.id
        self._drawn = None
        return num

    def drop(self, id_: str) -> None:
        """Forget an episode; one that isn't held is none."""
        for run in self._runs.pop(id_, ()):
            record = self._entries.records[run - self._entries.num_left]
            self._clear(record)
            record["count"] = 0
            self._drawn = None

    def exclude(self, kind: str, name: str, why: str) -> None:
        """Draw nothing more of a "policy", an "origin" or an "episode", held or still to come."""
        self._out[kind, name] = why
        self._mark()

    def readmit(self, kind: str, name: str) -> None:
        """Draw again what was excluded by these words."""
        del self._out[kind, name]
        self._mark()

    def sample(self, rng: np.random.Generator, num: int, rule: Sampling | None = None) -> Batch:
        """Return `num` transitions, drawn with replacement by a rule (all alike by default).

        Raises IndexError where there is nothing that the rule may draw; ask `drawable` first.
        """
        rule = rule or _ALIKE
        if rule.alpha:
            rows, weights, effective = self._by_priority(rng, num, rule)
        else:
            rows, effective = self._by_entry(rng, num, rule)
            weights = np.ones(num, np.float32)
        return self._batch(rows, weights, effective)

    def drawable(self, rule: Sampling | None = None) -> int:
        """Return how many transitions have a chance to be drawn."""
        weights, _, _ = self._chances(rule or _ALIKE)
        return int(self._entries.records["count"][weights > 0.0].sum())

    def sequences(self, rng: np.random.Generator, num: int, length: int, rule: Sampling | None = None) -> Sequences:
        """Return `num` stretches of up to `length` steps that follow each other; each begins at a drawn transition."""
        rows, _ = self._by_entry(rng, num, rule or _ALIKE)
        c, lengths = self._columns, np.minimum(self._columns.left[rows], length)
        steps = np.arange(length)
        at = rows[:, None] + np.minimum(steps, lengths[:, None] - 1)
        mask = steps < lengths[:, None]
        seen = rows[:, None] + np.minimum(np.arange(length + 1), lengths[:, None])
        return Sequences(
            c.observations[seen], c.actions[at], np.where(mask, c.rewards[at], 0), c.ends[at] & mask, c.logps[at], mask
        )

    def whole(self, rng: np.random.Generator, num: int, rule: Sampling | None = None) -> list[Sequences]:
        """Return `num` whole runs, drawn in proportion to their length by the rule."""
        rows, _ = self._by_entry(rng, num, rule or _ALIKE)
        found, c = [], self._columns
        for record in self._entries.records[c.entry[rows] - self._entries.num_left]:
            start, end = int(record["start"]), int(record["start"] + record["count"])
            here, seen = slice(start, end), slice(start, end + 1)
            found.append(
                Sequences(
                    c.observations[seen][None], c.actions[here][None], c.rewards[here][None], c.ends[here][None],
                    c.logps[here][None], np.ones((1, end - start), np.bool_),
                )
            )  # fmt: skip
        return found

    def prioritize(self, batch: Batch, errors: Floats) -> None:
        """Set the priorities of a batch's transitions to their TD errors float64[N]; those that have left stay away."""
        here = self._columns.entry[batch.rows] == batch.stamps
        here &= ~self._entries.records["is_out"][np.where(here, batch.stamps - self._entries.num_left, 0)]
        sizes = np.abs(errors[here]) + _SMALLEST
        self._greatest = max(self._greatest, float(sizes.max(initial=0.0)))
        if self._priorities is not None:
            alpha, tree = self._priorities
            order = np.argsort(batch.rows[here], kind="stable")
            tree.set(batch.rows[here][order], sizes[order] ** alpha)

    # Holding

    def _hold(self, episode: Episode, begin: int, end: int, number: int) -> int:
        size, count = end - begin + 1, end - begin
        while self.num_transitions + count > self.capacity or self._is_in_the_way(size):
            self._evict()
        start, c = self._head, self._columns
        self._head += size
        rows = slice(start, start + count)
        c.observations[start : start + size] = episode.observations[begin : end + 1]
        c.actions[rows], c.rewards[rows] = episode.raw_actions[begin:end], episode.rewards[begin:end]
        c.logps[rows], c.ends[rows] = episode.logps[begin:end], False
        c.ends[start + count - 1] = episode.end == "terminated" and end == episode.num_steps
        c.left[start : start + size] = np.arange(count, -1, -1)
        policy = self._policies.setdefault(episode.digests[begin], len(self._policies))
        origin = self._origins.setdefault(episode.origin, len(self._origins))
        is_out = self._is_out(episode.digests[begin], episode.origin, episode.id)
        about = (episode.failed, policy, origin, episode.started_at, is_out)
        run = self._entries.append((start, count, number, *about))
        c.entry[rows], c.entry[start + count] = run, -1
        self.num_transitions += count
        self._prioritize(np.arange(start, start + count), 0.0 if is_out else self._greatest)
        return run

    def _is_in_the_way(self, size: int) -> bool:
        """Say whether the oldest entry must leave before `size` rows in one piece are free at the head."""
        num_rows = self._columns.num_rows
        if not len(self._entries):
            self._head = 0
            return False
        oldest = int(self._entries.records["start"][0])
        if oldest < self._head:
            if self._head + size <= num_rows:
                return False
            self._head = 0
        return self._head + size > oldest

    def _evict(self) -> None:
        record = self._entries.records[0]
        self._clear(record)
        run, number = self._entries.num_left, int(record["episode"])
        if (id_ := self._ids.get(number)) is not None and run in self._runs.get(id_, ()):
            self._runs[id_].remove(run)
            if not self._runs[id_]:
                del self._runs[id_], self._ids[number]
        self._entries.leave()

    def _clear(self, record: np.void) -> None:
        """Let nothing of a run be drawn any more."""
        rows = self._rows(record)
        self.num_transitions -= int(record["count"])
        self._columns.left[rows] = 0
        self._columns.entry[rows] = -1
        self._prioritize(rows, 0.0)

    @staticmethod
    def _rows(record: np.void) -> Ints:
        return np.arange(record["start"], record["start"] + record["count"])

    def _is_out(self, policy: str, origin: str, id_: str) -> bool:
        return any(each in self._out for each in (("policy", policy), ("origin", origin), ("episode", id_)))

    def _mark(self) -> None:
        """Set what is excluded of the entries that are held."""
        policies, origins = list(self._policies), list(self._origins)
        for record in self._entries.records:
            id_ = self._ids.get(int(record["episode"]), "")
            is_out = self._is_out(policies[record["policy"]], origins[record["origin"]], id_)
            if is_out != record["is_out"]:
                record["is_out"] = is_out
                self._prioritize(self._rows(record), 0.0 if is_out else self._greatest)
        self._drawn = None

    # Drawing

    def _chances(self, rule: Sampling) -> tuple[Floats, Floats, float]:
        """Return the entries' weights, their running sum over transitions, and how many equal ones would say as much.

        What was computed for the rule stands until an entry comes, leaves or is excluded.
        """
        if self._drawn is None or self._drawn[0] != rule:
            held = self._entries.records
            names = ("episode", "count", "failed", "policy", "origin", "started_at", "is_out")
            weights = weights_of(rule, Entries(**{n: held[n] for n in names}), self._policies, self._origins)
            sums = weights * held["count"]
            squares = float((weights * sums).sum())
            self._drawn = rule, np.cumsum(sums), float(sums.sum()) ** 2 / squares if squares else 0.0
            self._weights, self._starts, self._counts = weights, held["start"].copy(), held["count"].copy()
        return self._weights, self._drawn[1], self._drawn[2]

    def _by_entry(self, rng: np.random.Generator, num: int, rule: Sampling) -> tuple[Ints, float]:
        if rule == _ALIKE and not self._out and 2 * self.num_transitions > self._columns.num_rows:
            return self._evenly(rng, num), float(self.num_transitions)
        weights, sums, effective = self._chances(rule)
        if not effective:
            raise IndexError("The table holds no transition that this rule may draw.")
        at = rng.random(num) * sums[-1]
        entry = np.searchsorted(sums, at, side="right")
        # the rest of the draw is uniform within the entry: it says which of its transitions
        back = ((sums.take(entry) - at) / weights.take(entry)).astype(np.int64)
        counts = self._counts.take(entry)
        return self._starts.take(entry) + counts - 1 - np.minimum(back, counts - 1), effective

    def _evenly(self, rng: np.random.Generator, num: int) -> Ints:
        """Return rows int64[num] drawn from all alike; those without a transition, less than half, are drawn again."""
        found, left = list[Ints](), num
        while left > 0:
            rows = rng.integers(0, self._columns.num_rows, left + left // 4 + 8)
            found.append(rows[self._columns.left.take(rows) > 0][:left])
            left -= len(found[-1])
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _by_priority(self, rng: np.random.Generator, num: int, rule: Sampling) -> tuple[Ints, Floats, float]:
        if self._priorities is None or self._priorities[0] != rule.alpha:
            self._priorities = rule.alpha, Priorities(self._columns.num_rows)
            for record in self._entries.records[~self._entries.records["is_out"]]:
                self._prioritize(self._rows(record), self._greatest)
        tree = self._priorities[1]
        if not tree.total:
            raise IndexError("The table holds no transition that this rule may draw.")
        rows = tree.find(rng.random(num) * tree.total)
        chances = tree.of(rows) / tree.total
        weights = (chances * self.drawable()) ** -rule.beta
        return rows, weights / weights.max(), float(1.0 / chances.mean())

    def _prioritize(self, rows: Ints, size: float) -> None:
        if self._priorities is not None:
            alpha, tree = self._priorities
            tree.set(rows, size**alpha if size else 0.0)

    def _batch(self, rows: Ints, weights: Floats, effective: float) -> Batch:
        c = self._columns
        if self._num_steps == 1:
            rewards, last = c.rewards.take(rows), rows
            discounts = np.full(len(rows), self._gammas[1], np.float32)
        else:
            steps = np.minimum(c.left.take(rows), self._num_steps)
            rewards = np.zeros(len(rows), np.float32)
            for k in range(self._num_steps):
                more = steps > k
                rewards[more] += np.float32(self._gammas[k]) * c.rewards[rows[more] + k]
            last = rows + steps - 1
            discounts = self._gammas.take(steps).astype(np.float32)
        ends, stamps = c.ends.take(last), c.entry.take(rows)
        held, of = self._entries.records, stamps - self._entries.num_left
        return Batch(
            observations=c.observations.take(rows, axis=0),
            actions=c.actions.take(rows, axis=0),
            rewards=rewards,
            next_observations=c.observations.take(last + 1, axis=0),
            discounts=discounts * ~ends,
            terminated=ends,
            logps=c.logps.take(rows),
            weights=np.asarray(weights, np.float32),
            rows=rows,
            stamps=stamps,
            ages=self._num_episodes - 1 - held["episode"][of],
            policies=tuple(self._policies),
            policy=held["policy"][of],
            effective=effective,
        )


class Sequences(NamedTuple):
    """N stretches of L steps; steps past a stretch's end repeat its last one, and the mask leaves them out."""

    observations: np.ndarray
    """dtype[N, L + 1, *o]"""
    actions: np.ndarray
    """dtype[N, L, *a]"""
    rewards: np.ndarray
    """float32[N, L]"""
    terminated: np.ndarray
    """bool[N, L]"""
    logps: np.ndarray
    """float32[N, L]"""
    mask: np.ndarray
    """bool[N, L]: True where there is a step"""


def _runs(episode: Episode) -> Iterator[tuple[int, int]]:
    """Yield (begin, end) of each run of steps with known rewards by one policy."""
    known, digests = ~np.isnan(episode.rewards), episode.digests
    if known.all() and digests and digests[0] and digests.count(digests[0]) == len(digests):
        yield 0, episode.num_steps
        return
    cuts = [t for t in range(1, len(digests)) if known[t] != known[t - 1] or digests[t] != digests[t - 1]]
    for begin, end in zip([0, *cuts], [*cuts, len(digests)], strict=True):
        if end > begin and known[begin] and digests[begin]:
            yield begin, end
