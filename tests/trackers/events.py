"""TensorBoard's event files read back by the rules of TFRecord and Protocol Buffers, up to a torn end."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Curves = dict[str, list[tuple[int, float]]]


def crc32c(data: bytes) -> int:
    """Return the plain CRC32C, bit by bit."""
    rest = 0xFFFFFFFF
    for byte in data:
        rest ^= byte
        for _ in range(8):
            rest = (rest >> 1) ^ (0x82F63B78 if rest & 1 else 0)
    return rest ^ 0xFFFFFFFF


def masked(data: bytes) -> bytes:
    """Return the checksum as it stands in a file."""
    rest = crc32c(data)
    return struct.pack("<I", ((rest >> 15 | rest << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def records(data: bytes) -> Iterator[bytes]:
    """Yield whole records whose checksums hold."""
    while len(data) >= 12:
        (length,) = struct.unpack("<Q", data[:8])
        assert data[8:12] == masked(data[:8])
        if len(data) < 16 + length:
            return
        body = data[12 : 12 + length]
        assert data[12 + length : 16 + length] == masked(body)
        yield body
        data = data[16 + length :]


def fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield (number, value) of a message's fields."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        number, kind = divmod(varint(), 8)
        if kind == 0:
            yield number, varint()
        else:
            size = {1: 8, 5: 4}.get(kind) or varint()
            raw, at = data[at : at + size], at + size
            yield number, raw if kind == 2 else struct.unpack("<d" if kind == 1 else "<f", raw)[0]


def curves(directory: Path) -> Curves:
    """Return the curves below a directory by their names, (step, value) each; a start voids what it goes back over."""
    found: Curves = {}
    for path in sorted(directory.glob("events.out.tfevents.*")):
        first, *rest = records(path.read_bytes())
        assert (3, b"brain.Event:2") in fields(first)
        for event in map(lambda record: dict(fields(record)), rest):
            step = event[2]
            if 7 in event:
                found = {name: [point for point in curve if point[0] < step] for name, curve in found.items()}
            for number, value in fields(event.get(5, b"")):
                assert number == 1
                tag = dict(fields(value))
                found.setdefault(tag[1].decode(), []).append((step, tag[2]))
    return found
