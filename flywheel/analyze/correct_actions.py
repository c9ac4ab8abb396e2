"""Which action arrives in production's world: another one than was given, a turned one, or one that is late.

Such a form explains exactly, with few numbers, and also in states that a failing policy never saw. Discrete actions:
each action's own step is simulated once, and every form is looked up there. Box actions: what the simulator makes of a
small change of the action gives gains and offsets by Gauss and Newton's least squares.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from gymnasium.spaces import Box, Discrete

from flywheel.analyze.missing import FAR, MOST_DELAY, Floats, Mask, Missing, Shown
from flywheel.correction import Correction
from flywheel.records import Array
from flywheel.simulate.arriving import made

SIMPLER = 0.02
"""Share of what is missed by which a form may miss more than the best one, where it is simpler."""
MOST_ACTIONS = 32
"""Discrete actions up to which each is simulated in each state."""
MOST_CHANNELS = 6
"""Numbers of a box action up to which every one of them may arrive as any other; above, each as itself."""
ROUNDS = 8
"""Steps of Gauss and Newton's."""
NUDGE = 0.02
"""Half-width of the differences, as a share of an action's range."""
SNAP = 0.05
"""A gain this near to -1, 0 or 1 is tried as that, and an offset this near to 0 (as a share of the range)."""


def forms(missing: Missing, train: Mask) -> Iterator[Correction]:
    """Yield what may arrive, the simplest first, each fitted to the steps of bool[M] `train`."""
    for delay in range(1, MOST_DELAY + 1):
        yield _waited(missing, train, Correction(delay=delay))
    if isinstance(missing.space, Discrete) and int(missing.space.n) <= MOST_ACTIONS:
        yield from _mapped(missing, train)
    elif isinstance(missing.space, Box):
        yield from _turned(missing, train)


def _waited(missing: Missing, train: Mask, form: Correction) -> Correction:
    """Return a late form with what best explains the steps before the first action arrives."""
    early = missing.data.only(train & (missing.data.t < form.delay))
    if not len(early):
        return form
    tried = [form]
    if isinstance(missing.space, Discrete):
        start = int(missing.space.start)
        tried += [_waiting(form, [start + action]) for action in range(min(int(missing.space.n), MOST_ACTIONS))]
    elif isinstance(missing.space, Box):
        tried.append(_waiting(form, np.clip(np.zeros(missing.space.shape), missing.space.low, missing.space.high)))
    left = [missing.squares(early, missing.predicted(early, each)[0]).mean() for each in tried]
    return tried[int(np.argmin(left))]


def _waiting(form: Correction, action: Array | list[int]) -> Correction:
    return replace(form, waiting=tuple(float(number) for number in np.ravel(action)))


# Discrete


def _mapped(missing: Missing, train: Mask) -> Iterator[Correction]:
    """Yield for each delay the action that best explains each given one, where that isn't always itself."""
    data, start = missing.data, int(missing.space.start)  # type: ignore[attr-defined]
    num = int(missing.space.n)  # type: ignore[attr-defined]
    each = [missing.stepped(data, np.full(len(data), start + action, data.given.dtype))[0] for action in range(num)]
    left = np.stack([missing.squares(data, successors) for successors in each])  # [A, M]
    for delay in range(MOST_DELAY + 1):
        given = data.given[:, delay] - start
        used = train & (data.t >= delay)
        table = np.stack([left[:, used & (given == g)].sum(axis=1) for g in range(num)])  # [given, arrived]
        counts = np.bincount(given[used], minlength=num)
        found = _choose(table, counts)
        if found != tuple(range(num)):
            yield _waited(missing, train, Correction(actions=found, delay=delay))


def _choose(table: Floats, counts: Array) -> tuple[int, ...]:
    """Return what each action arrives as, by the sums of squares [given, arrived]: as itself where that is as good.

    One that was never given arrives as itself, or, if that is taken by another one, as what nothing else arrives as.
    """
    num = len(table)
    best = table.argmin(axis=1)
    own = np.arange(num)
    found = np.where(table[own, best] < (1.0 - SIMPLER) * table[own, own], best, own)
    taken = set(found[counts > 0].tolist())
    free = [action for action in range(num) if action not in taken]
    for action in np.flatnonzero(counts == 0).tolist():
        found[action] = action if action in free or not free else free[0]
        if found[action] in free:
            free.remove(int(found[action]))
    return tuple(int(action) for action in found)


# Box


def _turned(missing: Missing, train: Mask) -> Iterator[Correction]:
    """Yield gains and offsets for the two likeliest delays: simple ones, and as they are fitted."""
    data = missing.data.only(train)
    size = int(np.prod(missing.space.shape or ()))
    middle = _middle(missing, data.given[:, 0])
    slope = _slope(missing, data, middle)
    value = missing.stepped(data, middle)[0]
    left = []
    for delay in range(MOST_DELAY + 1):
        rows = data.t >= delay
        gain, offset = _solve(missing, data, rows, slope, data.successors - value, data.given[:, delay], middle)
        now = _made(missing, gain, offset, data.given[:, delay])
        change = ((now - middle).reshape(len(data), size)[:, None, :] * slope).sum(axis=2)
        left.append(float(missing.squares(data, value + change)[rows].mean()))
    for delay in np.argsort(left)[:2].tolist():
        whole = _refined(missing, data, int(delay))
        for form in _simple(missing, whole):
            yield _waited(missing, train, form)


def _middle(missing: Missing, like: Array) -> Array:
    """Return the action in the middle of its bounds (0 where it has none), for each step."""
    box = missing.space
    assert isinstance(box, Box)
    bounded = np.isfinite(box.low) & np.isfinite(box.high)
    centre = np.where(bounded, (np.where(bounded, box.low, 0.0) + np.where(bounded, box.high, 0.0)) / 2.0, 0.0)
    return np.broadcast_to(centre, like.shape).astype(like.dtype)


def _width(missing: Missing, data: Shown) -> Floats:
    """Return float64[A]: the range of each number of the action, or four deviations where it has none."""
    box = missing.space
    assert isinstance(box, Box)
    spread = 4.0 * np.asarray(data.given[:, 0], np.float64).reshape(len(data), -1).std(axis=0) + 1e-6
    low, high = np.ravel(box.low).astype(np.float64), np.ravel(box.high).astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        width = high - low
    return np.where(np.isfinite(width), width, spread)


def _slope(missing: Missing, data: Shown, actions: Array) -> Floats:
    """Return float64[M, S, A]: how the successor changes with each number of the action."""
    box, nudge = missing.space, NUDGE * _width(missing, data)
    assert isinstance(box, Box)
    flat = actions.reshape(len(data), -1)
    inside = np.clip(flat, np.ravel(box.low) + nudge, np.ravel(box.high) - nudge)
    columns = []
    for channel in range(flat.shape[1]):
        move = np.zeros(flat.shape[1])
        move[channel] = nudge[channel]
        up, down = (
            missing.stepped(data, (inside + side * move).reshape(actions.shape).astype(actions.dtype))[0]
            for side in (1.0, -1.0)
        )
        columns.append((up - down) / (2.0 * nudge[channel]))
    return np.stack(columns, axis=2)


def _solve(
    missing: Missing, data: Shown, rows: Mask, slope: Floats, missed: Floats, given: Array, now: Array
) -> tuple[Floats, Floats]:
    """Return gain [A, A] and offset [A] whose actions make up for what is missed at `now`, by least squares."""
    flat = np.asarray(given, np.float64).reshape(len(data), -1)
    size = flat.shape[1]
    at = np.asarray(now, np.float64).reshape(len(data), -1)
    target = (missed + (slope * at[:, None, :]).sum(axis=2)) / missing.unit
    fine = rows & np.isfinite(target).all(axis=1) & (np.abs(missed) < FAR * missing.span).all(axis=1)
    known = np.concatenate([flat, np.ones((len(data), 1))], axis=1)[fine]  # [M, A + 1]
    steep = (slope / missing.unit[:, None])[fine]  # [M, S, A]
    if size <= MOST_CHANNELS:
        design = (steep[:, :, :, None] * known[:, None, None, :]).reshape(-1, size * (size + 1))
        found = _least(design, target[fine].ravel()).reshape(size, size + 1)
        return found[:, :size], found[:, size]
    design = np.concatenate([steep * known[:, None, :size], steep], axis=2).reshape(-1, 2 * size)
    found = _least(design, target[fine].ravel())
    return np.diag(found[:size]), found[size:]


def _least(design: Floats, target: Floats) -> Floats:
    moment = design.T @ design
    scale = np.sqrt(np.diag(moment)) + 1e-12
    ridge = 1e-8 * np.eye(len(moment))
    return np.asarray(np.linalg.solve(moment / np.outer(scale, scale) + ridge, design.T @ target / scale) / scale)


def _made(missing: Missing, gain: Floats, offset: Floats, given: Array) -> Array:
    return made(_form(gain, offset, 0), missing.space, given)


def _free(missing: Missing, gain: Floats, offset: Floats, given: Array) -> Mask:
    """Return bool[M, A]: where what arrives is within its bounds by itself, so that a change of gain moves it."""
    box = missing.space
    assert isinstance(box, Box)
    flat = np.asarray(given, np.float64).reshape(len(given), -1) @ gain.T + offset
    return np.asarray((flat > np.ravel(box.low)) & (flat < np.ravel(box.high)))


def _form(gain: Floats, offset: Floats, delay: int) -> Correction:
    return Correction(gain=tuple(map(tuple, gain.tolist())), offset=tuple(offset.tolist()), delay=delay)


def _refined(missing: Missing, data: Shown, delay: int) -> Correction:
    """Return the best gain and offset for a delay."""
    size = int(np.prod(missing.space.shape or ()))
    rows, given = data.t >= delay, data.given[:, delay]
    now, best, least = _middle(missing, given), _form(np.eye(size), np.zeros(size), delay), np.inf
    free = np.ones((len(data), size), dtype=np.bool_)
    for _ in range(ROUNDS):
        value = missing.stepped(data, now)[0]
        slope = _slope(missing, data, now) * free[:, None, :]
        gain, offset = _solve(missing, data, rows, slope, data.successors - value, given, now)
        now = _made(missing, gain, offset, given)
        free = _free(missing, gain, offset, given)
        left = float(missing.squares(data, missing.stepped(data, now)[0])[rows].mean())
        if left < least:
            best, least = _form(gain, offset, delay), left
    return best


def _simple(missing: Missing, form: Correction) -> Iterator[Correction]:
    """Yield simpler forms near a fitted one, the simplest first, and itself."""
    gain, offset = np.array(form.gain), np.array(form.offset)
    width = _width(missing, missing.data)
    none = np.zeros_like(offset)
    whole = np.round(gain)
    snapped = np.where(np.abs(gain - whole) < SNAP, whole, gain)
    own = np.diag(np.diag(snapped))
    small = np.where(np.abs(offset) < SNAP * width, 0.0, offset)
    seen = set[Correction]()
    for each, more in ((whole, none), (own, none), (own, small), (snapped, none), (gain, offset)):
        found = _form(each, more, form.delay)
        found = found if more.any() else replace(found, offset=())
        found = replace(found, gain=()) if np.array_equal(each, np.eye(len(each))) else found
        if not found.is_none and found not in seen:
            seen.add(found)
            yield found
