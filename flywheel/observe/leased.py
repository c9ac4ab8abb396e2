"""The places of episodes that clients act in by themselves: held from the first word of them until they are over.

Whether an episode is read is settled by its first word, which its client sends when it begins, and never by how it
comes out: short ones, which failed, come back first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

Place = tuple[float, str]
"""Start and id of an episode: its place in the order in which outcomes are read."""
MAX_PASSED = 10_000
"""Ids kept of episodes whose places were given up: beyond it the oldest may hold a place again."""


class Leased:
    """Episodes under a lease that began and aren't over, as far as anybody told."""

    def __init__(self, timeout_s: float) -> None:
        """Begin without any. A place is held as long as word of its episode comes within the timeout."""
        self._timeout_s = timeout_s
        self._starts: dict[str, float] = {}
        self._heard_at: dict[str, float] = {}
        self._over: dict[str, float] = {}  # id → closed at, in order of closing
        self._passed: dict[str, None] = {}
        self.are_known = False
        """True once there was word of any: such clients exist."""

    def __len__(self) -> int:
        return len(self._starts)

    def hear(self, begun: Mapping[str, float], now: float) -> None:
        """Hold the places of these episodes (id → start), as they were told first; what is over holds none."""
        for id_, start in begun.items():
            self.are_known = True
            if id_ not in self._over and id_ not in self._passed:
                self._starts.setdefault(id_, start)
                self._heard_at[id_] = now

    def start(self, id_: str) -> float | None:
        """Return when an episode that holds a place began, None where it holds none."""
        return self._starts.get(id_)

    def first(self, after: Place) -> Place | None:
        """Return the first place that is held behind another one."""
        held = ((start, id_) for id_, start in self._starts.items())
        return min((place for place in held if place > after), default=None)

    def close(self, ids: Iterable[str], now: float) -> None:
        """Free the places of episodes that are over: word of them that comes late changes nothing."""
        for id_ in ids:
            self._forget(id_)
            self._over.pop(id_, None)
            self._over[id_] = now

    def give_up(self, id_: str) -> None:
        """Let an episode hold its place no more, whatever is heard of it."""
        self._forget(id_)
        self._passed[id_] = None
        if len(self._passed) > MAX_PASSED:
            del self._passed[next(iter(self._passed))]

    def expire(self, now: float) -> int:
        """Free the places of which there was no word for the timeout, and return their number."""
        for id_, closed_at in list(self._over.items()):
            if now - closed_at <= 2 * self._timeout_s:  # a client repeats itself for less than this
                break
            del self._over[id_]
        silent = [id_ for id_, heard_at in self._heard_at.items() if now - heard_at > self._timeout_s]
        for id_ in silent:
            self._forget(id_)
        return len(silent)

    def _forget(self, id_: str) -> None:
        self._starts.pop(id_, None)
        self._heard_at.pop(id_, None)
