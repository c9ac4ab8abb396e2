"""An Episode as bytes and back: msgpack with raw arrays, no pickle, nothing that could run code."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from itertools import chain, groupby, repeat
from typing import Any

import msgspec
import numpy as np

from flywheel.errors import FlywheelError
from flywheel.records import SCHEMA_VERSION, Array, End, Episode, Origin

TOLERANCE = 1e-5
"""Most by which two kinds of CPU differ in a log probability."""


class _Packed(msgspec.Struct):
    dtype: str
    shape: tuple[int, ...]
    data: bytes


class _Body(msgspec.Struct):
    """Everything that happened in an episode; when it happened stands in the store's columns."""

    schema_version: int
    id: str
    origin: Origin
    task: str
    parameters: Mapping[str, float]
    draw_key: int
    digests: list[tuple[str, int]]
    observations: _Packed
    raw_actions: _Packed
    rewards: _Packed
    logps: _Packed
    end: End
    failed: bool
    scenario: str
    seed: int | None
    edits: tuple[str, ...]
    parent: tuple[str, int] | None
    inclusion: float


_ENCODER = msgspec.msgpack.Encoder(order="deterministic")
_DECODER = msgspec.msgpack.Decoder(_Body)


def _pack(array: Array) -> _Packed:
    return _Packed(array.dtype.str, array.shape, np.ascontiguousarray(array).tobytes())


def _unpack(packed: _Packed) -> Array:
    dtype = np.dtype(packed.dtype)
    if dtype.kind not in "biuf":
        raise FlywheelError(f"A stored array has the type {packed.dtype}, no plain number: the store is damaged.")
    return np.frombuffer(packed.data, dtype=dtype).reshape(packed.shape)


def encode(episode: Episode) -> bytes:
    """Return the episode without its times as bytes that are a function of its content alone."""
    body = _Body(
        schema_version=SCHEMA_VERSION,
        id=episode.id,
        origin=episode.origin,
        task=episode.task,
        parameters={name: float(value) for name, value in episode.parameters.items()},
        draw_key=int(episode.draw_key),
        digests=[(digest, len(list(run))) for digest, run in groupby(episode.digests)],
        observations=_pack(episode.observations),
        raw_actions=_pack(episode.raw_actions),
        rewards=_pack(episode.rewards),
        logps=_pack(episode.logps),
        end=episode.end,
        failed=bool(episode.failed),
        scenario=episode.scenario,
        seed=episode.seed,
        edits=tuple(episode.edits),
        parent=episode.parent,
        inclusion=float(episode.inclusion),
    )
    return _ENCODER.encode(body)


def content(body: bytes) -> bytes:
    """Return the sha256 of an encoded episode: equal exactly when the same things happened, whenever they were sent."""
    return hashlib.sha256(body).digest()


def is_alike(one: bytes, other: bytes) -> bool:
    """Say whether two encoded episodes differ in nothing but log probabilities that two kinds of CPU computed."""
    a, b = _DECODER.decode(one), _DECODER.decode(other)
    if msgspec.structs.replace(a, logps=b.logps) != b or a.logps.shape != b.logps.shape:
        return False
    return bool(np.allclose(_unpack(a.logps), _unpack(b.logps), rtol=0.0, atol=TOLERANCE, equal_nan=True))


def decode(body: bytes, started_at: float, ended_at: float) -> Episode:
    """Return the Episode of `encode`'s bytes, its arrays read-only; FlywheelError when a newer version wrote them."""
    found = _DECODER.decode(body)
    if found.schema_version > SCHEMA_VERSION:
        raise FlywheelError(
            f"Episode {found.id} was written in format {found.schema_version}, and this version reads up to "
            f"{SCHEMA_VERSION}: update flywheel."
        )
    fields: dict[str, Any] = msgspec.structs.asdict(found)
    del fields["schema_version"]
    for name in ("observations", "raw_actions", "rewards", "logps"):
        fields[name] = _unpack(fields[name])
    fields["digests"] = tuple(chain.from_iterable(repeat(digest, count) for digest, count in found.digests))
    return Episode(**fields, started_at=started_at, ended_at=ended_at)
