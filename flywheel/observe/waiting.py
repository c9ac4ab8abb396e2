"""Outcomes that wait for their turn to be read, in order of start, each found by its id as well."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from flywheel.observe.leased import Place
from flywheel.observe.monitors.hacking import Look
from flywheel.observe.strata import Given
from flywheel.outcomes import Outcome


@dataclass(slots=True)
class Entry:
    """An outcome that waits."""

    outcome: Outcome
    given: Given | None
    """What the monitors of shifts read: scores by the models of the time, or the episode; None of another policy's."""
    until: float
    """When it is read although a reward of it isn't known; 0 where all are."""
    assumed: Outcome | None = None
    """As what it is read then, its unknown rewards being the default; None where all are known, or there is none."""
    look: Look | None = None
    """What the watch for hacked rewards reads."""
    num_assumed: int = 0
    """Rewards that aren't known, where there is a default."""

    @property
    def place(self) -> Place:
        """Its place in the order of reading."""
        return self.outcome.started_at, self.outcome.id


class Waiting:
    """Holds the outcomes; one that comes twice waits once."""

    def __init__(self) -> None:
        """Begin without any."""
        self._order: list[Place] = []
        self._entries: dict[str, Entry] = {}

    def __len__(self) -> int:
        return len(self._order)

    def __contains__(self, id_: str) -> bool:
        return id_ in self._entries

    def put(self, entry: Entry) -> None:
        """Let an outcome wait, unless its episode waits already."""
        if entry.outcome.id not in self._entries:
            self._entries[entry.outcome.id] = entry
            heapq.heappush(self._order, entry.place)

    def first(self) -> Entry | None:
        """Return the one whose turn comes first."""
        return self._entries[self._order[0][1]] if self._order else None

    def pop(self) -> Entry:
        """Take the first one out."""
        return self._entries.pop(heapq.heappop(self._order)[1])

    def change(self, outcome: Outcome, num_unknown: int, assumed: Outcome | None) -> bool:
        """Put another outcome of the same episode in the place of one that waits; False where none does."""
        entry = self._entries.get(outcome.id)
        if entry is None:
            return False
        entry.outcome, entry.until = outcome, entry.until if num_unknown else 0.0
        entry.assumed, entry.num_assumed = assumed, num_unknown if assumed else 0
        return True

    def unsealed(self, now: float) -> Place | None:
        """Return the first place of one that waits for a reward."""
        return min((entry.place for entry in self._entries.values() if entry.until > now), default=None)

    def leave_scored(self) -> None:
        """Forget those that have a score already."""
        self._entries = {id_: e for id_, e in self._entries.items() if not (e.given and e.given.scores)}
        self._order = sorted(entry.place for entry in self._entries.values())
