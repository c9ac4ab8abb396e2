"""Steps in memory, to be drawn from: what training reads while the store keeps the record."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flywheel.records import Array, Episode, Spec
from flywheel.sampling import Batch, Floats, Ints, Sampling, Sequences
from flywheel.store.priorities import Priorities
from flywheel.store.rows import Queue, gains, make, row_of, runs_of
from flywheel.store.weights import Entries, weights_of

_ENTRY = np.dtype(
    [
        ("start", np.int64),
        ("count", np.int64),
        ("episode", np.int64),
        ("own", np.int64),
        ("failed", np.bool_),
        ("policy", np.int64),
        ("origin", np.int64),
        ("started_at", np.float64),
        ("is_out", np.bool_),
    ]
)
_SPAN = np.dtype([("until", np.float64), ("weight", np.float64), ("end", np.int64), ("count", np.int64)])
"""What a draw reads of an entry: the weights' running sum up to its end, its own, where it ends, transitions."""
ROOM = 9 / 8
"""Rows for each transition of the capacity: every run has one row more than transitions, for its last observation."""
_ALIKE = Sampling()
SMALLEST = 1e-6
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
        kind = row_of(spec)
        self.capacity = max(1, min(capacity, int(most_mib * 2**20 / kind.itemsize / ROOM)))
        self._steps = make(kind, max(2, int(self.capacity * ROOM) + 1), directory)
        self._reached = 0  # rows that were ever used
        self._entries, self._head = Queue(_ENTRY), 0
        self._num_steps = num_steps
        self._gammas: Floats = np.power(gamma, np.arange(num_steps + 1.0))
        self._discounts = self._gammas.astype(np.float32)
        self._policies: dict[str, int] = {}
        self._origins: dict[str, int] = {}
        self._runs: dict[str, list[int]] = {}
        self._ids: dict[int, str] = {}
        self._out: dict[tuple[str, str], str] = {}
        self.num_episodes = self.num_transitions = 0
        self.num_of: dict[str, int] = {}
        self._drawn: tuple[Sampling, Floats, float] | None = None
        self._priorities: tuple[float, Priorities] | None = None
        self.greatest = 1.0

    @property
    def excluded(self) -> dict[tuple[str, str], str]:
        """What is excluded from training: ("policy", "origin" or "episode", its name) → why."""
        return dict(self._out)

    def add(self, episode: Episode) -> int:
        """Hold an episode, in place of what was held of it before, and return how many of its transitions are held."""
        self.drop(episode.id)
        number, own, num = self.num_episodes, self.num_of.get(episode.origin, 0), 0
        self.num_episodes, self.num_of[episode.origin] = number + 1, own + 1
        runs = []
        for begin, end in runs_of(episode):
            begin = max(begin, end - min(self.capacity, len(self._steps) - 1))
            runs.append(self._hold(episode, begin, end, number, own))
            num += end - begin
        runs = [run for run in runs if run >= self._entries.num_left]
        if runs:
            self._runs[episode.id], self._ids[number] = runs, episode.id
        self._drawn = None
        return num

    def count(self, num_episodes: int, num_of: Mapping[str, int]) -> None:
        """Let ages count from so many episodes at least, of all and by source, as some are held elsewhere."""
        before = self.num_episodes
        self.num_episodes = max(self.num_episodes, num_episodes)
        self.num_of |= {name: max(num, self.num_of.get(name, 0)) for name, num in num_of.items()}
        if self.num_episodes != before:
            self._drawn = None

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

    def lacks(self) -> bool:
        """Say whether something that was held was lost, since it was asked last: nothing ever is, in one process."""
        return False

    def sample(
        self, rng: np.random.Generator, num: int, rule: Sampling | None = None, among: tuple[float, int] | None = None
    ) -> Batch:
        """Return `num` transitions, drawn with replacement by a rule (all alike by default).

        Where transitions are drawn by priority, and this is a part of a whole, `among` is the sum of the whole's
        priorities and how many of its transitions have one; the importance weights are then not yet divided by the
        greatest. Raises IndexError where there is nothing that the rule may draw; ask `drawable` first.
        """
        return self._batch(*self._rows_by(rng, num, rule or _ALIKE, among))

    def masses(self, rule: Sampling) -> dict[str, tuple[float, float, int]]:
        """Return of each origin its transitions' weights by a rule summed up, their squares, and how many have one."""
        weights, _, _ = self._chances(rule)
        of, count = self._entries.records["origin"], self._entries.records["count"]
        sums = [np.bincount(of, part * count, len(self._origins)) for part in (weights, weights**2, weights > 0.0)]
        return {name: (float(sums[0][i]), float(sums[1][i]), int(sums[2][i])) for name, i in self._origins.items()}

    def drawable(self, rule: Sampling | None = None) -> int:
        """Return how many transitions have a chance to be drawn."""
        weights, _, _ = self._chances(rule or _ALIKE)
        return int(self._entries.records["count"][weights > 0.0].sum())

    def sequences(
        self,
        rng: np.random.Generator,
        num: int,
        length: int,
        rule: Sampling | None = None,
        among: tuple[float, int] | None = None,
    ) -> Sequences:
        """Return `num` stretches of up to `length` steps, each of which begins at a transition drawn as by `sample`."""
        rows, weights, effective = self._rows_by(rng, num, rule or _ALIKE, among)
        return self._stretches(rows, np.minimum(self._steps["left"][rows], length), length, weights, effective)

    def whole(self, rng: np.random.Generator, num: int, rule: Sampling | None = None) -> Sequences:
        """Return `num` whole runs, drawn in proportion to their length by the rule; UsageError for one by priority.

        An episode is one run where all its rewards are known and one policy acted.
        """
        rows, weights, effective = self._rows_by(rng, num, (rule or _ALIKE).of_runs(), None)
        held = self._entries.records[self._steps["entry"][rows] - self._entries.num_left]
        return self._stretches(held["start"], held["count"], int(held["count"].max(initial=0)), weights, effective)

    def prioritize(self, batch: Batch | Sequences | Drawn, errors: Floats) -> None:
        """Set the priorities of a batch's transitions to their TD errors float64[N]; those that have left stay away."""
        rows, stamps = batch.rows, batch.stamps
        here = self._steps["entry"][rows] == stamps
        here &= ~self._entries.records["is_out"][np.where(here, stamps - self._entries.num_left, 0)]
        sizes = np.abs(errors[here]) + SMALLEST
        self.greatest = max(self.greatest, float(sizes.max(initial=0.0)))
        if self._priorities is not None:
            alpha, tree = self._priorities
            order = np.argsort(rows[here], kind="stable")
            tree.set(rows[here][order], sizes[order] ** alpha)

    # Holding

    def _hold(self, episode: Episode, begin: int, end: int, number: int, own: int) -> int:
        size, count = end - begin + 1, end - begin
        while self.num_transitions + count > self.capacity or self._is_in_the_way(size):
            self._evict()
        start, self._head = self._head, self._head + size
        self._reached = max(self._reached, self._head)
        policy = self._policies.setdefault(episode.digests[begin], len(self._policies))
        origin = self._origins.setdefault(episode.origin, len(self._origins))
        is_out = self._is_out(episode.digests[begin], episode.origin, episode.id)
        about = (episode.failed, policy, origin, episode.started_at, is_out)
        run = self._entries.append((start, count, number, own, *about))
        seen = self._steps[start : start + size]
        seen["observation"], seen["left"] = episode.observations[begin : end + 1], np.arange(count, -1, -1)
        steps, seen["entry"][count] = seen[:count], -1
        steps["action"], steps["logp"] = episode.raw_actions[begin:end], episode.logps[begin:end]
        steps["reward"] = episode.rewards[begin:end]
        steps["gain"] = gains(episode.rewards[begin:end], self._gammas[: self._num_steps])
        steps["entry"], steps["episode"], steps["policy"] = run, number, policy
        steps["is_final"] = episode.end == "terminated" and end == episode.num_steps
        self.num_transitions += count
        self._prioritize(np.arange(start, start + count), 0.0 if is_out else self.greatest)
        return run

    def _is_in_the_way(self, size: int) -> bool:
        """Say whether the oldest entry must leave before `size` rows in one piece are free at the head."""
        num_rows = len(self._steps)
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
        self._steps["left"][rows], self._steps["entry"][rows] = 0, -1
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
                self._prioritize(self._rows(record), 0.0 if is_out else self.greatest)
        self._drawn = None

    # Drawing

    def _chances(self, rule: Sampling) -> tuple[Floats, Floats, float]:
        """Return the entries' weights, their running sum over transitions, and how many equal ones would say as much.

        What was computed for the rule stands until an entry comes, leaves or is excluded.
        """
        if self._drawn is None or self._drawn[0] != rule:
            held = self._entries.records
            names = ("count", "failed", "policy", "origin", "started_at", "is_out")
            num_of = np.array([self.num_of[name] for name in self._origins], np.int64)
            ages = {"age": self.num_episodes - 1 - held["episode"], "own_age": num_of[held["origin"]] - 1 - held["own"]}
            weights = weights_of(rule, Entries(**{n: held[n] for n in names}, **ages), self._policies, self._origins)
            sums = weights * held["count"]
            squares = float((weights * sums).sum())
            self._drawn = rule, np.cumsum(sums), float(sums.sum()) ** 2 / squares if squares else 0.0
            self._weights, self._spans = weights, np.zeros(len(held), _SPAN)
            self._spans["until"], self._spans["weight"] = self._drawn[1], weights
            self._spans["end"], self._spans["count"] = held["start"] + held["count"], held["count"]
        return self._weights, self._drawn[1], self._drawn[2]

    def _rows_by(
        self, rng: np.random.Generator, num: int, rule: Sampling, among: tuple[float, int] | None
    ) -> tuple[Ints, Array, float]:
        """Return rows int64[num] drawn by a rule, their importance weights, and the effective number."""
        if rule.alpha:
            return self._by_priority(rng, num, rule, among)
        rows, effective = self._by_entry(rng, num, rule)
        return rows, np.ones(num, np.float32), effective

    def _by_entry(self, rng: np.random.Generator, num: int, rule: Sampling) -> tuple[Ints, float]:
        if rule == _ALIKE and not self._out and 2 * self.num_transitions > self._reached:
            return self._evenly(rng, num), float(self.num_transitions)
        _, sums, effective = self._chances(rule)
        if not effective:
            raise IndexError("The table holds no transition that this rule may draw.")
        at = rng.random(num) * sums[-1]
        of = self._spans.take(np.searchsorted(sums, at, side="right"), mode="clip")
        # the rest of the draw is uniform within the entry: it says which of its transitions
        back = ((of["until"] - at) / of["weight"]).astype(np.int64)
        return np.asarray(of["end"] - 1 - np.minimum(back, of["count"] - 1)), effective

    def _evenly(self, rng: np.random.Generator, num: int) -> Ints:
        """Return rows int64[num] drawn from all alike; those without a transition, less than half, are drawn again."""
        found, left = list[Ints](), num
        full = self.num_transitions / self._reached
        while left > 0:
            more = int(left / full + 3.0 * (left * (1.0 - full)) ** 0.5) + 4
            rows = rng.integers(0, self._reached, more)
            found.append(rows[self._steps.take(rows, mode="clip")["left"] > 0][:left])
            left -= len(found[-1])
        return found[0] if len(found) == 1 else np.concatenate(found)

    def priorities(self, alpha: float) -> Priorities:
        """Return the transitions' priorities to the power of alpha; all are alike where another one stood before."""
        if self._priorities is None or self._priorities[0] != alpha:
            self._priorities = alpha, Priorities(len(self._steps))
            for record in self._entries.records[~self._entries.records["is_out"]]:
                self._prioritize(self._rows(record), self.greatest)
        return self._priorities[1]

    def _by_priority(
        self, rng: np.random.Generator, num: int, rule: Sampling, among: tuple[float, int] | None
    ) -> tuple[Ints, Floats, float]:
        tree = self.priorities(rule.alpha)
        if not tree.total:
            raise IndexError("The table holds no transition that this rule may draw.")
        rows = tree.find(rng.random(num) * tree.total)
        total, drawable = among or (tree.total, self.drawable())
        chances = tree.of(rows) / total
        weights = (chances * drawable) ** -rule.beta
        return rows, weights if among else weights / weights.max(), float(1.0 / chances.mean())

    def _prioritize(self, rows: Ints, size: float) -> None:
        if self._priorities is not None:
            alpha, tree = self._priorities
            tree.set(rows, size**alpha if size else 0.0)

    def _batch(self, rows: Ints, weights: Array, effective: float) -> Batch:
        held = self._steps.take(rows, mode="clip")
        left = held["left"]
        steps = np.minimum(left, self._num_steps)
        ends = held["is_final"] & (left <= self._num_steps)
        whole = np.ascontiguousarray
        return Batch(
            observations=whole(held["observation"]),
            actions=whole(held["action"]),
            rewards=whole(held["gain"]),
            next_observations=whole(self._steps.take(rows + steps, mode="clip")["observation"]),
            discounts=self._discounts.take(steps) * ~ends,
            terminated=ends,
            logps=whole(held["logp"]),
            **self._provenance(rows, held, weights, effective),
        )

    def _stretches(self, rows: Ints, lengths: Ints, length: int, weights: Array, effective: float) -> Sequences:
        """Return the steps from rows int64[N] on, of each so many as int64[N] `lengths` say, padded to a length."""
        steps, first, whole = np.arange(length + 1), self._steps.take(rows), np.ascontiguousarray
        seen = self._steps.take(rows[:, None] + np.minimum(steps, lengths[:, None]))
        at = self._steps.take(rows[:, None] + np.minimum(steps[:-1], lengths[:, None] - 1))
        mask = steps[:-1] < lengths[:, None]
        return Sequences(
            observations=whole(seen["observation"]),
            actions=whole(at["action"]),
            rewards=np.where(mask, at["reward"], np.float32(0.0)),
            terminated=at["is_final"] & (at["left"] == 1) & mask,
            logps=whole(at["logp"]),
            mask=mask,
            **self._provenance(rows, first, weights, effective),
        )

    def _provenance(self, rows: Ints, held: Array, weights: Array, effective: float) -> dict[str, Any]:
        """Return a Provenance's fields, where `held` are the steps at these rows."""
        return {
            "weights": np.asarray(weights, np.float32), "rows": rows, "stamps": np.ascontiguousarray(held["entry"]),
            "ages": self.num_episodes - 1 - held["episode"], "policies": tuple(self._policies),
            "policy": held["policy"].astype(np.int64), "effective": effective,
        }  # fmt: skip


class Drawn(NamedTuple):
    """What is left to say of a batch when its errors are known."""

    rows: Ints
    stamps: Ints
