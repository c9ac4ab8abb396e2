"""Rows of a request as columns that fit the policy's Spec, or the name of the field that doesn't. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flywheel.deploy.nested import told
from flywheel.deploy.wire import ActRow, EndRow, RejectedError, ResentRow
from flywheel.records import Array, Spec
from flywheel.spaces import join, place

Row = ActRow[Any] | EndRow[Any] | ResentRow[Any]


def observations(rows: Sequence[Row], spec: Spec, where: str) -> Array:
    """Return the flat observations dtype[N, D]; raise RejectedError (422) naming the first part that doesn't fit."""
    given = [row.observation for row in rows]
    if spec.observation_leaves:
        leaves = spec.observation_leaves
        parts = [
            _cast(column, leaf.dtype, where, place(("observation", *leaf.path)))
            for leaf, column in zip(leaves, told(leaves, given), strict=True)
        ]
        return join(leaves, parts)
    (size,) = spec.observation_shape
    for i, observation in enumerate(given):
        if len(observation) != size:
            raise RejectedError(
                422,
                f"{where}[{i}].observation: Expected {size} numbers (shape {list(spec.observation_shape)}), "
                f"got {len(observation)}.",
                f"{where}[{i}].observation",
            )
    column = np.array(given, dtype=np.float64).reshape(-1, size)
    return _cast(column, spec.observation_dtype, where, "observation")


def _cast(given: Array, to: str, where: str, name: str) -> Array:
    """Return numbers [N, ...] in another type, which has to hold them."""
    dtype = np.dtype(to)
    with np.errstate(over="ignore", invalid="ignore"):
        cast = given.astype(dtype)
    fits = np.isfinite(cast) if dtype.kind == "f" else cast == given
    if not fits.all():
        _refuse_first(~np.isfinite(given), where, name, "Expected a finite number")
        _refuse_first(~fits, where, name, f"Expected a number that {dtype} can hold")
    return cast


def _refuse_first(wrong: NDArray[np.bool_], where: str, name: str, sentence: str) -> None:
    if wrong.any():
        i, *index = np.argwhere(wrong)[0].tolist()
        field = f"{where}[{i}].{name}{place(index)}"
        raise RejectedError(422, f"{field}: {sentence}.", field)


def rewards(rows: Sequence[Row], where: str) -> NDArray[np.float64]:
    """Return the rewards float64[N] of the actions before, NaN where not known; else raise RejectedError (422)."""
    for i, row in enumerate(rows):
        if row.reward is not None and not (row.t and math.isfinite(row.reward)):
            field = f"{where}[{i}].reward"
            if row.t:
                raise RejectedError(422, f"{field}: Expected a finite number, or null where it isn't known yet.", field)
            raise RejectedError(
                422, f"{field}: It is of the action before; at t = 0 there was none, so leave it out.", field
            )
    return np.array([math.nan if row.reward is None else row.reward for row in rows], dtype=np.float64)


def raw_action(value: Any, spec: Spec, field: str) -> Array | int:
    """Return one raw action [*a] as the policy gave it; raise RejectedError (422) naming the field otherwise."""
    if spec.action_kind == "discrete":
        if not isinstance(value, int) or not 0 <= value < spec.num_actions:
            raise RejectedError(422, f"{field}: Expected a whole number from 0 to {spec.num_actions - 1}.", field)
        return value
    size = int(np.prod(spec.action_shape))
    if spec.action_kind == "multi_discrete":
        if not isinstance(value, list) or len(value) != size:
            raise RejectedError(422, f"{field}: Expected a list of {size} whole numbers.", field)
        for k, (number, n) in enumerate(zip(value, spec.action_nvec, strict=True)):
            if not (0 <= number < n and number == int(number)):
                raise RejectedError(422, f"{field}[{k}]: Expected a whole number from 0 to {n - 1}.", f"{field}[{k}]")
        return np.array(value, dtype=np.int64)
    if not isinstance(value, list) or len(value) != size:
        raise RejectedError(422, f"{field}: Expected a flat list of {size} numbers.", field)
    with np.errstate(over="ignore"):
        action = np.array(value, dtype=np.float32)
    if not np.isfinite(action).all():
        raise RejectedError(422, f"{field}: Expected finite numbers.", field)
    return action.reshape(spec.action_shape)


def raw_actions(rows: Sequence[EndRow[Any] | ResentRow[Any]], spec: Spec, where: str) -> Array:
    """Return the raw actions [N, *a] that rows carry; raise RejectedError (422) naming the first that doesn't fit."""
    return np.array([raw_action(row.action, spec, f"{where}[{i}].action") for i, row in enumerate(rows)])


def repeated(rows: Sequence[ActRow[Any]], spec: Spec) -> Array:
    """Return the raw actions [N, *a] of the answers before, which steps repeat from t = 1 on; nothing is said at t = 0.

    Raises RejectedError (422) where a step doesn't repeat digest and raw action exactly from t = 1 on, and when an
    episode is there twice.
    """
    seen: set[str] = set()
    found = np.zeros((len(rows), *spec.action_shape), dtype=spec.action_dtype)
    for i, row in enumerate(rows):
        if row.episode in seen:
            field = f"steps[{i}].episode"
            raise RejectedError(422, f"{field}: It is in this request twice; send its steps one after another.", field)
        seen.add(row.episode)
        if (row.digest is not None) != (row.t > 0) or (row.action is not None) != (row.t > 0):
            raise _unlike(row, f"steps[{i}]")
        if row.t > 0:
            found[i] = raw_action(row.action, spec, f"steps[{i}].action")
    return found


def _unlike(row: ActRow[Any], where: str) -> RejectedError:
    """Return what is wrong with a step that repeats too much or too little of the answer before."""
    name = "digest" if (row.digest is not None) != (row.t > 0) else "action"
    hint = "repeated from the answer before, from t = 1 on" if row.t > 0 else "left out at t = 0"
    return RejectedError(422, f"{where}.{name}: It has to be {hint}.", f"{where}.{name}")
