"""Who seals: one for each store that is written. It seals what is due, thins what is too much, merges what is small."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Set
from pathlib import Path

from flywheel.config import StoreConfig
from flywheel.sqlite import transaction
from flywheel.store import sealing
from flywheel.store.sealing import Listed, Work, begin, begin_thinning, finish, forget, write

LEAST = 4
"""Small segments that follow each other from which they become one: an episode is written again seldom."""


def begin_merging(connection: sqlite3.Connection, directory: Path, without: Set[int]) -> Work | None:
    """Announce one segment in place of small ones that follow each other and were thinned alike; None without such.

    After two thinnings a segment of a hundred holds four and what failed, and readers would open many small files. What
    they hold stays as it is. Those in `without`, which could not be merged, are left alone.
    """
    olds = next((each for each in _small(connection, without) if len(each) >= LEAST), None)
    if olds is None:
        return None
    members = sorted((each for old in olds for each in sealing.members_of(connection, old)), key=lambda each: each.seq)
    with transaction(connection):
        return sealing.announce(connection, directory, tuple(members), olds=tuple(olds), share=olds[0].share)


def _small(connection: sqlite3.Connection, without: Set[int]) -> Iterator[list[Listed]]:
    """Yield neighbours that were thinned alike and together are no larger than a segment."""
    found = list[Listed]()
    for each in sealing.listed(connection, "share > 0.0 AND share < 1.0"):
        more = [*found, each]
        is_large = sum(one.episodes for one in more) > sealing.GROUP
        is_large |= sum(one.bytes for one in more) > sealing.MOST_BYTES
        if found and (is_large or each.share != found[0].share or each.number in without):
            yield found
            more = [each]
        found = [] if each.number in without else more
    yield found


class Sealer:
    """Moves a store's episodes into segments, and thins those; its owner alone has one."""

    def __init__(self, connection: sqlite3.Connection, directory: Path) -> None:
        """Write through this connection, and into this directory, from which goes what a crash left half done."""
        self._connection, self._directory = connection, directory
        self._damaged, self._apart = set[int](), set[int]()
        sealing.tidy(connection, directory)

    def due(self, config: StoreConfig, now: float) -> Work | None:
        """Announce what is written next: what is past its window, what an old segment keeps, or several as one."""
        most = config.most_gib * 2**30
        return (
            begin(self._connection, self._directory, now - config.seal_after_s)
            or self.begin_thinning(now - config.keep_whole_s, most, config.keep_share)
            or self.begin_merging()
        )

    def begin_merging(self) -> Work | None:
        """As `begin_merging`."""
        return begin_merging(self._connection, self._directory, self._apart)

    def begin_thinning(self, before: float, most_bytes: float, keep_share: float) -> Work | None:
        """As `begin_thinning`, where the store is past its bound; None otherwise."""
        if sealing.num_bytes(self._connection) <= most_bytes:
            return None
        return begin_thinning(self._connection, self._directory, before, keep_share, self._damaged)

    def finish(self, work: Work, written: tuple[str, int] | None) -> None:
        """List what `write` made of an announced segment; None takes the announcement back, as nothing came of it.

        Segments that could not be thinned, or merged, are left alone until the store is opened again.
        """
        if written is None:
            left = self._apart if len(work.olds) > 1 else self._damaged
            left |= {old.number for old in work.olds}
            forget(self._connection, work.directory, work.number, work.name)
        else:
            finish(self._connection, work, written)

    def seal(self, before: float, *, all_now: bool = False) -> int:
        """Seal what ended before a time, and return how much; what fills no segment waits, unless it is `all_now`."""
        num = 0
        while (work := begin(self._connection, self._directory, before, all_now)) is not None:
            self.finish(work, write(work))
            num += len(work.members)
        return num

    def thin(self, before: float, most_bytes: float, keep_share: float) -> int:
        """Thin segments until the store is within its bound, or none is left to thin; return how many were."""
        num = 0
        while (work := self.begin_thinning(before, most_bytes, keep_share)) is not None:
            self.finish(work, write(work))
            num += 1
        return num

    def merge(self) -> int:
        """Merge small segments until none are left to merge; return how many came of it."""
        num = 0
        while (work := self.begin_merging()) is not None:
            self.finish(work, write(work))
            num += 1
        return num
