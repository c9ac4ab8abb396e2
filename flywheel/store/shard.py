"""One of several tables that together hold what one would: it says what it may draw, and draws its part."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

import numpy as np

from flywheel.records import Episode
from flywheel.sampling import Batch, Floats, Sampling, Sequences
from flywheel.store.table import Drawn, Table

D = TypeVar("D", Batch, Sequences)


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a shard is told before it is asked."""

    episodes: tuple[tuple[Episode, int, int], ...] = ()
    """Episodes to hold, each with how many were added to any shard before it: of all, and of its own source."""
    barred: tuple[tuple[Literal["exclude", "readmit"], str, str, str], ...] = ()
    """What is to be excluded, or readmitted: which of both, kind, name, why."""
    errors: tuple[tuple[Drawn, Floats], ...] = ()
    """TD errors float64[N] of what was drawn here."""
    num_episodes: int = 0
    num_of: Mapping[str, int] = field(default_factory=dict)
    """Episodes ever added to all shards, of all and by source: ages are counted from there."""
    greatest: float = 1.0
    """The greatest TD error that any shard was ever told: the priority of transitions without one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What a shard may draw by a rule, so that its part can be told from the others'."""

    born: int
    """Tells a shard from the one that stood in its place before a restart."""
    num_transitions: int
    num_episodes: int
    num_of: Mapping[str, int]
    masses: dict[str, tuple[float, float, int]]
    """By origin: its transitions' weights summed up, their squares, and how many have one; quotas left out."""
    total: float
    """Sum of priorities, where the rule draws by them; 0 otherwise."""


class Shard:
    """A table that is a part of a whole."""

    def __init__(self, make: Callable[[], Table], born: int) -> None:
        """Begin with an empty table; `born` is a number that no other shard has or had."""
        self._make, self._born = make, born
        self._table = make()

    def begin(self) -> None:
        """Forget everything."""
        self._table = self._make()

    def tell(self, told: Told) -> None:
        """Take in what came since."""
        held = self._table
        held.greatest = max(held.greatest, told.greatest)
        for word, kind, name, why in told.barred:
            if word == "exclude":
                held.exclude(kind, name, why)
            elif (kind, name) in held.excluded:
                held.readmit(kind, name)
        for episode, number, own in told.episodes:
            held.num_episodes, held.num_of[episode.origin] = number, own
            held.add(episode)
        for drawn, errors in told.errors:
            held.prioritize(drawn, errors)
        held.count(told.num_episodes, told.num_of)

    def standing(self, told: Told, rule: Sampling) -> Standing:
        """Take in what came since, and return what may be drawn by a rule, whose quotas don't count here."""
        self.tell(told)
        return Standing(
            born=self._born,
            num_transitions=self._table.num_transitions,
            num_episodes=self._table.num_episodes,
            num_of=dict(self._table.num_of),
            masses=self._table.masses(replace(rule, quotas={})),
            total=self._table.priorities(rule.alpha).total if rule.alpha else 0.0,
        )

    def part(self, num: int, rule: Sampling, seed: Sequence[int], among: tuple[float, int]) -> tuple[int, Batch | None]:
        """Return which shard this is and `num` transitions by a rule; None where it has nothing (any more).

        `among` is the sum of all shards' priorities, and how many transitions have one.
        """
        return self._drawn(lambda rng: self._table.sample(rng, num, rule, among if rule.alpha else None), seed)

    def sequences(
        self, num: int, rule: Sampling, seed: Sequence[int], among: tuple[float, int], length: int
    ) -> tuple[int, Sequences | None]:
        """As `part`, of Table.sequences."""
        given = among if rule.alpha else None
        return self._drawn(lambda rng: self._table.sequences(rng, num, length, rule, given), seed)

    def whole(
        self, num: int, rule: Sampling, seed: Sequence[int], _: tuple[float, int]
    ) -> tuple[int, Sequences | None]:
        """As `part`, of Table.whole."""
        return self._drawn(lambda rng: self._table.whole(rng, num, rule), seed)

    def _drawn(self, draw: Callable[[np.random.Generator], D], seed: Sequence[int]) -> tuple[int, D | None]:
        try:
            return self._born, draw(np.random.default_rng(seed))
        except IndexError:
            return self._born, None
