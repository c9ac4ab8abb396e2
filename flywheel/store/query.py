"""Which episodes are asked for: a page of a list; or one condition, in SQL's words, on documented columns alone."""

from __future__ import annotations

import re
import sqlite3
from dataclasses import dataclass
from typing import Literal

from flywheel.errors import UsageError, unknown
from flywheel.records import Origin
from flywheel.store import sealing

COLUMNS = {
    "id": ("id", "what the episode is called"),
    "origin": ("origin", "production, gate, fork or train"),
    "task": ("task", "digest of the task"),
    "digest": ("digest", "policy that gave its first action"),
    "failed": ("failed", "1 where it failed, else 0"),
    "fine": ("NOT failed AND \"end\" <> 'lost'", "1 where it is whole and did not fail"),
    "lost": ("\"end\" = 'lost'", "1 where nobody told its end"),
    "ended_by": ('"end"', "terminated, truncated or lost"),
    "total": ("total", "its return, late rewards among it"),
    "num_steps": ("num_steps", "actions"),
    "started_at": ("started_at", "UTC epoch seconds"),
    "ended_at": ("ended_at", "UTC epoch seconds"),
    "kept": ("1", "1 where its steps are kept, 0 where it was thinned out"),
}
"""What a condition may speak of: column → SQL of it, and what it says."""
_FUNCTIONS = frozenset(
    ("abs", "coalesce", "glob", "iif", "instr", "length", "like", "lower", "max", "min", "nullif", "replace", "round",
     "substr", "substring", "trim", "unixepoch", "upper")
)  # fmt: skip
_ALLOWED = (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which episodes a page of a list shows, and in which order."""

    origin: Origin = "production"
    digest: str = ""
    """Policy that gave the first action; "" for any."""
    how: Literal["", "failed", "fine", "lost"] = ""
    """How they came out: failed, whole and not failed, or lost; "" for any."""
    begins: str = ""
    """What their ids begin with."""
    since: float | None = None
    until: float | None = None
    """When they started: from `since` on, before `until`."""
    by: Literal["started_at", "total", "num_steps"] = "started_at"
    descending: bool = True
    after: tuple[float, str] | None = None
    """(value of `by`, id) of the last row of the page before."""
    limit: int = 100
    with_steps: bool = False
    """Leave out those whose steps are kept no more."""


def find(connection: sqlite3.Connection, where: str, limit: int | None = None) -> list[str]:
    """Return the ids of the episodes for which a condition is true, newest first.

    It can change nothing and reads no other table. UsageError where it names another column or can't be read.
    """
    kept = "segment IS NOT 0" if sealing.has_segments(connection) else "1"
    parts = [f"{kept if name == 'kept' else sql} AS {name}" for name, (sql, _) in COLUMNS.items()]
    query = (
        f"SELECT id FROM (SELECT {', '.join(parts)} FROM episodes) WHERE (\n{where.strip() or '1'}\n) "
        "ORDER BY started_at DESC, id DESC LIMIT ?"
    )
    connection.set_authorizer(_may)
    try:
        # a cursor of its own: what it raises is of the condition, and no sign of a damaged file
        found = [id_ for (id_,) in connection.cursor().execute(query, (-1 if limit is None else limit,))]
    except (sqlite3.Error, sqlite3.Warning) as error:
        raise _wrong(where, error) from error
    finally:
        connection.set_authorizer(None)
    if not found and limit != 0:
        _check_digest(connection, where)
    return found


def _check_digest(connection: sqlite3.Connection, where: str) -> None:
    """Raise UsageError where nothing was found as a condition names a digest's first characters, as lists show them."""
    for name, begun in re.findall(r"\b(digest|task)\s*==?\s*'([0-9a-f]{4,63})'", where):
        query = f"SELECT {name} FROM episodes WHERE {name} > ? AND {name} < ? LIMIT 1"
        if (held := connection.execute(query, (begun, begun + chr(0x10FFFF))).fetchone()) is not None:
            raise UsageError(
                f"No episode has the {name} '{begun}', which is the beginning of one: say {name} = '{held[0]}', or "
                f"{name} like '{begun}%'."
            )


def _may(action: int, first: str | None, second: str | None, *_: object) -> int:
    if action == sqlite3.SQLITE_READ and first not in ("episodes", ""):
        return sqlite3.SQLITE_DENY
    if action == sqlite3.SQLITE_FUNCTION and second not in _FUNCTIONS:
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK if action in _ALLOWED else sqlite3.SQLITE_DENY


def _wrong(where: str, error: Exception) -> UsageError:
    column = re.search(r"no such column: \"?(?:\w+\.)?(\w+)", str(error))
    if column:
        return unknown("column", column[1], COLUMNS)
    return UsageError(
        f"The condition {where!r} can't be read ({error}): compare columns with values, as in "
        f"\"failed and digest = '…'\". Columns: {', '.join(COLUMNS)}."
    )
