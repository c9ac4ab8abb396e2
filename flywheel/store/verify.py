"""Whether everything that the store acknowledged is still there, to the bit."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

from flywheel.errors import FlywheelError
from flywheel.store import sealing
from flywheel.store.encode import content
from flywheel.store.segments import Shelf


def verify(connection: sqlite3.Connection, directory: Path) -> list[str]:
    """Return a sentence for each thing that is not as it was written: SQLite's pages, each body, each segment."""
    found = list[str]()
    try:
        found += _log(connection)
    except sqlite3.DatabaseError as error:
        found.append(f"SQLite can't read its file ({error}): put a copy of it back.")
        return found
    return [*found, *_segments(connection, directory)] if sealing.has_segments(connection) else found


def _log(connection: sqlite3.Connection) -> Iterator[str]:
    for (text,) in connection.execute("PRAGMA integrity_check"):
        if text != "ok":
            yield f"SQLite finds its file damaged ({text}): put a copy of it back."
    rows = connection.execute("SELECT id, content, body FROM episodes WHERE length(body) > 0 ORDER BY seq")
    yield from (_changed(id_) for id_, mark, body in rows if content(body) != mark)


def _segments(connection: sqlite3.Connection, directory: Path) -> Iterator[str]:
    listed = sealing.listed(connection)
    for each in listed:
        try:
            held = Shelf(directory).episodes(each.name, each.sha256)
        except FlywheelError as error:
            yield str(error)
            continue
        rows = connection.execute(
            "SELECT id, content FROM episodes WHERE seq BETWEEN ? AND ? AND segment = ?",
            (each.first_seq, each.last_seq, each.number),
        )
        yield from (_changed(id_) for id_, mark in rows if id_ not in held or content(held[id_].body) != mark)
    query = "SELECT id FROM episodes WHERE segment > 0 AND segment NOT IN (SELECT number FROM segments)"
    for (id_,) in connection.execute(query):
        yield f"The segment of episode {id_} is listed no more: put a copy of the store back."
    known = {each.name for each in listed} | {name for (name,) in connection.execute("SELECT name FROM loose")}
    for path in sorted(directory.glob("*.parquet")):
        if path.name not in known:
            yield f"{path} is not this store's: `flywheel episodes --import` takes in what it holds; delete it then."


def _changed(id_: str) -> str:
    return f"Episode {id_} is not what was acknowledged: put a copy of the store back."
