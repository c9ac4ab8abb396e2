"""How episodes move from the log into sealed segments, and which of them leave for good: what is asked of SQLite.

A segment is announced (`loose`), written, and listed in one commit in which its episodes' bodies leave the log. So an
announced file that was never listed, or one that a thinned one replaced, is deleted at the next start; a listed one is
whole. `episodes.segment` says where an episode's steps are: NULL in the log, n > 0 in a segment, 0 thinned out, -1 in
the log for good, as Parquet can't hold them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from flywheel.errors import FlywheelError
from flywheel.sqlite import tables, transaction
from flywheel.store import tail
from flywheel.store.encode import Entry, Layout, decode, layout
from flywheel.store.late import known

DIRECTORY = "segments"
"""Where they are in a run directory."""

FORMAT = 2
"""Version of a store that has a segment: earlier versions of the program would take its episodes for damaged."""
GROUP = 100
"""Episodes of a segment: one of them is read in some milliseconds, and thinning rewrites no more than these."""
MOST_BYTES = 64 * 2**20
"""Bytes of bodies after which a segment has fewer episodes."""
LEAST_SHARE = 0.01
"""Share of the episodes that didn't fail below which nothing more is thinned: a bound then is below what failed, and a
mean over those that are kept must be able to tell that there were others."""
_LOOK = 4 * GROUP
"""Episodes that are looked at for a segment's: a few that are not to be sealed yet hold no others up."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS segments (
    number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, sha256 TEXT NOT NULL, episodes INTEGER NOT NULL,
    bytes INTEGER NOT NULL, first_seq INTEGER NOT NULL, last_seq INTEGER NOT NULL, first_started_at REAL NOT NULL,
    last_started_at REAL NOT NULL, last_ended_at REAL NOT NULL, share REAL NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS loose (number INTEGER PRIMARY KEY, name TEXT NOT NULL) STRICT;
CREATE INDEX IF NOT EXISTS unsealed ON episodes (seq) WHERE segment IS NULL;
"""
_LIST = "INSERT INTO segments VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A segment as the store lists it."""

    number: int
    name: str
    sha256: str
    episodes: int
    bytes: int
    first_seq: int
    last_seq: int
    first_started_at: float
    last_started_at: float
    last_ended_at: float
    share: float
    """Share of those that did not fail that is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """An episode of a segment that is being made."""

    seq: int
    id: str
    content: bytes
    failed: bool
    started_at: float
    ended_at: float
    segment: int | None = None
    """Where its steps are until then: the number of a segment, or the log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A segment that is announced: what `write` makes of it needs no database, and `finish` lists it."""

    number: int
    directory: Path
    members: tuple[Member, ...]
    entries: tuple[Entry, ...] = ()
    """The members' episodes; empty where they are still in `olds`."""
    olds: tuple[Listed, ...] = ()
    """The segments that it replaces: one that is thinned, or several that have become small."""
    share: float = 1.0

    @property
    def name(self) -> str:
        """The file's name."""
        return f"{self.number:08d}.parquet"


def made_with(schema: str) -> Callable[[sqlite3.Connection], None]:
    """Return what makes a store's tables by a schema, and then what one of an earlier version lacks."""

    def make(connection: sqlite3.Connection) -> None:
        tables(schema)(connection)
        with transaction(connection):
            if not has_segments(connection):
                connection.execute("ALTER TABLE episodes ADD COLUMN segment INTEGER")
            for statement in filter(str.strip, _SCHEMA.split(";")):
                connection.execute(statement)

    return make


def has_segments(connection: sqlite3.Connection) -> bool:
    """Say whether the store knows segments: one of an earlier version that is only read doesn't."""
    found = connection.execute("SELECT 1 FROM pragma_table_info('episodes') WHERE name = 'segment'").fetchone()
    return found is not None


def listed(connection: sqlite3.Connection, where: str = "1", values: Sequence[float] = ()) -> list[Listed]:
    """Return the segments in order of arrival."""
    names = Listed.__slots__
    rows = connection.execute(f"SELECT {', '.join(names)} FROM segments WHERE {where} ORDER BY first_seq", values)
    return [Listed(**dict(zip(names, row, strict=True))) for row in rows]


def tidy(connection: sqlite3.Connection, directory: Path) -> None:
    """Delete the files that were announced and not listed, or replaced by listed ones: a crash left them."""
    for number, name in connection.execute("SELECT number, name FROM loose").fetchall():
        forget(connection, directory, number, name)


def forget(connection: sqlite3.Connection, directory: Path, number: int, name: str) -> None:
    for file in (directory / name, directory / f".{name}.new"):
        file.unlink(missing_ok=True)
    connection.execute("DELETE FROM loose WHERE number = ?", (number,))


def begin(connection: sqlite3.Connection, directory: Path, before: float, all_now: bool = False) -> Work | None:
    """Announce a segment of the next episodes that ended before a time; None while there are too few of them.

    With `all_now`, fewer than a segment's are enough. Those that Parquet can't hold, and damaged ones, are marked and
    stay.
    """
    seqs = _due(connection, before, all_now)
    if not seqs:
        return None
    marks = ", ".join("?" * len(seqs))
    rows = connection.execute(
        "SELECT seq, id, content, failed, started_at, ended_at, body FROM episodes "
        f"WHERE seq IN ({marks}) ORDER BY seq",
        seqs,
    ).fetchall()
    kinds: dict[Layout | None, list[tuple[Member, bytes]]] = {}
    for *row, body in rows:
        kinds.setdefault(_layout(body), []).append((_member(row), body))
    with transaction(connection):
        stay = [(member.seq,) for member, _ in kinds.pop(None, ())]
        connection.executemany("UPDATE episodes SET segment = -1 WHERE seq = ?", stay)
        if not kinds:
            return None
        chosen = max(kinds.values(), key=len)
        members = tuple(member for member, _ in chosen)
        entries = tuple(_entry(connection, member, body) for member, body in chosen)
        return announce(connection, directory, members, entries=entries)


def _layout(body: bytes) -> Layout | None:
    try:
        return layout(body)
    except (FlywheelError, msgspec.MsgspecError, ValueError):
        return None  # `flywheel verify` names it; here it must not hold up the others for ever


def _due(connection: sqlite3.Connection, before: float, all_now: bool) -> list[int]:
    """Return which episodes, by seq, make up the next segment; none while they are too few."""
    rows = connection.execute(
        "SELECT seq, ended_at, length(body) FROM episodes WHERE segment IS NULL ORDER BY seq LIMIT ?", (_LOOK,)
    )
    seqs, size = list[int](), 0
    for seq, ended_at, length in rows:
        if ended_at < before:
            seqs.append(seq)
            size += length
            if len(seqs) == GROUP or size >= MOST_BYTES:
                return seqs
    return seqs if all_now else []


def _entry(connection: sqlite3.Connection, member: Member, body: bytes) -> Entry:
    return Entry(
        id=member.id, body=body, failed=member.failed, started_at=member.started_at, ended_at=member.ended_at,
        inclusion=decode(body, 0.0, 0.0).inclusion, late=known(connection, member.id),
    )  # fmt: skip


def announce(
    connection: sqlite3.Connection,
    directory: Path,
    members: tuple[Member, ...],
    *,
    entries: tuple[Entry, ...] = (),
    olds: tuple[Listed, ...] = (),
    share: float = 1.0,
) -> Work:
    query = "SELECT max((SELECT coalesce(max(number), 0) FROM segments), (SELECT coalesce(max(number), 0) FROM loose))"
    (last,) = connection.execute(query).fetchone()
    work = Work(number=last + 1, directory=directory, members=members, entries=entries, olds=olds, share=share)
    connection.execute("INSERT INTO loose VALUES (?, ?)", (work.number, work.name))
    return work


def begin_thinning(
    connection: sqlite3.Connection, directory: Path, before: float, keep_share: float, without: Set[int]
) -> Work | None:
    """Announce what stays of the next segment to be thinned; None where there is none left.

    Eviction rule: of segments all of whose episodes ended before a time, first those that were thinned least, of these
    the oldest (none in `without`, which can't be read). Every failed episode of it stays; of the others `keep_share` of
    what stayed so far does, by a hash of the id, and its inclusion probability says so. Outcomes stay in any case.
    """
    due = listed(connection, "last_ended_at < ? AND share > ?", (before, LEAST_SHARE))
    due = [each for each in due if each.number not in without]
    for old in sorted(due, key=lambda each: (-each.share, each.first_seq)):
        found = members_of(connection, old)
        if found and all(member.failed for member in found):
            connection.execute("UPDATE segments SET share = 0.0 WHERE number = ?", (old.number,))  # none of it can go
            continue
        share = old.share * keep_share
        members = tuple(each for each in found if tail.is_kept(each.id, each.failed, share))
        with transaction(connection):
            return announce(connection, directory, members, olds=(old,), share=share)
    return None


def members_of(connection: sqlite3.Connection, old: Listed) -> tuple[Member, ...]:
    """Return the episodes of a segment in order of arrival."""
    rows = connection.execute(
        "SELECT seq, id, content, failed, started_at, ended_at FROM episodes "
        "WHERE seq BETWEEN ? AND ? AND segment = ? ORDER BY seq",
        (old.first_seq, old.last_seq, old.number),
    )
    return tuple(_member(row, old.number) for row in rows)


def _member(row: Sequence[Any], segment: int | None = None) -> Member:
    seq, id_, content, failed, started_at, ended_at = row
    return Member(
        seq=seq, id=id_, content=content, failed=bool(failed), started_at=started_at, ended_at=ended_at,
        segment=segment,
    )  # fmt: skip


def write(work: Work) -> tuple[str, int]:
    """Write an announced segment's file and return its sha256 and size, ("", 0) where no episode stays.

    FlywheelError where a segment that it is to replace is damaged, or holds other kinds of episodes than another one.
    """
    from flywheel.store import segments  # pyarrow takes its time to load, and much memory

    entries = list(work.entries)
    for old in work.olds:
        held = segments.Shelf(work.directory).episodes(old.name, old.sha256)
        mine = [member for member in work.members if member.segment == old.number]
        is_thinned = work.share != old.share
        entries += [_thinned(held[each.id], each, work.share) if is_thinned else held[each.id] for each in mine]
    if len(work.olds) > 1 and len({layout(entry.body) for entry in entries}) > 1:
        raise FlywheelError("These segments hold episodes of different kinds: they stay apart.")
    return segments.write(work.directory / work.name, entries) if entries else ("", 0)


def _thinned(entry: Entry, member: Member, share: float) -> Entry:
    """Return an episode as it goes on after a thinning that it outlived."""
    told = decode(entry.body, 0.0, 0.0)
    inclusion = entry.inclusion if member.failed else told.inclusion * share
    return Entry(
        id=entry.id, body=entry.body, failed=member.failed, started_at=entry.started_at, ended_at=entry.ended_at,
        inclusion=inclusion, late=entry.late,
    )  # fmt: skip


def finish(connection: sqlite3.Connection, work: Work, written: tuple[str, int]) -> None:
    """List a written segment and let its episodes' bodies leave the log, or the old segments, in one commit.

    An episode that got other content meanwhile (a whole one in place of a lost one) stays where it is.
    """
    sha256, size = written
    members = work.members
    with transaction(connection):
        connection.execute("DELETE FROM loose WHERE number = ?", (work.number,))
        if members:
            starts = [member.started_at for member in members]
            row = (min(starts), max(starts), max(member.ended_at for member in members), work.share)
            span = (members[0].seq, members[-1].seq)
            connection.execute(_LIST, (work.number, work.name, sha256, len(members), size, *span, *row))
        connection.executemany(
            "UPDATE episodes SET segment = ?, body = x'' WHERE seq = ? AND content = ? AND segment IS ?",
            [(work.number, member.seq, member.content, member.segment) for member in members],
        )
        for old in work.olds:
            gone = (old.first_seq, old.last_seq, old.number)
            connection.execute("UPDATE episodes SET segment = 0 WHERE seq BETWEEN ? AND ? AND segment = ?", gone)
            connection.execute("DELETE FROM segments WHERE number = ?", (old.number,))
            connection.execute("INSERT INTO loose VALUES (?, ?)", (old.number, old.name))
        connection.execute("UPDATE meta SET schema_version = max(schema_version, ?)", (FORMAT,))
    for old in work.olds:
        forget(connection, work.directory, old.number, old.name)


def num_bytes(connection: sqlite3.Connection) -> int:
    """Return what the episodes take on the disk: SQLite's pages in use, and the segments."""
    pages, free, size = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size) + num_sealed_bytes(connection)


def num_sealed_bytes(connection: sqlite3.Connection) -> int:
    """Return the size of the segments."""
    (sealed,) = connection.execute("SELECT coalesce(sum(bytes), 0) FROM segments").fetchone()
    return int(sealed)
