"""What nothing is learnt from any more: kept with its reason, and with when that ended; episodes stay as they are."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from typing import get_args

from flywheel.errors import UsageError, unknown
from flywheel.records import Origin
from flywheel.sampling import KINDS
from flywheel.sqlite import has_table

SCHEMA = """
CREATE TABLE IF NOT EXISTS excluded (
    id INTEGER PRIMARY KEY, kind TEXT NOT NULL, name TEXT NOT NULL, why TEXT NOT NULL, at REAL NOT NULL,
    readmitted_at REAL) STRICT;
CREATE UNIQUE INDEX IF NOT EXISTS excluded_now ON excluded (kind, name) WHERE readmitted_at IS NULL;
"""
LEARNABLE = """NOT EXISTS (SELECT 1 FROM excluded WHERE readmitted_at IS NULL AND excluded.name =
    CASE kind WHEN 'episode' THEN episodes.id WHEN 'policy' THEN episodes.digest ELSE episodes.origin END)"""
"""What is true, in SQL, of an episode whose first policy, origin and id are not excluded."""
_LEAST = 4
"""Characters of a policy's digest that may stand for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exclusion:
    """Something that nothing is learnt from, or was not for a time."""

    kind: str
    """policy, origin or episode"""
    name: str
    why: str
    at: float
    readmitted_at: float | None = None
    """None: it still is."""


def history(connection: sqlite3.Connection) -> list[Exclusion]:
    """Return all that is or was excluded, oldest first."""
    if not has_table(connection, "excluded"):
        return []
    rows = connection.execute("SELECT kind, name, why, at, readmitted_at FROM excluded ORDER BY id")
    return [Exclusion(kind=kind, name=name, why=why, at=at, readmitted_at=end) for kind, name, why, at, end in rows]


def present(connection: sqlite3.Connection) -> dict[tuple[str, str], str]:
    """Return what is excluded: (kind, name) → why."""
    return {(each.kind, each.name): each.why for each in history(connection) if each.readmitted_at is None}


def exclude(connection: sqlite3.Connection, what: str, why: str, now: float) -> Exclusion:
    """Exclude `KIND=NAME` from training until it is readmitted, and return it; a second reason takes the first's place.

    UsageError where it is nothing that the store could hold, or no reason is given.
    """
    if not why.strip():
        raise UsageError("What is excluded is kept with a reason: give one by --why.")
    kind, name = _parse(what)
    name = _held(connection, kind, name)
    if (kind, name) in present(connection):
        connection.execute(
            "UPDATE excluded SET why = ? WHERE kind = ? AND name = ? AND readmitted_at IS NULL", (why, kind, name)
        )
    else:
        connection.execute("INSERT INTO excluded (kind, name, why, at) VALUES (?, ?, ?, ?)", (kind, name, why, now))
    return Exclusion(kind=kind, name=name, why=why, at=now)


def readmit(connection: sqlite3.Connection, what: str, now: float) -> Exclusion:
    """Let what was excluded as `KIND=NAME` be learnt from again, and return it; UsageError where it wasn't."""
    kind, name = _parse(what)
    found = [each for each in history(connection) if each.readmitted_at is None and each.kind == kind]
    name = _one((each.name for each in found), name) if kind == "policy" else name
    held = next((each for each in found if each.name == name), None)
    if held is None:
        raise UsageError(f"{kind}={name} is not excluded: `flywheel episodes --excluded` lists what is.")
    connection.execute(
        "UPDATE excluded SET readmitted_at = ? WHERE kind = ? AND name = ? AND readmitted_at IS NULL", (now, kind, name)
    )
    return held


def _parse(what: str) -> tuple[str, str]:
    kind, _, name = what.partition("=")
    if not name:
        raise UsageError(f"{what!r} names nothing: say policy=DIGEST, origin=ORIGIN or episode=ID.")
    if kind not in KINDS:
        raise unknown("kind of what can be excluded", kind, KINDS)
    return kind, name


def _held(connection: sqlite3.Connection, kind: str, name: str) -> str:
    """Return the whole name of something that the store holds or might come to hold; UsageError otherwise."""
    if kind == "origin" and name not in get_args(Origin):
        raise unknown("origin", name, get_args(Origin))
    if kind == "episode" and connection.execute("SELECT 1 FROM episodes WHERE id = ?", (name,)).fetchone() is None:
        raise UsageError(f"The store holds no episode {name!r}: `flywheel episodes` lists those that it does.")
    if kind != "policy" or re.fullmatch("[0-9a-f]{64}", name):
        return name
    rows = connection.execute(
        "SELECT DISTINCT digest FROM episodes WHERE digest >= ? AND digest < ?", (name, name + chr(0x10FFFF))
    )
    return _one((digest for (digest,) in rows), name)


def _one(digests: Iterable[str], name: str) -> str:
    """Return the only digest that begins with a name, or is it."""
    found = [digest for digest in digests if digest.startswith(name)]
    if name in found:
        return name
    if len(name) < _LEAST:
        raise UsageError(
            f"{name!r} is too little to tell a policy by: give at least {_LEAST} characters of its digest."
        )
    if not found:
        raise UsageError(
            f"No policy whose digest begins with {name!r} began an episode here, and none such is excluded: "
            "`flywheel policies list` has the digests."
        )
    if len(found) > 1:
        raise UsageError(f"{len(found)} policies have a digest that begins with {name!r}: give more of its characters.")
    return found[0]
