"""Several tables, on several nodes, drawn from as if they were one: how episodes are dealt, and draws are split.

Of the whole table's draws a shard gets its share: the sum of its transitions' weights, by the whole's ages and quotas,
of the sum of all. So many draws as a multinomial number says are made there by the same rule, which makes every draw
one of the whole's: P(shard) P(transition | shard) = (W_k / W) (w_i / W_k) = w_i / W.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from flywheel.errors import FlywheelError, LostError
from flywheel.records import Episode
from flywheel.sampling import Batch, Floats, Ints, Sampling, Sequences
from flywheel.store.rows import runs_of
from flywheel.store.shard import D, Shard, Standing, Told
from flywheel.store.table import SMALLEST, Drawn

BLOCK = 16
"""Batches that are drawn in one go, where nothing comes between them: a call to a shard takes a millisecond."""
GROUP = 64
"""Episodes that wait for the next draw, at most, before they are sent."""
ROWS = 40
"""Bits of a row's number; those above say which shard it is in."""
_ALIKE = Sampling()
_ATTEMPTS = 5
"""Draws that begin anew because a shard was lost meanwhile, in a row."""


class Ports(Protocol):
    """The shards, wherever they are."""

    def __len__(self) -> int:
        """Return how many there are."""

    def ask(self, calls: Mapping[int, tuple[Any, ...]]) -> dict[int, Any]:
        """Return what shards answer, all asked at once: number of the shard → (name of Shard's method, arguments)."""


class Here:
    """Shards in this process."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        """Ask these."""
        self._shards = shards

    def __len__(self) -> int:
        return len(self._shards)

    def ask(self, calls: Mapping[int, tuple[Any, ...]]) -> dict[int, Any]:
        """As Ports.ask."""
        return {k: getattr(self._shards[k], name)(*arguments) for k, (name, *arguments) in calls.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """How the draws of a rule fall to the shards."""

    shares: Floats
    """float64[K]: which of them a draw falls to"""
    rules: tuple[Sampling, ...]
    """What each draws by: the rule, with the quotas that are due there."""
    drawable: int
    effective: float
    total: float
    """Sum of all priorities."""


def deal(id_: str, num: int) -> int:
    """Return which of `num` shards holds an episode: the same one in every process, evenly over ids."""
    return int.from_bytes(hashlib.blake2b(id_.encode(), digest_size=8, person=b"shards").digest()) % num


def split(rule: Sampling, standings: Sequence[Standing]) -> Split:
    """Return how a rule's draws fall to the shards, so that together they are one table's."""
    origins = sorted({name for each in standings for name in each.masses})
    held = np.array([[each.masses.get(name, (0.0, 0.0, 0)) for name in origins] for each in standings], np.float64)
    masses, squares, counts = np.moveaxis(held.reshape(len(standings), len(origins), 3), 2, 0)
    total = float(sum(each.total for each in standings))
    rules: list[Sampling] = [rule] * len(standings)
    if rule.quotas:
        wanted, whole = np.array([rule.quotas.get(name, 0.0) for name in origins]), masses.sum(axis=0)
        factors = np.divide(wanted, whole, out=np.zeros(len(origins)), where=whole > 0.0)
        masses, squares, counts = masses * factors, squares * factors**2, counts * (factors > 0.0)
        rules = [dataclasses.replace(rule, quotas=dict(zip(origins, part.tolist(), strict=True))) for part in masses]
    shares = np.array([each.total for each in standings]) if rule.alpha else masses.sum(axis=1)
    return Split(
        shares=shares / (shares.sum() or 1.0),
        rules=tuple(rules),
        drawable=int(counts.sum()),
        effective=float(masses.sum() ** 2 / squares.sum()) if squares.any() else 0.0,
        total=total,
    )


class Shards:
    """What one table would be; its methods are Table's."""

    def __init__(self, ports: Ports, capacity: int, *, is_new: bool = True) -> None:
        """Forget what the shards hold, which is `capacity` transitions each; or only read what another puts there."""
        self._ports, self._capacity, self._is_alone = ports, capacity, is_new
        self._told = [_Waiting() for _ in range(len(ports))]
        self._born: list[int | None] = [None] * len(ports)
        self._out: dict[tuple[str, str], str] = {}
        self._num_episodes, self._greatest = 0, 1.0
        self._num_of: dict[str, int] = {}
        self._splits: list[tuple[Sampling, Split]] = []
        self._block: tuple[Sampling, int, list[Batch]] | None = None
        self._has_lost = False
        self._num_transitions = 0
        if is_new:
            ports.ask({k: ("begin",) for k in range(len(ports))})
        self._look(_ALIKE)

    @property
    def excluded(self) -> dict[tuple[str, str], str]:
        """What is excluded from training: ("policy", "origin" or "episode", its name) → why."""
        return dict(self._out)

    @property
    def num_transitions(self) -> int:
        """Transitions that are held."""
        self._look(_ALIKE)
        return self._num_transitions

    def add(self, episode: Episode) -> int:
        """Hold an episode, in place of what was held of it before, and return how many of its transitions are held."""
        waiting = self._told[deal(episode.id, len(self._ports))]
        own = self._num_of.get(episode.origin, 0)
        waiting.episodes.append((episode, self._num_episodes, own))
        self._num_episodes, self._num_of[episode.origin] = self._num_episodes + 1, own + 1
        self._forget()
        if len(waiting.episodes) >= GROUP:
            self._send()
        return sum(min(end - begin, self._capacity) for begin, end in runs_of(episode))

    def lacks(self) -> bool:
        """Say whether a shard that was held is empty since it was asked last, as its process or node was lost."""
        self._forget()
        self._look(_ALIKE)
        lost, self._has_lost = self._has_lost, False
        return lost

    def exclude(self, kind: str, name: str, why: str) -> None:
        """Draw nothing more of a "policy", an "origin" or an "episode", held or still to come."""
        self._out[kind, name] = why
        for waiting in self._told:
            waiting.barred.append(("exclude", kind, name, why))
        self._forget()

    def readmit(self, kind: str, name: str) -> None:
        """Draw again what was excluded by these words."""
        why = self._out.pop((kind, name))
        for waiting in self._told:
            waiting.barred.append(("readmit", kind, name, why))
        self._forget()

    def drawable(self, rule: Sampling | None = None) -> int:
        """Return how many transitions have a chance to be drawn."""
        return self._look(rule or _ALIKE).drawable

    def sample(self, rng: np.random.Generator, num: int, rule: Sampling | None = None) -> Batch:
        """Return `num` transitions, drawn with replacement by a rule (all alike by default), each like one table's.

        Without priorities BLOCK batches are drawn in one go, and shuffled; what is added meanwhile ends a block.
        Raises IndexError where there is nothing that the rule may draw, LostError where that was lost since `lacks`
        was asked last.
        """
        rule = rule or _ALIKE
        if self._block is None or self._block[:2] != (rule, num) or not self._block[2]:
            parts = 1 if rule.alpha else BLOCK
            self._block = rule, num, _cut(self._draw(Batch, rng, num * parts, rule, "part"), parts)
        return self._block[2].pop()

    def sequences(self, rng: np.random.Generator, num: int, length: int, rule: Sampling | None = None) -> Sequences:
        """As Table.sequences, each stretch as likely as from one table; raises as `sample`."""
        return self._draw(Sequences, rng, num, rule or _ALIKE, "sequences", length)

    def whole(self, rng: np.random.Generator, num: int, rule: Sampling | None = None) -> Sequences:
        """As Table.whole, each run as likely as from one table; raises as `sample`."""
        return self._draw(Sequences, rng, num, (rule or _ALIKE).of_runs(), "whole")

    def prioritize(self, batch: Batch | Sequences, errors: Floats) -> None:
        """Set the priorities of a batch's transitions to their TD errors float64[N]; those that have left stay away."""
        of = batch.rows >> ROWS
        for k in np.unique(of).tolist():
            mine = of == k
            drawn = Drawn(batch.rows[mine] & ((1 << ROWS) - 1), batch.stamps[mine])
            self._told[k].errors.append((drawn, errors[mine]))
        self._greatest = max(self._greatest, float(np.abs(errors).max(initial=0.0)) + SMALLEST)
        self._forget()

    def _draw(self, kind: type[D], rng: np.random.Generator, num: int, rule: Sampling, word: str, *more: int) -> D:
        """Return what `num` draws by a rule come to, of which each shard makes its part by Shard's method `word`."""
        for _ in range(_ATTEMPTS):
            found = self._look(rule)
            if not found.drawable and self._has_lost:
                raise LostError(
                    "The processes that held what is learnt from were lost, with their nodes or by themselves, and the "
                    "round with them."
                )
            if not found.drawable:
                raise IndexError("The shards hold no transition that this rule may draw.")
            counts = rng.multinomial(num, found.shares)
            among = found.total, found.drawable
            calls = {
                k: (word, int(counts[k]), found.rules[k], rng.integers(0, 2**32, 4).tolist(), among, *more)
                for k in np.flatnonzero(counts).tolist()
            }
            parts: dict[int, tuple[int, D | None]] = self._ports.ask(calls)
            drawn = {k: part for k, (born, part) in parts.items() if part is not None and born == self._born[k]}
            if len(drawn) == len(parts):
                return _merged(kind, drawn, rng, None if rule.alpha else found.effective)
            self._forget()
        raise FlywheelError(
            f"A draw found a shard empty {_ATTEMPTS} times in a row: shards die as soon as they are filled, and Ray's "
            "log says of what (of too little memory, mostly: lower train.replay.most_mib)."
        )

    def _look(self, rule: Sampling) -> Split:
        """Send what waits, and return how the rule's draws fall to the shards; what was found out stands until then."""
        for known, found in self._splits if self._is_alone else ():
            if known == rule:
                return found
        standings = self._standings(rule)
        self._num_transitions = sum(each.num_transitions for each in standings)
        self._splits = [*self._splits[-3:], (rule, split(rule, standings))]
        return self._splits[-1][1]

    def _forget(self) -> None:
        """Know of no draws any more, because something came, left, or was said of what is held."""
        self._splits, self._block = [], None

    def _standings(self, rule: Sampling) -> list[Standing]:
        """Return the shards' standings; one that came back empty is told first what is excluded."""
        for _ in range(_ATTEMPTS):
            found = self._tell("standing", rule)
            for each in found.values():
                self._num_episodes = max(self._num_episodes, each.num_episodes)
                self._num_of |= {name: max(num, self._num_of.get(name, 0)) for name, num in each.num_of.items()}
            new = [k for k, each in found.items() if each.born != self._born[k]]
            for k in new:
                self._has_lost |= self._born[k] is not None
                self._born[k] = found[k].born
                self._told[k].barred += [("exclude", kind, name, why) for (kind, name), why in self._out.items()]
            if not any(self._told):
                return [found[k] for k in range(len(self._ports))]
        raise FlywheelError("A shard was lost as often as it was asked: Ray's log says why its process dies.")

    def _send(self) -> None:
        self._tell("tell")

    def _tell(self, name: str, *arguments: object) -> dict[int, Any]:
        told = [waiting.told(self._num_episodes, self._num_of, self._greatest) for waiting in self._told]
        return self._ports.ask({k: (name, each, *arguments) for k, each in enumerate(told)})


class _Waiting:
    """What a shard is to be told."""

    def __init__(self) -> None:
        self.episodes: list[Any] = []
        self.barred: list[Any] = []
        self.errors: list[Any] = []

    def __bool__(self) -> bool:
        return bool(self.episodes or self.barred or self.errors)

    def told(self, num_episodes: int, num_of: Mapping[str, int], greatest: float) -> Told:
        """Return all of it, after which nothing waits."""
        found = Told(
            episodes=tuple(self.episodes), barred=tuple(self.barred), errors=tuple(self.errors),
            num_episodes=num_episodes, num_of=dict(num_of), greatest=greatest,
        )  # fmt: skip
        self.episodes, self.barred, self.errors = [], [], []
        return found


def _merged(kind: type[D], drawn: Mapping[int, D], rng: np.random.Generator, effective: float | None) -> D:
    """Return the shards' parts as one, in random order; `effective` is that of the parts where it is None."""
    policies = {name: 0 for part in drawn.values() for name in part.policies}
    policies = {name: i for i, name in enumerate(policies)}
    order = rng.permutation(sum(len(part.rows) for part in drawn.values()))
    parts = _alike(drawn)

    def whole(name: str) -> Any:
        return np.concatenate([getattr(part, name) for part in parts.values()])[order]

    def numbers(part: D) -> Ints:
        return np.array([policies[name] for name in part.policies], np.int64)[part.policy]

    weights = whole("weights")
    if effective is None:  # one over the mean chance of what was drawn
        effective = len(order) / sum(len(part.rows) / part.effective for part in parts.values())
        weights = weights / weights.max()
    made = {"weights", "rows", "policies", "policy", "effective"}
    return kind(
        **{each.name: whole(each.name) for each in dataclasses.fields(kind) if each.name not in made},
        weights=weights,
        rows=np.concatenate([part.rows | (k << ROWS) for k, part in parts.items()])[order],
        policies=tuple(policies),
        policy=np.concatenate([numbers(part) for part in parts.values()])[order],
        effective=effective,
    )


def _alike(drawn: Mapping[int, Any]) -> Mapping[int, Any]:
    """Return the parts, stretches among them with room for the longest of all."""
    longest = max((part.mask.shape[1] for part in drawn.values() if isinstance(part, Sequences)), default=0)
    return {k: part.padded(longest) if isinstance(part, Sequences) else part for k, part in drawn.items()}


def _cut(batch: Batch, num: int) -> list[Batch]:
    """Return a batch as `num` ones of equal size."""
    names = [each.name for each in dataclasses.fields(batch) if each.name not in ("policies", "effective")]
    parts: dict[str, Any] = {name: np.split(getattr(batch, name), num) for name in names}

    def part(i: int) -> dict[str, Any]:
        return {name: parts[name][i] for name in names}

    return [dataclasses.replace(batch, **part(i)) for i in range(num)]
