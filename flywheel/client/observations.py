"""What a program observes as what JSON carries: numbers, lists and objects, nested as the environment gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flywheel.errors import UsageError
from flywheel.records import Array
from flywheel.spaces import place


def plain(observations: Any, ids: Sequence[str]) -> list[Any]:
    """Return N observations, given as an array [N, *o] or as a sequence of N, as plain values.

    Raises UsageError, naming the episode and the part, for what isn't a finite number.
    """
    rows = observations if isinstance(observations, np.ndarray) else list(observations)
    if len(rows) != len(ids):
        raise UsageError(f"{len(ids)} episodes need as many observations, not {len(rows)}: nothing was sent.")
    if isinstance(rows, list) and len({row.shape if isinstance(row, np.ndarray) else None for row in rows}) == 1:
        rows = np.stack(rows) if isinstance(rows[0], np.ndarray) else rows  # one array is checked at once
    if isinstance(rows, np.ndarray) and rows.dtype.kind in "biuf" and np.isfinite(_numbers(rows)).all():
        listed: list[Any] = _numbers(rows).tolist()
        return listed
    return [_plain(row, (), id) for row, id in zip(rows, ids, strict=True)]


def _plain(value: Any, path: tuple[str | int, ...], id: str) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(part, (*path, key), id) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part, (*path, index), id) for index, part in enumerate(value)]
    given = np.asarray(value)
    if given.dtype.kind not in "biuf":
        raise UsageError(f"The observation{_at(path)} of episode {id!r} is {value!r}, no number: nothing was sent.")
    given = _numbers(given)
    if not np.isfinite(given).all():
        index = np.argwhere(~np.isfinite(given))[0].tolist()
        raise UsageError(
            f"The observation{_at((*path, *index))} of episode {id!r} is {given[tuple(index)]}: nothing was sent. "
            "Send numbers only."
        )
    return given.tolist()


def _numbers(given: Array) -> Array:
    """Return numbers as JSON has them: neither booleans nor floats of other sizes."""
    if given.dtype.kind == "b":
        return given.astype(np.int64)
    return given.astype(np.float64) if given.dtype.kind not in "iu" else given


def _at(path: Sequence[str | int]) -> str:
    return f" at {place(path)}" if path else ""
