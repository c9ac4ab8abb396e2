"""Where an episode's steps are, once they have left the log, and what is known beside them."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

from flywheel.errors import FlywheelError, UsageError
from flywheel.store import tail
from flywheel.store.encode import Entry, decode
from flywheel.store.late import known

if TYPE_CHECKING:
    from flywheel.store.segments import Shelf


class Sealed:
    """Finds the episodes whose bodies have left the log."""

    def __init__(self, connection: sqlite3.Connection, directory: Path) -> None:
        """Ask this connection where they are, and read this directory."""
        self._connection, self._directory = connection, directory
        self._shelf: Shelf | None = None

    def entry(self, id_: str) -> Entry:
        """Return a sealed episode; UsageError where it was thinned out, FlywheelError where its segment is damaged."""
        if self._shelf is None:
            from flywheel.store.segments import Shelf  # pyarrow takes its time to load, and much memory

            self._shelf = Shelf(self._directory)
        while True:
            name, sha256 = self._find(id_)
            try:
                return self._shelf.episodes(name, sha256)[id_]
            except FlywheelError:
                if self._find(id_) == (name, sha256):  # otherwise its thinned form has just taken its place
                    raise

    def _find(self, id_: str) -> tuple[str, str]:
        query = "SELECT name, sha256 FROM episodes JOIN segments ON number = segment WHERE id = ?"
        found = self._connection.execute(query, (id_,)).fetchone()
        if found is None:
            raise UsageError(
                f"The steps of episode {id_!r} are kept no more: the store was past its bound (store.most_gib), and of "
                "old episodes only those that failed and a share of the rest stay. Its outcome is still listed."
            )
        name, sha256 = found
        return name, sha256

    def is_even(self, id_: str) -> bool:
        """Say whether an episode is of an even sample: of a thinned segment the same share of those that failed is."""
        query = "SELECT share FROM episodes JOIN segments ON number = segment WHERE id = ?"
        found = self._connection.execute(query, (id_,)).fetchone()
        return found is None or tail.place(id_) < found[0]

    def told(self, id_: str) -> bytes:
        """Return a sealed episode's body; empty where it is kept no more, or can't be read."""
        try:
            return self.entry(id_).body
        except FlywheelError:
            return b""


def entry(connection: sqlite3.Connection, sealed: Sealed, id_: str) -> Entry:
    """Return an episode wherever it is, with the late rewards and the fate that are known by now."""
    query = "SELECT body, failed, started_at, ended_at FROM episodes WHERE id = ?"
    row = connection.execute(query, (id_,)).fetchone()
    if row is None:
        raise UsageError(f"The store holds no episode {id_!r}: it was not acknowledged here, or was deleted.")
    body, failed, started_at, ended_at = row
    held = None if body else sealed.entry(id_)
    body = held.body if held else body
    return Entry(
        id=id_, body=body, failed=bool(failed), started_at=started_at, ended_at=ended_at,
        inclusion=held.inclusion if held else decode(body, 0.0, 0.0).inclusion, late=known(connection, id_),
    )  # fmt: skip
