"""TensorBoard's event files: `turn-0001/` has a round's curves over its own steps, `turns/` a point of each turn.

Written without tensorboardX, which imports torch where it is installed (3 s, 200 MiB in the process that turns the
wheel). An event file is a row of TFRecords (length, its checksum, data, its checksum; the checksum is a masked CRC32C),
each an Event in Protocol Buffers (tensorflow/core/util/event.proto). A record is one write, so that a process which is
killed leaves whole ones, and at most a torn last one, at which readers stop.
"""

from __future__ import annotations

import shutil
import struct
import time
from collections.abc import Callable, Mapping
from pathlib import Path

KEPT = 20
"""Rounds whose curves are kept, the last ones: some 60 KB each."""
_MOST = 3.4e38
"""The largest number that the format's float32 has room for, nearly; a diverging loss is larger."""
_TABLE = []
for _byte in range(256):
    _rest = _byte
    for _ in range(8):
        _rest = (_rest >> 1) ^ (0x82F63B78 if _rest & 1 else 0)
    _TABLE.append(_rest)


class TensorBoard:
    """Writes a run's event files; each start of a round has a file of its own."""

    def __init__(self, directory: Path, clock: Callable[[], float] = time.time) -> None:
        """Write below a directory, which is made with the first point."""
        self._directory, self._clock = directory, clock
        self._round: EventFile | None = None
        self._turns: EventFile | None = None

    def round(self, turn: int, steps: int, total: int, numbers: Mapping[str, float], *, is_first: bool) -> None:
        """Write a point of a turn's round; where a round began again, its new curve takes the old one's place."""
        if is_first or self._round is None:
            self._round = EventFile(self._directory / f"turn-{turn:04}", self._clock())
            self._round.write(self._clock(), step=0, is_start=True)
            for old in sorted(self._directory.glob("turn-*"), key=lambda path: (len(path.name), path.name))[:-KEPT]:
                shutil.rmtree(old)
        self._round.write(self._clock(), step=steps, numbers=numbers)

    def turn(self, number: int, numbers: Mapping[str, float]) -> None:
        """Write the point of a turn."""
        if self._turns is None:
            self._turns = EventFile(self._directory / "turns", self._clock())
        self._turns.write(self._clock(), step=number, numbers=numbers)

    def close(self) -> None:
        """Do nothing: everything was written before."""


class EventFile:
    """One event file, new in its directory."""

    def __init__(self, directory: Path, now: float) -> None:
        """Begin the file; its name sorts after those of earlier starts."""
        directory.mkdir(parents=True, exist_ok=True)
        number = len(list(directory.iterdir()))
        self._path = directory / f"events.out.tfevents.{int(now):010}.flywheel.{number:04}"
        self._append(_double(1, now) + _bytes(3, b"brain.Event:2"))

    def write(self, now: float, step: int, numbers: Mapping[str, float] | None = None, is_start: bool = False) -> None:
        """Write numbers at a step, or that what an earlier file says of this step and later ones is void."""
        event = _double(1, now) + _integer(2, step)
        if numbers:
            values = (_bytes(1, _bytes(1, name.encode()) + _float(2, value)) for name, value in numbers.items())
            event += _bytes(5, b"".join(values))
        if is_start:
            event += _bytes(7, _integer(1, 1))
        self._append(event)

    def _append(self, event: bytes) -> None:
        with open(self._path, "ab", buffering=0) as file:  # a point takes seconds to come: no handle is held for it
            file.write(record(event))


def record(data: bytes) -> bytes:
    """Return a TFRecord of some data."""
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", _checksum(length)) + data + struct.pack("<I", _checksum(data))


def _checksum(data: bytes) -> int:
    """Return the CRC32C (Castagnoli) of some data, masked as TFRecord wants it."""
    rest = 0xFFFFFFFF
    for byte in data:
        rest = _TABLE[(rest ^ byte) & 0xFF] ^ (rest >> 8)
    rest ^= 0xFFFFFFFF
    return (((rest >> 15) | (rest << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _integer(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _double(field: int, value: float) -> bytes:
    return _varint(field << 3 | 1) + struct.pack("<d", value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _float(field: int, value: float) -> bytes:
    return _varint(field << 3 | 5) + struct.pack("<f", min(max(value, -_MOST), _MOST))  # NaN stays: max takes the first
