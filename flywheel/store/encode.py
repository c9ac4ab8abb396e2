"""An Episode as bytes and back: msgpack with raw arrays, no pickle, nothing that could run code."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain, groupby, repeat
from typing import Any

import msgspec
import numpy as np

from flywheel.errors import FlywheelError
from flywheel.records import SCHEMA_VERSION, Array, End, Episode, Origin

_PLAIN = frozenset(("|b1", "|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8"))
Layout = tuple[tuple[str, tuple[int, ...]], ...]
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
        digests=_runs(episode.digests),
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


def _runs(digests: tuple[str, ...]) -> list[tuple[str, int]]:
    if digests and digests.count(digests[0]) == len(digests):  # nearly always
        return [(digests[0], len(digests))]
    return [(digest, len(list(run))) for digest, run in groupby(digests)]


def content(body: bytes) -> bytes:
    """Return the sha256 of an encoded episode: equal exactly when the same things happened, whenever they were sent."""
    return hashlib.sha256(body).digest()


ARRAYS = ("observations", "raw_actions", "rewards", "logps")
"""What an encoded episode holds step by step."""


def split(body: bytes) -> tuple[bytes, dict[str, Array]]:
    """Return an encoded episode without the numbers of its steps, and those by name; `joined` puts them together."""
    found = _DECODER.decode(body)
    arrays = {name: _unpack(getattr(found, name)) for name in ARRAYS}
    empty = {name: msgspec.structs.replace(getattr(found, name), data=b"") for name in ARRAYS}
    return _ENCODER.encode(msgspec.structs.replace(found, **empty)), arrays


def joined(header: bytes, arrays: Mapping[str, Array]) -> bytes:
    """Return the encoded episode that `split` took apart, to the bit."""
    found = _DECODER.decode(header)
    filled = {}
    for name in ARRAYS:
        packed = getattr(found, name)
        data = np.ascontiguousarray(arrays[name], np.dtype(packed.dtype)).tobytes()
        filled[name] = msgspec.structs.replace(packed, data=data)
    return _ENCODER.encode(msgspec.structs.replace(found, **filled))


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An episode on its way into a segment, or out of one."""

    id: str
    body: bytes
    """The episode as it was told, encoded."""
    failed: bool
    started_at: float
    ended_at: float
    inclusion: float
    """Probability with which one like it is kept."""
    late: Mapping[int, float] = field(default_factory=dict)
    """Rewards that came late, by step."""


def layout(body: bytes) -> Layout | None:
    """Return types and shapes of an episode's arrays, which are one file's; None where Parquet can't hold them."""
    _, arrays = split(body)
    observations, steps = arrays["observations"], len(arrays["rewards"])
    wanted = {"observations": steps + 1, "raw_actions": steps, "rewards": steps, "logps": steps}
    episode = decode(body, 0.0, 0.0)
    fine = len(episode.digests) == steps and episode.rewards.ndim == episode.logps.ndim == 1
    fine = fine and episode.rewards.dtype.kind == "f" and observations.ndim > 0 and arrays["raw_actions"].ndim > 0
    for name, length in wanted.items():
        array = arrays[name]
        fine = fine and array.dtype.str in _PLAIN and len(array) == length and 0 not in array.shape[1:]
    return tuple((arrays[name].dtype.str, arrays[name].shape[1:]) for name in wanted) if fine else None


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
