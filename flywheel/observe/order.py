"""The order in which outcomes are read: that of episode start, whoever is over first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from flywheel.config import ObserveConfig
from flywheel.observe.assemble import Assembler
from flywheel.observe.leased import Leased, Place
from flywheel.observe.waiting import Entry, Waiting
from flywheel.outcomes import Outcome

_UNREAD = 10_000
"""Ids kept of episodes that nobody reads: a canary that asks for what began long ago must not find them."""
BEGINNING: Place = (0.0, "")
END: Place = (float("inf"), "")


class Order:
    """Says whose turn it is, and what is read by nobody."""

    def __init__(self, config: ObserveConfig, assembler: Assembler) -> None:
        """Begin with nothing that waits; `assembler` holds the places of the episodes that are open."""
        self._config = config
        self._assembler = assembler
        self._counts = assembler.counts
        self.leased = Leased(config.episode_timeout_s)
        self.waiting = Waiting()
        self.read_to = BEGINNING
        """Place of the last outcome that was read."""
        self.is_behind = False
        """True while what was counted before a restart is given again."""
        self._unread: dict[str, None] = {}
        self._assumed: dict[str, tuple[Place, bool]] = {}

    def leave(self, id_: str) -> None:
        """Let nobody read an episode, as it came too late."""
        self._unread[id_] = None
        if len(self._unread) > _UNREAD:
            del self._unread[next(iter(self._unread))]

    def is_unread(self, id_: str) -> bool:
        """Say whether nobody reads a durable episode."""
        return id_ in self._unread

    def due(self, last: Place, now: float) -> Iterator[tuple[Outcome, Entry]]:
        """Take out, one after another, the outcomes up to a place whose turn has come: as it is read, and what waited.

        Where more wait than may, those that hold them up are passed by.
        """
        limit = min(last, self._first_open())
        while (entry := self.waiting.first()) is not None:
            if entry.place > limit or entry.outcome.started_at + self._wait_s > now or entry.until > now:
                if self.is_behind or len(self.waiting) <= self._config.max_waiting:
                    break
                if entry.place > limit:
                    self._give_up(limit[1])
                    limit = min(last, self._first_open())
                    continue
            self.waiting.pop()
            self.read_to = max(self.read_to, entry.place)
            yield self._final(entry), entry

    def _give_up(self, id_: str) -> None:
        """Give up the place of a running episode, so that those that began after it can be read."""
        if not self._assembler.give_up(id_):
            self.leased.give_up(id_)
        self._counts.passed += 1

    def _final(self, entry: Entry) -> Outcome:
        """Return as what a waiting outcome is read."""
        if entry.assumed is None:
            return entry.outcome
        self._counts.defaulted += entry.num_assumed
        if entry.assumed.failed != entry.outcome.failed:
            self._assumed[entry.outcome.id] = entry.place, entry.assumed.failed
        return entry.assumed

    def _first_open(self) -> Place:
        """Return the place of the first episode that isn't over and may still be read."""
        return min(self._assembler.first_open() or END, self.leased.first(self.read_to) or END)

    @property
    def _wait_s(self) -> float:
        return self._config.lease_wait_s if self.leased.are_known else self._config.wait_s

    def settled_until(self, now: float) -> Place:
        """Return the start and id of the first episode that may not be over: what began before it is known whole."""
        if self.is_behind:
            return BEGINNING
        assumed = min((place for place, _ in self._assumed.values()), default=END)
        return min(self._first_open(), (now - self._wait_s, ""), self.waiting.unsealed(now) or END, assumed)

    def assumed(self) -> dict[str, bool]:
        """Return which episodes that were read by the default reward failed by it, other than the store has it.

        They hold back `settled_until` until the store knows, and `settled` says so.
        """
        return {id_: failed for id_, (_, failed) in self._assumed.items()}

    def settled(self, ids: Iterable[str]) -> None:
        """Take in that the store knows of these episodes what `assumed` said."""
        for id_ in ids:
            self._assumed.pop(id_, None)
