"""Rows of a request as columns that fit the policy's Spec, or the name of the field that doesn't. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flywheel.deploy.nested import told
from flywheel.deploy.wire import ActRow, EndRow, RejectedError, ResentRow
from flywheel.records import Array, Spec, Steps
from flywheel.spaces import join, place

Row = ActRow[Any] | EndRow[Any] | ResentRow[Any]
Path = tuple[str | int, ...]
"""Where something is in a request: names and indices."""


def observations(rows: Sequence[Row], spec: Spec, where: str) -> Array:
    """Return the flat observations dtype[N, D]; raise RejectedError (422) naming the first part that doesn't fit."""
    return observed([row.observation for row in rows], spec, (where,), ("observation",))


def observed(given: Sequence[Any], spec: Spec, where: Path, name: Path = ()) -> Array:
    """Return N observations as flat ones dtype[N, D]; raise RejectedError (422) naming the first part that doesn't fit.

    The n-th stands at `where`[n].`name` of the request.
    """
    if spec.observation_leaves:
        leaves = spec.observation_leaves
        parts = [
            _cast(column, leaf.dtype, where, (*name, *leaf.path))
            for leaf, column in zip(leaves, told(leaves, given), strict=True)
        ]
        return join(leaves, parts)
    (size,) = spec.observation_shape
    for i, observation in enumerate(given):
        if len(observation) != size:
            field = place((*where, i, *name))
            shape = list(spec.observation_shape)
            raise RejectedError(
                422, f"{field}: Expected {size} numbers (shape {shape}), got {len(observation)}.", field
            )
    column = np.array(given, dtype=np.float64).reshape(-1, size)
    return _cast(column, spec.observation_dtype, where, name)


def _cast(given: Array, to: str, where: Path, name: Path) -> Array:
    """Return numbers [N, ...] in another type, which has to hold them."""
    dtype = np.dtype(to)
    with np.errstate(over="ignore", invalid="ignore"):
        cast = given.astype(dtype)
    fits = np.isfinite(cast) if dtype.kind == "f" else cast == given
    if not fits.all():
        _refuse_first(~np.isfinite(given), where, name, "Expected a finite number")
        _refuse_first(~fits, where, name, f"Expected a number that {dtype} can hold")
    return cast


def _refuse_first(wrong: NDArray[np.bool_], where: Path, name: Path, sentence: str) -> None:
    if wrong.any():
        i, *index = np.argwhere(wrong)[0].tolist()
        field = place((*where, i, *name, *index))
        raise RejectedError(422, f"{field}: {sentence}.", field)


def rewards(rows: Sequence[Row], where: str) -> NDArray[np.float64]:
    """Return the rewards float64[N] of the actions before, NaN where not known; else raise RejectedError (422)."""
    for i, row in enumerate(rows):
        if row.reward is not None and not (row.t and math.isfinite(row.reward)):
            field = f"{where}[{i}].reward"
            if row.t:
                finite(row.reward, field)
            raise RejectedError(
                422, f"{field}: It is of the action before; at t = 0 there was none, so leave it out.", field
            )
    return np.array([math.nan if row.reward is None else row.reward for row in rows], dtype=np.float64)


def known(given: Sequence[float | None], where: str) -> NDArray[np.float64]:
    """Return an episode's rewards float64[T], NaN where not known; raise RejectedError (422) naming what is none."""
    for t, reward in enumerate(given):
        if reward is not None:
            finite(reward, f"{where}[{t}]")
    return np.array([np.nan if reward is None else reward for reward in given], dtype=np.float64)


def finite(reward: float, field: str) -> None:
    """Return when a reward is a number; raise RejectedError (422) naming its field otherwise."""
    if not math.isfinite(reward):
        raise RejectedError(422, f"{field}: Expected a finite number, or null where it isn't known yet.", field)


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


def times(rows: Sequence[Row]) -> NDArray[np.int64]:
    """Return the steps int64[N] of rows."""
    return np.array([row.t for row in rows], dtype=np.int64)


def steps(
    rows: Sequence[Row],
    keys: NDArray[np.uint64],
    digests: Sequence[str],
    observations: Array,
    raw_actions: Array,
    logps: NDArray[np.float64],
    rewards: NDArray[np.float64],
    now: float,
    repeated: Array | None = None,
) -> Steps:
    """Return N rows, seen now, with these columns as Steps of episodes that go on.

    `repeated` are the raw actions [N, *a] of the answers before, which rows repeat with their digests; None where
    nothing is repeated.
    """
    nothing = repeated is None
    return Steps(
        episodes=tuple([row.episode for row in rows]),
        t=times(rows),
        digests=tuple(digests),
        observations=observations,
        raw_actions=raw_actions,
        logps=logps,
        draw_keys=keys,
        rewards=rewards,
        ends=tuple("no" for _ in rows),
        seen_at=np.full(len(rows), now),
        repeated_digests=("",) * len(rows) if nothing else tuple([row.digest or "" for row in rows]),
        repeated_actions=np.zeros_like(raw_actions) if repeated is None else repeated,
    )
