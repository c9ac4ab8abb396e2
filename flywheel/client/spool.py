"""Episodes on the disk from their first step until they are acknowledged, so that a program may die at any moment.

One file an episode, one line a step: the CRC-32 of a JSON text as eight hexadecimal digits, a space, the text. A file
that is written lies in memory that the operating system shares with its disk: no call to the system, and a program's
death takes nothing of it. A line that was torn ends its file, so that all before it counts, and so do the zeros where
lines were still to come. Power that fails may take the last seconds of what `sync` was not called for.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import logging
import mmap
import os
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from flywheel.client.refusal import DamagedError, FullError, check_process, process
from flywheel.errors import FlywheelError, UsageError
from flywheel.records import SCHEMA_VERSION

_SUFFIX, _REFUSED = ".episode", ".refused"
_OPEN_FILES = 256
"""Files kept open for their next line; beyond it the one that was opened first is closed."""
_AHEAD, _FAR_AHEAD = 2**14, 2**20
"""Bytes that a file is ahead of its lines: as many as it has, within these."""
_RESERVED = 8
"""No episode begins once less than this part of the room is left: it is for those that run."""
_UNREADABLE = (
    FileNotFoundError,
    IsADirectoryError,
    PermissionError,
    ValueError,
    KeyError,
    TypeError,
    msgspec.MsgspecError,
)
"""What reading a file raises where that won't change."""
log = logging.getLogger(__name__)
_encode = msgspec.json.Encoder().encode
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Kept:
    """An episode as it lies in the spool."""

    head: Row
    """Its id as `episode`, and what it began with."""
    steps: list[dict[str, Any]]
    """From t = 0 on, none missing."""
    end: Row | None
    """None where the program was torn out of it."""
    num_bytes: int
    changed_at: float
    """When its file was last seen to change: up to half a minute before its last line."""


class Spool:
    """A directory that one program has open at a time. Safe to share between threads, and of one process.

    In a process that was forked off nothing begins or is added (UsageError), and nothing else has an effect.
    """

    def __init__(self, directory: Path, max_bytes: int) -> None:
        """Open a directory, made where it is missing; what an earlier program left in it waits.

        Raises UsageError when another program has it open, FlywheelError when a newer version wrote it.
        """
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)  # what a program observes may be nobody else's affair
        self._directory, self._max_bytes = directory, max_bytes
        self._mutex, self._process = threading.Lock(), process()
        self._sizes: dict[str, int] = {}
        self._heads: dict[str, Row] = {}
        self._files: dict[str, mmap.mmap] = {}
        self._waiting: dict[str, None] = {}
        self._is_closed = False
        self.wake: Callable[[], None] = lambda: None
        """Called whenever an episode begins to wait."""
        self._lock = _locked(directory)
        try:
            self._find()
        except BaseException:
            os.close(self._lock)
            raise
        self._num_refused = self.num_bytes = 0
        """Bytes of all that it holds, of refused episodes too."""
        self._weigh()

    def _weigh(self) -> None:
        refused = [path.stat().st_size for path in self._directory.glob(f"*{_REFUSED}")]
        self._num_refused, self.num_bytes = len(refused), sum(self._sizes.values()) + sum(refused)

    def _has_room(self, max_bytes: int) -> bool:
        """Say whether it holds no more than this; people may have deleted what was refused."""
        if self.num_bytes > max_bytes:
            self._weigh()
        return self.num_bytes <= max_bytes

    def _find(self) -> None:
        for path in sorted(self._directory.glob(f"*{_SUFFIX}"), key=lambda path: path.stat().st_mtime_ns):
            try:
                first = list(itertools.islice(_lines(path), 2))
                if len(first) < 2:  # its program died before a step of it was whole
                    path.unlink()
                    continue
                id, version = first[0]["episode"], first[0]["schema_version"]
            except _UNREADABLE as error:
                log.warning("%s can't be read (%r): put aside.", path, error)
                path.rename(path.with_suffix(_REFUSED))
                continue
            if version > SCHEMA_VERSION:
                raise FlywheelError(
                    f"The spool {self._directory} was written in format {version}, and this version reads up to "
                    f"{SCHEMA_VERSION}: update flywheel."
                )
            self._sizes[id], self._heads[id], self._waiting[id] = path.stat().st_size, first[0], None

    @property
    def waiting(self) -> tuple[str, ...]:
        """Ids of the episodes that nobody plays any more and that aren't acknowledged, oldest first."""
        with self._mutex:
            return tuple(self._waiting)

    def begun(self) -> list[Row]:
        """Return what each episode began with that isn't acknowledged yet, played or waiting."""
        with self._mutex:
            return list(self._heads.values())

    def close(self) -> None:
        """Let another program open the directory; whatever is in it stays."""
        with self._mutex:
            self._is_closed = True
            for id in list(self._files):
                self._shut(id)
            if self._lock >= 0:
                os.close(self._lock)
                self._lock = -1

    # An episode's way through it

    def begin(self, id: str, **head: Any) -> None:
        """Take in a new episode; `head` is what its steps don't say.

        Raises UsageError for an id that is in the spool, FullError when little room is left.
        """
        check_process(self._process)
        with self._mutex:
            if id in self._sizes:
                raise UsageError(f"Episode {id!r} is in the spool already: give every episode its own id.")
            if not self._has_room(self._max_bytes - self._max_bytes // _RESERVED):
                raise FullError(f"{self._full()} No episode begins until there is room; those that run go on.")
            self._sizes[id] = 0
            row = self._heads[id] = {"schema_version": SCHEMA_VERSION, "episode": id, **head}
            try:
                self._append(id, row)
            except BaseException:
                self._remove(id)
                raise

    def add(self, id: str, row: Row) -> None:
        """Keep a step of an episode that began, or its end; of two for one t the later one counts.

        Raises FullError, keeping nothing.
        """
        check_process(self._process)
        with self._mutex:
            self._append(id, row)

    def sync(self, id: str) -> None:
        """Return when what was kept of an episode is on the disk, whatever becomes of the machine.

        Raises FullError when the disk does not take it.
        """
        try:
            with self._mutex:
                (self._files.get(id) or self._opened(id, self._sizes[id])).flush()
            directory = os.open(self._directory, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            raise self._takes_nothing(error) from error

    def leave(self, id: str) -> None:
        """Let an episode wait that nobody plays any more, ended or not."""
        if process() != self._process:
            return
        with self._mutex:
            self._shut(id)
            self._waiting[id] = None
        self.wake()

    def read(self, id: str) -> Kept:
        """Return an episode as far as it was kept. Raises DamagedError where its file can't be read, or is gone."""
        path = self._path(id)
        try:
            head, *rest = _lines(path)
            steps = {row["t"]: row for row in rest if "terminated" not in row}
            ends = [row for row in rest if "terminated" in row]
            info = path.stat()
            whole = [steps[t] for t in range(len(steps))]
        except _UNREADABLE as error:
            raise DamagedError(f"{path} can't be read: {error!r}.") from error
        return Kept(head, whole, ends[-1] if ends else None, info.st_size, info.st_mtime)

    def drop(self, id: str) -> None:
        """Forget an episode: it is acknowledged, or nobody is to hear of it."""
        if process() != self._process:
            return
        with self._mutex:
            self._remove(id)

    def refuse(self, id: str, why: str) -> None:
        """Put an episode aside that will never be taken; its file, if it is there, stays for people, and counts."""
        path = self._path(id)
        aside = path.with_suffix(_REFUSED)
        with self._mutex:
            self._shut(id)
            try:
                path.rename(aside)
            except FileNotFoundError:
                log.warning("Episode %s is not sent: %s", id, why)
                self._remove(id)
                return
            self._num_refused += 1
            del self._sizes[id], self._heads[id], self._waiting[id]
        log.warning("Episode %s was refused and lies in %s: %s", id, aside, why)

    # Files

    def _path(self, id: str) -> Path:
        return self._directory / f"{hashlib.blake2b(id.encode(), digest_size=16).hexdigest()}{_SUFFIX}"

    def _append(self, id: str, row: Row) -> None:
        text = _encode(row)
        line = b"%08x %b\n" % (zlib.crc32(text), text)
        size = len(line)
        if not self._has_room(self._max_bytes - size):
            raise FullError(f"{self._full()} Nothing was kept; the same call may be made again once there is room.")
        begin = self._sizes[id]
        end = begin + size
        file = self._files.get(id)
        if file is None or end > len(file):
            file = self._opened(id, end)
        file[begin:end] = line
        self._sizes[id] = end
        self.num_bytes += size

    def _takes_nothing(self, error: OSError) -> FullError:
        return FullError(
            f"The disk of the spool {self._directory} takes nothing ({error}): make room there, and make the same call "
            "again."
        )

    def _opened(self, id: str, size: int) -> mmap.mmap:
        """Return the file with room for so many bytes. Raises FullError where its disk doesn't have that."""
        if self._is_closed:
            raise UsageError("The client is closed, and its spool with it: open another one.")
        self._shut(id)
        if len(self._files) == _OPEN_FILES:
            self._shut(next(iter(self._files)))
        begin, room = self._sizes[id], size + min(max(size, _AHEAD), _FAR_AHEAD)
        try:
            file = os.open(self._path(id), os.O_CREAT | os.O_RDWR, 0o600)
            try:
                _write(file, begin, room)
                self._files[id] = mmap.mmap(file, room)
            finally:
                os.close(file)
        except OSError as error:
            raise self._takes_nothing(error) from error
        return self._files[id]

    def _shut(self, id: str) -> None:
        if (file := self._files.pop(id, None)) is not None:
            file.close()
            with contextlib.suppress(OSError):  # zeros at its end are no lines, and a file that is gone is named later
                os.truncate(self._path(id), self._sizes[id])

    def _remove(self, id: str) -> None:
        self._shut(id)
        self._path(id).unlink(missing_ok=True)
        self._waiting.pop(id, None)
        del self._heads[id]
        self.num_bytes -= self._sizes.pop(id)

    def _full(self) -> str:
        aside = f" and {self._num_refused} refused ones (*{_REFUSED}): look at them and delete them"
        return (
            f"The spool {self._directory} holds {self.num_bytes:,} of at most {self._max_bytes:,} bytes, "
            f"{len(self._sizes)} episodes that the server has not acknowledged yet{aside if self._num_refused else ''}."
        )


def _write(file: int, begin: int, end: int) -> None:
    """Let the disk give room up to `end`: memory that the disk has no room for would kill who writes there."""
    if (written := os.pwrite(file, bytes(end - begin), begin)) != end - begin:
        os.ftruncate(file, begin)
        raise OSError(f"{written} of {end - begin} bytes were written")


def _locked(directory: Path) -> int:
    lock = os.open(directory / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise UsageError(
            f"The spool {directory} is in use by another program: give each program a directory of its own."
        ) from error
    return lock


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield what the lines of a file say, up to one that isn't whole."""
    with open(path, "rb") as file:
        for line in file:
            mark, _, text = line.partition(b" ")
            if mark != b"%08x" % zlib.crc32(text.removesuffix(b"\n")) or not line.endswith(b"\n"):
                return
            yield msgspec.json.decode(text)
