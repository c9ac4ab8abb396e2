"""A span as it travels and rests: one flat row. Pure."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec

from flywheel.errors import FlywheelError

Scalar = str | int | float | bool
Value = Scalar | list[Scalar]
Metric = tuple[str, float | None, float]
"""Name, value (None where it is no finite number), and when it was logged."""
Source = Literal["client", "replica", "observer", "loop"]
Why = Literal["", "failed", "signal", "turn"]
"""Why a whole trace is kept beyond its time, the weakest reason first; "" where it isn't."""
MAX_ROWS = 512
"""Spans of one message."""
MAX_BODY = 2**20
"""Bytes of one message."""
MAX_ATTRIBUTES = 64
"""Attributes of a span; also its links, and what one list may hold."""
MAX_TEXT = 1024
"""Characters of a text in an attribute."""
MAX_METRICS = 512
"""Values that one span may log; of more, the oldest are lost."""
MAX_SPAN = 2**16
"""Bytes that a span may take of a message, in the mean."""


class Row(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One span that is over."""

    trace: str
    """32 hexadecimal digits."""
    id: str
    """16 hexadecimal digits."""
    parent: str
    """The id of the span in the same trace that it belongs under; "" for none."""
    name: str
    source: Source
    started_at: float
    ended_at: float
    attributes: dict[str, Value] = {}
    metrics: tuple[Metric, ...] = ()
    links: tuple[tuple[str, str], ...] = ()
    """(trace, span) of what it has to do with in other traces."""
    error: str = ""
    """What went wrong inside; "" if nothing."""
    why: Why = ""
    """Why its whole trace is to be kept."""


def fresh_id() -> str:
    """Return the id of a new span."""
    return f"{random.getrandbits(64) or 1:016x}"


def packed(rows: Sequence[Row]) -> bytes:
    """Return rows as bytes for `unpacked`."""
    return _ENCODER.encode(rows)


def unpacked(data: bytes) -> list[Row]:
    """Return the rows of `packed`."""
    return _DECODER.decode(data)


_ENCODER, _DECODER = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder(list[Row])


def carried(value: Any) -> Value:
    """Return what an attribute can carry of a value: text, numbers, booleans and lists of them, cut to their limits.

    NumPy's numbers and arrays are numbers and lists.
    """
    kind = type(value)
    if (kind is str and len(value) <= MAX_TEXT) or kind is bool or (kind is float and math.isfinite(value)):
        return value  # type: ignore[no-any-return]  # as nearly all are
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, bool | int):
        return value if -(2**63) <= value < 2**63 else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [one if not isinstance(one := carried(part), list) else str(one) for part in value[:MAX_ATTRIBUTES]]
    return str(value)[:MAX_TEXT]


def metric(name: str, value: float, at: float) -> Metric:
    """Return a value that was logged, None in it where it is no finite number."""
    return name[:MAX_TEXT], float(value) if math.isfinite(value) else None, at


# What comes from outside

_Hex32 = Annotated[str, msgspec.Meta(pattern="^(?!0{32})[0-9a-f]{32}$", max_length=32)]
_Hex16 = Annotated[str, msgspec.Meta(pattern="^(?!0{16})[0-9a-f]{16}$", max_length=16)]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
_Text = Annotated[str, msgspec.Meta(max_length=MAX_TEXT)]
_At = Annotated[float, msgspec.Meta(ge=0, le=2**33)]
_Whole = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_Scalar = _Text | _Whole | float | bool
_Value = _Scalar | Annotated[list[_Scalar], msgspec.Meta(max_length=MAX_ATTRIBUTES)]


class TellRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A span that a program made."""

    trace: _Hex32
    id: _Hex16
    name: _Name
    started_at: _At
    ended_at: _At
    parent: _Hex16 | None = None
    attributes: Annotated[dict[_Name, _Value], msgspec.Meta(max_length=MAX_ATTRIBUTES)] = {}
    metrics: Annotated[list[tuple[_Name, float | None, _At]], msgspec.Meta(max_length=MAX_METRICS)] = []
    links: Annotated[list[tuple[_Hex32, _Hex16]], msgspec.Meta(max_length=MAX_ATTRIBUTES)] = []
    error: _Text = ""


class TellRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of POST /v1/spans."""

    spans: Annotated[list[TellRow], msgspec.Meta(max_length=MAX_ROWS)]


class TellAnswer(msgspec.Struct, frozen=True):
    """Answer of POST /v1/spans: how many spans are on their way to the store, and how many there was no room for."""

    taken: int
    lost: int


TELL = msgspec.json.Decoder(TellRequest)
"""Reads the body of POST /v1/spans; strict, as every door is."""


def is_heavy(num_bytes: int, num_spans: int) -> bool:
    """Say whether spans take more than MAX_SPAN bytes each in the mean."""
    return num_bytes > MAX_SPAN * max(1, num_spans)


def told(request: TellRequest) -> list[Row]:
    """Return the rows of a program's request; it can't say where they came from, or that they are to be kept."""
    return [
        Row(
            one.trace, one.id, one.parent or "", one.name, "client", one.started_at, max(one.started_at, one.ended_at),
            one.attributes, tuple(one.metrics), tuple(one.links), one.error,
        )
        for one in request.spans
    ]  # fmt: skip


def body(rows: Sequence[Row]) -> bytes:
    """Return the body of POST /v1/spans that tells these rows."""
    spans = [
        TellRow(
            trace=row.trace,
            id=row.id,
            name=row.name,
            started_at=row.started_at,
            ended_at=row.ended_at,
            parent=row.parent or None,
            attributes=dict(row.attributes),
            metrics=list(row.metrics),
            links=list(row.links),
            error=row.error,
        )
        for row in rows
    ]
    return msgspec.json.encode(TellRequest(spans))


def attributes(given: Mapping[str, Any]) -> dict[str, Value]:
    """Return at most MAX_ATTRIBUTES attributes that a row can carry; what isn't known (None) is left out."""
    known = [(name, value) for name, value in given.items() if value is not None]
    return {name: carried(value) for name, value in known[:MAX_ATTRIBUTES]}


class AwayError(FlywheelError):
    """Spans can't be handed over now; they may be in a moment."""
