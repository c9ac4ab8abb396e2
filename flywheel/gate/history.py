"""Every verdict the gate ever gave, one line of JSON each, durable before it is told to anyone."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import msgspec

from flywheel.config import canonical
from flywheel.records import SCHEMA_VERSION, Verdict


class History:
    """The file `verdicts.jsonl`: one writer appends, anyone may read."""

    def __init__(self, path: Path) -> None:
        """Open or create the file; a last line that a crash left unfinished is cut off."""
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        with open(path, "r+b") as file:
            whole = file.read().rfind(b"\n") + 1
            file.truncate(whole)

    def append(self, verdict: Verdict) -> None:
        """Write one verdict and return when the disk has it."""
        line = canonical({"schema_version": SCHEMA_VERSION, **dataclasses.asdict(verdict)}) + "\n"
        with open(self._path, "ab") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> list[Verdict]:
        """Return all verdicts, oldest first."""
        lines = self._path.read_text(encoding="utf-8").splitlines()
        return [msgspec.convert(json.loads(line), Verdict) for line in lines]
