"""A run directory without Ray: its configuration, its journal, and where the rooms' files are.

The driver that turns the wheel owns config.json and journal.jsonl and writes them through here.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from flywheel.config import Config, canonical
from flywheel.errors import UsageError
from flywheel.records import SCHEMA_VERSION, Turn

CONFIG = "config.json"
JOURNAL = "journal.jsonl"
CLUSTER = "cluster.json"
LOCK = "lock"
TRAFFIC = "traffic"
POLICIES = "policies"


@contextmanager
def opened(run_dir: Path, config: Config, task: str, digest: str) -> Iterator[None]:
    """Hold the run directory, made or gone on with, as the one driver that turns its wheel.

    Raises UsageError, touching nothing, if it is another task's, another driver's, or can't be written.
    """
    try:
        _begin(run_dir, config, task, digest)
        (run_dir / LOCK).touch()
    except OSError as error:
        raise UsageError(f"The run directory {run_dir} can't be used ({error}): give another --run-dir.") from error
    with open(run_dir / LOCK, "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(
                f"Another process turns the wheel in {run_dir}: end it first, or give another --run-dir."
            ) from error
        _write_whole(run_dir / CONFIG, _configuration(config, task, digest))
        yield


def _configuration(config: Config, task: str, digest: str) -> str:
    plain = {"schema_version": SCHEMA_VERSION, "task": task, "task_digest": digest}
    return json.dumps({**plain, "config": dataclasses.asdict(config)}, indent=2)


def _begin(run_dir: Path, config: Config, task: str, digest: str) -> None:
    path = run_dir / CONFIG
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
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


def read_config(run_dir: Path) -> dict[str, Any]:
    """Return config.json: the task's name and digest, and the configuration of the last start."""
    path = run_dir / CONFIG
    if not path.exists():
        raise UsageError(f"{run_dir} is no run directory: there is no {CONFIG} in it.")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def write_address(run_dir: Path, address: str, namespace: str) -> None:
    """Say where the living owner of this run directory is: Ray's GCS address, and the namespace of its actors."""
    _write_whole(run_dir / CLUSTER, json.dumps({"address": address, "namespace": namespace}))


def forget_address(run_dir: Path) -> None:
    """Say that nobody is up any more."""
    (run_dir / CLUSTER).unlink(missing_ok=True)


def read_address(run_dir: Path) -> tuple[str, str] | None:
    """Return (GCS address, namespace) of whoever is up in this run directory, or was until it was killed, else None."""
    path = run_dir / CLUSTER
    if not path.exists():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    return found["address"], found["namespace"]


def append_turn(run_dir: Path, turn: Turn) -> None:
    """Write one turn to the journal; when this returns it is on the disk."""
    line = canonical({"schema_version": SCHEMA_VERSION, **dataclasses.asdict(turn)}) + "\n"
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


def read_turns(run_dir: Path) -> list[Turn]:
    """Return the journal's turns in order; a last line that a crash cut off is not a turn."""
    path = run_dir / JOURNAL
    if not path.exists():
        return []
    *lines, _ = path.read_text(encoding="utf-8").split("\n")
    return [msgspec.convert(json.loads(line), Turn) for line in lines]
