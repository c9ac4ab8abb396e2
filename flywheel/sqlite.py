"""SQLite files as the rooms keep them: one process writes a file, any number read it, and a commit is on the disk."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self
from urllib.parse import quote

from flywheel.errors import FlywheelError, UsageError
from flywheel.records import SCHEMA_VERSION

_LOOK_S = 0.02


def owned(
    file: Path, make: Callable[[sqlite3.Connection], object], refusal: str, wait_s: float = 0.0
) -> sqlite3.Connection:
    """Return the connection of a file's one writer, after `make` has made in it what is missing.

    Its `close` lets another process write. Raises UsageError with `refusal` when somebody writes the file for `wait_s`
    seconds yet, and leaves nothing open when that or `make` raises.
    """
    lock = _hold(file, refusal, wait_s)
    try:
        connection = _connected(str(file), file)
    except BaseException:
        os.close(lock)
        raise
    connection.lock = lock
    try:
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            connection.execute(f"PRAGMA {pragma}")
        make(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def tables(schema: str) -> Callable[[sqlite3.Connection], object]:
    """Return what makes a schema's tables in one commit, for `owned`."""
    return lambda connection: connection.executescript(f"BEGIN IMMEDIATE; {schema} COMMIT;")


def _hold(file: Path, refusal: str, wait_s: float) -> int:
    """Return the open lock; SQLite before 3.51.3 can damage a WAL file that two connections write, hence the lock."""
    lock = os.open(file.with_name(f"{file.name}.lock"), os.O_CREAT | os.O_RDWR, 0o600)
    until = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if time.monotonic() < until:
                time.sleep(_LOOK_S)  # nobody tells when a lock is free
                continue
            os.close(lock)
            raise UsageError(refusal) from error
        return lock


def reading(file: Path) -> sqlite3.Connection:
    """Return a connection that can't change a file; its owner may write it, and each query sees what is committed.

    FlywheelError names a file that turns out to be damaged, when it is asked.
    """
    return _connected(f"file:{quote(str(file.resolve()))}?mode=ro", file, uri=True)


def is_made(file: Path) -> bool:
    """Say whether a file is there with its tables; its owner makes them a moment after the file."""
    if not file.exists():
        return False
    with closing(reading(file)) as connection:
        return has_table(connection, "meta")


def has_table(connection: sqlite3.Connection, name: str) -> bool:
    """Say whether a file has a table: one of an earlier version that is only read lacks the later ones."""
    return connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (name,)).fetchone() is not None


def reading_or_empty(file: Path, schema: str) -> sqlite3.Connection:
    """Return a connection that reads a file, or empty tables where `is_made` says no: those stay empty."""
    if is_made(file):
        return reading(file)
    connection = _connected(":memory:")
    connection.executescript(schema)
    return connection


class _Connection(sqlite3.Connection):
    """Names the file that is damaged, which SQLite's words don't, and holds its writer's lock until it is closed."""

    file: Path | None = None
    lock: int | None = None

    def execute(self, *given: Any) -> sqlite3.Cursor:
        with self._naming():
            return super().execute(*given)

    def executescript(self, *given: Any) -> sqlite3.Cursor:
        with self._naming():
            return super().executescript(*given)

    def close(self) -> None:
        super().close()
        lock, self.lock = self.lock, None
        if lock is not None:
            os.close(lock)

    @contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
                raise FlywheelError(
                    f"{self.file} can't grow, as its disk is full: what was just told is not kept, and all that was "
                    "acknowledged is. Make room; no restart is needed."
                ) from error
            if type(error) is not sqlite3.DatabaseError:  # a kind of it: locked, full, a constraint, a wrong query
                raise
            raise FlywheelError(
                f"{self.file} is damaged ({error}): put a copy of it back, or give another run directory."
            ) from error


def _connected(place: str, file: Path | None = None, *, uri: bool = False) -> _Connection:
    connection = sqlite3.connect(place, uri=uri, isolation_level=None, check_same_thread=False, factory=_Connection)
    connection.file = file
    return connection


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Make what happens inside durable in one commit, or undo all of it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # a full disk ends it by itself
            connection.execute("ROLLBACK")
        raise


class Reader:
    """Reads a file whose table `meta` tells its version; use it in a `with`, or close it."""

    what: ClassVar[str]
    """What was written, as a sentence begins: "The store was"."""
    newest: ClassVar[int] = SCHEMA_VERSION
    """Newest version of it that is read."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Read through this connection; FlywheelError when a newer version wrote the file."""
        self._connection = connection
        (version,) = connection.execute("SELECT schema_version FROM meta").fetchone()
        if version > self.newest:
            connection.close()
            raise FlywheelError(
                f"{self.what} written in format {version}, and this version reads up to {self.newest}: update flywheel."
            )

    def close(self) -> None:
        """Close the file; nothing can be read afterwards."""
        self._connection.close()

    def __enter__(self) -> Self:
        """Return this reader, which is closed at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.close()
