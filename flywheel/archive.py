"""A run directory without Ray: its configuration, its journal, its story, and where the rooms' files are.

The driver that turns the wheel owns config.json, journal.jsonl and events.jsonl and writes them through here.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO, TypedDict, TypeVar

import msgspec

from flywheel.config import Config, canonical
from flywheel.errors import FlywheelError, UsageError
from flywheel.records import SCHEMA_VERSION, Told, Turn

CONFIG = "config.json"
JOURNAL = "journal.jsonl"
EVENTS = "events.jsonl"
LOCK = "lock"
TRAFFIC = "traffic"
LIVING = "cluster.json"
DRAFT = "turn.json"
HELD = "held.json"
LEFT = "turns_left"
"""What a turn's evidence says of the start that took it: how many turns it still had to take, 0 where it was over."""
T = TypeVar("T")


class Start(TypedDict):
    """What config.json says of the last start."""

    task: str
    task_digest: str
    config: Config


class Held(TypedDict):
    """What held.json says."""

    reason: str
    at: float
    """UTC epoch seconds."""


@contextmanager
def opened(run_dir: Path, config: Config, task: str, digest: str) -> Iterator[None]:
    """Hold the run directory, made or gone on with, as the one driver that turns its wheel.

    Raises UsageError, touching nothing, if it is another task's, another driver's, or can't be written, and
    FlywheelError if its configuration is damaged.
    """
    try:
        _begin(run_dir, config, task, digest)
        (run_dir / LOCK).touch()
    except OSError as error:
        raise UsageError(f"The run directory {run_dir} can't be used ({error}): give another --run-dir.") from error
    with open(run_dir / LOCK, "w", encoding="utf-8") as lock:
        while not _took(lock, fcntl.LOCK_EX):
            if not _took(lock, fcntl.LOCK_SH):
                raise UsageError(
                    f"Another process turns the wheel in {run_dir}: end it first, or give another --run-dir."
                )
            fcntl.flock(lock, fcntl.LOCK_UN)  # somebody only looked, in `is_held`, and is gone by now
        _write_whole(run_dir / CONFIG, _configuration(config, task, digest))
        yield


def _configuration(config: Config, task: str, digest: str) -> str:
    plain = {"schema_version": SCHEMA_VERSION, "task": task, "task_digest": digest}
    return json.dumps({**plain, "config": dataclasses.asdict(config)}, indent=2)


def _begin(run_dir: Path, config: Config, task: str, digest: str) -> None:
    path = run_dir / CONFIG
    if path.exists():
        found = read_config(run_dir)
        if found["task_digest"] != digest:
            changed = "an earlier form of task" if found["task"] == task else "task"
            raise UsageError(
                f"The run directory {run_dir} belongs to {changed} {found['task']!r}, not to {task!r} as it is now: "
                "its verdicts and episodes mean nothing there. Give another --run-dir."
            )
    elif run_dir.exists() and any(run_dir.iterdir()):
        raise UsageError(
            f"{run_dir} has files but is no run directory (there is no {CONFIG} in it). Give another --run-dir."
        )
    run_dir.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        _write_whole(path, _configuration(config, task, digest))


def _write_whole(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.new")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _decoded(path: Path, data: bytes, kind: type[T], instead: str, line: int = 0) -> T:
    """Return the record that a file, or a line of it, holds; FlywheelError names it and what to do where it is none."""
    try:
        return msgspec.convert(json.loads(data), kind)
    except (ValueError, msgspec.ValidationError) as error:
        place = f"Line {line} of {path}" if line else str(path)
        raise FlywheelError(f"{place} is damaged ({error}): put a copy of it back, or {instead}.") from error


def write_living(run_dir: Path, address: str, name: str, route: str) -> None:
    """Note where this run directory's owners are up: Ray's address, the wheel's name and its path under Serve."""
    _write_whole(run_dir / LIVING, json.dumps({"address": address, "name": name, "route": route}))


def is_held(run_dir: Path) -> bool:
    """Say whether a process turns the wheel in this run directory now; a look is in nobody's way."""
    if not (run_dir / LOCK).exists():
        return False
    with open(run_dir / LOCK, encoding="utf-8") as lock:
        return not _took(lock, fcntl.LOCK_SH)


def _took(lock: TextIO, how: int) -> bool:
    """Take a lock at once, for itself alone (LOCK_EX, an owner) or shared (LOCK_SH, a look); False where it can't."""
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def forget_living(run_dir: Path) -> None:
    """Take the note away: nothing of this run directory is up any more."""
    (run_dir / LIVING).unlink(missing_ok=True)


def read_living(run_dir: Path) -> dict[str, str] | None:
    """Return the note of `write_living`, None where there is none; FlywheelError where it is damaged."""
    path = run_dir / LIVING
    instead = "end what this run has up by hand and delete it"
    return _decoded(path, path.read_bytes(), dict[str, str], instead) if path.exists() else None


def read_config(run_dir: Path) -> Start:
    """Return config.json: the task's name and digest, and the configuration of the last start.

    Raises UsageError where there is none, FlywheelError where it is damaged.
    """
    path = run_dir / CONFIG
    if not path.exists():
        raise UsageError(f"{run_dir} is no run directory: there is no {CONFIG} in it.")
    return _decoded(path, path.read_bytes(), Start, "give another run directory")


def hold(run_dir: Path, reason: str, now: float) -> None:
    """Throw the switch that holds the wheel, for a reason; anybody may, also while the wheel is busy, or is down.

    Raises UsageError, changing nothing, without a reason or where there is no run directory.
    """
    read_config(run_dir)
    if not reason.strip():
        raise UsageError("The wheel is held for a reason, which is kept: give one.")
    _write_whole(run_dir / HELD, json.dumps({"reason": reason.strip(), "at": now}))


def go(run_dir: Path) -> bool:
    """Let the wheel turn again; return whether it was held. Raises UsageError where there is no run directory."""
    read_config(run_dir)
    was_held = (run_dir / HELD).exists()
    (run_dir / HELD).unlink(missing_ok=True)
    return was_held


def held(run_dir: Path) -> str:
    """Return why a person holds the wheel, "" where nobody does; FlywheelError where the file is damaged."""
    path = run_dir / HELD
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return ""
    return _decoded(path, data, Held, "delete it by `flywheel decide --go`")["reason"]


def keep_draft(run_dir: Path, turn: Turn) -> None:
    """Write down a turn that is under way; when this returns it is on the disk."""
    _write_whole(run_dir / DRAFT, _line(turn))


def read_draft(run_dir: Path) -> Turn | None:
    """Return the turn that was under way, None where there is none; FlywheelError where it is damaged."""
    path = run_dir / DRAFT
    try:
        data = path.read_bytes()
    except FileNotFoundError:  # also between two looks at it: the turn has just ended
        return None
    return _decoded(path, data, Turn, "delete it, so that its turn begins again")


def _line(turn: Turn) -> str:
    return canonical({"schema_version": SCHEMA_VERSION, **dataclasses.asdict(turn)})


def append_turn(run_dir: Path, turn: Turn) -> None:
    """Write one whole turn to the journal; when this returns it is on the disk, and no longer under way."""
    line = _line(turn) + "\n"
    with open(run_dir / JOURNAL, "a+b") as file:
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
            if file.read(1) != b"\n":  # a crash cut the last line: it was never acknowledged, so it goes
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())
    (run_dir / DRAFT).unlink(missing_ok=True)


def to_come(turns: Sequence[Turn], config: Config) -> range:
    """Return the numbers of the turns that a start is to take: on from the journal's end, at least one.

    A start that was cut off leaves its count to the next one; after one that ended by itself it begins anew.
    """
    done = turns[-1].number if turns else 0
    if config.forever:
        return range(done + 1, sys.maxsize)
    over = next((turn.number for turn in reversed(turns) if not turn.evidence.get(LEFT)), 0)
    return range(done + 1, max(done + 1, over + config.turns) + 1)


def read_turns(run_dir: Path) -> list[Turn]:
    """Return the journal's turns in order; a last line that is being written, or that a crash cut off, is none yet.

    Raises FlywheelError, with its number, where another line is damaged.
    """
    path = run_dir / JOURNAL
    if not path.exists():
        return []
    *lines, _ = path.read_bytes().split(b"\n")
    instead = "delete that line, and its turn is forgotten"
    return [_decoded(path, line, Turn, instead, number) for number, line in enumerate(lines, 1)]


def tell(run_dir: Path, told: Told) -> None:
    """Write one sentence to the story; a line that a crash cut off before stays by itself and is read by nobody."""
    with open(run_dir / EVENTS, "a+b") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(end - 1, 0))
        torn = end > 0 and file.read(1) != b"\n"
        file.write(b"\n" * torn + msgspec.json.encode(told) + b"\n")


def read_told(run_dir: Path, begin: int = 0) -> list[tuple[int, Told]]:
    """Return the story's sentences from byte `begin` on, each with the byte where its line ends.

    That byte is where a reader goes on; `begin` in the middle of a line begins at the next one.
    """
    path = run_dir / EVENTS
    if not path.exists():
        return []
    found = []
    with open(path, "rb") as file:
        end = max(begin - 1, 0)
        file.seek(end)
        if begin:
            end += len(file.readline())
        for line in file:
            if not line.endswith(b"\n"):
                break  # it is being written
            end += len(line)
            try:
                found.append((end, msgspec.json.decode(line, type=Told)))
            except msgspec.MsgspecError:
                continue  # a crash cut it off
    return found
