"""Records of time travel as they go over HTTP, to the last bit. Pure.

MessagePack, because JSON has no word for NaN and none for an array's type: what is read is what was written.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, get_origin

import msgspec
import numpy as np

from flywheel.records import Array, Episode, Parameters
from flywheel.tapes import Difference
from flywheel.trace.effect import Effect
from flywheel.trace.result import Result

FORM = 1
"""Version of what a page answers to time travel; a program that knows another one is told so when it connects."""
MEDIA_TYPE = "application/msgpack"
_DTYPE = re.compile(r"[<|][biuf][1248]")


class Stand(msgspec.Struct, frozen=True, kw_only=True):
    """A fork before anything is edited."""

    episode: Episode
    parameters: Parameters
    """Of the world that it goes on in."""


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """A Result without the original, which whoever asked for it has, and without what would save a scenario."""

    task: str
    unedited: Episode | None
    """None where it is the original."""
    fork: Episode
    at: int
    edits: tuple[str, ...]
    world: Parameters
    rewarded: bool
    difference: Difference | None
    effect: Effect | None


def replayed(result: Result) -> Replayed:
    """Return a result as it travels."""
    fields = {name: getattr(result, name) for name in Replayed.__struct_fields__}
    return Replayed(**{**fields, "unedited": None if result.unedited is result.original else result.unedited})


def packed(value: Any) -> bytes:
    """Return a record, or a container of records, as bytes."""
    return _ENCODER.encode(value)


def unpacked(data: bytes, kind: Any) -> Any:
    """Return what `packed` was given; msgspec.MsgspecError where the bytes are nothing of that kind."""
    return msgspec.msgpack.decode(data, type=kind, dec_hook=_array)


class _Flat(msgspec.Struct, frozen=True, array_like=True):
    dtype: str
    shape: tuple[Annotated[int, msgspec.Meta(ge=0)], ...]
    data: bytes


def _flat(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and _DTYPE.fullmatch(value.dtype.str):
        return _Flat(value.dtype.str, value.shape, value.tobytes())
    raise NotImplementedError(f"Nothing of type {type(value).__name__} travels.")


def _array(kind: Any, value: Any) -> Array:
    if get_origin(kind) is not np.ndarray:
        raise NotImplementedError(f"Nothing of type {kind} travels.")
    flat = msgspec.convert(value, _Flat)
    if not _DTYPE.fullmatch(flat.dtype):
        raise ValueError(f"No array of {flat.dtype!r} travels")
    return np.frombuffer(flat.data, flat.dtype).reshape(flat.shape).copy()


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_flat)
