"""A Correction as arithmetic: which action arrives in a world, and what is added to its step."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from flywheel.correction import Correction, Surface
from flywheel.records import Array

MOST_SQUARES = 12
"""Numbers of z up to which a surface has their products, too."""

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Mask = NDArray[np.bool_]


def made(correction: Correction, space: gymnasium.Space[Any], actions: Array) -> Array:
    """Return what arrives of given actions [N, *a], as the environment takes them, whenever it does."""
    if isinstance(space, gymnasium.spaces.Discrete):
        if not correction.actions:
            return actions
        start = int(space.start)
        return np.asarray(np.array(correction.actions)[np.asarray(actions) - start] + start)
    if not isinstance(space, gymnasium.spaces.Box) or not (correction.gain or correction.offset):
        return actions
    flat = np.asarray(actions, np.float64).reshape(len(actions), -1)
    if correction.gain:
        flat = (flat[:, None, :] * np.array(correction.gain)).sum(axis=2)
    if correction.offset:
        flat = flat + np.array(correction.offset)
    arrived = flat.reshape(len(actions), *space.shape)
    return np.asarray(np.clip(arrived, space.low, space.high), space.dtype)


def arrived(correction: Correction, space: gymnasium.Space[Any], actions: Array) -> Array:
    """Return what arrived in each step of an episode by whose end the actions [T, *a] were given."""
    found = made(correction, space, actions)
    if not correction.delay or not len(found):
        return found
    late = found[np.maximum(np.arange(len(found)) - correction.delay, 0)]
    if correction.waiting:
        late[: correction.delay] = waiting(correction, found)
    return np.asarray(late)


def waiting(correction: Correction, like: Array) -> Array:
    """Return the action that arrives before the first one does, in the form [*a] and type of actions [N, *a]."""
    return np.array(correction.waiting, np.float64).reshape(like.shape[1:]).astype(like.dtype)


class Arrivals:
    """The actions on their way in N worlds."""

    def __init__(self, correction: Correction, space: gymnasium.Space[Any], num_worlds: int) -> None:
        """Nothing is on its way yet."""
        self._correction, self._space = correction, space
        self.fresh: Mask = np.ones(num_worlds, dtype=np.bool_)
        """The worlds in which no action was given yet."""
        self.queue: Array = np.zeros((num_worlds, correction.delay, *(space.shape or ())), space.dtype)
        """dtype[N, delay, *a]: what arrives next, the next one first"""

    def begin(self, which: Mask) -> None:
        """Let nothing be on its way in these worlds."""
        self.fresh |= which

    def expect(self, which: Mask, given: Array, num: Ints) -> None:
        """Let those actions be on their way in these worlds that were given last: [N, G, *a], the last one first.

        Of which the first int[N] `num` count; where they are fewer than are late, what came before them is what waits,
        or the first of them; where there are none nothing is on its way.
        """
        delay = self._correction.delay
        for i in np.flatnonzero(which & (num > 0)) if delay else ():
            known = made(self._correction, self._space, given[i, : min(num[i], delay)][::-1])
            first = waiting(self._correction, known) if self._correction.waiting else known[0]
            self.queue[i, : delay - len(known)], self.queue[i, delay - len(known) :] = first, known
            self.fresh[i] = False

    def next(self, actions: Array) -> Array:
        """Give every world an action of [N, *a]; return what arrives in this step."""
        found = made(self._correction, self._space, actions)
        if not self._correction.delay:
            return found
        if self.fresh.any():
            first = waiting(self._correction, found)[None] if self._correction.waiting else found[self.fresh]
            self.queue[self.fresh] = first[:, None]
            self.fresh = np.zeros_like(self.fresh)
        now = self.queue[:, 0].copy()
        self.queue = np.concatenate([self.queue[:, 1:], np.asarray(found, self.queue.dtype)[:, None]], axis=1)
        return now


def places(states: Array, actions: Array | None, period: tuple[float, ...]) -> Floats:
    """Return z float64[N, Z] of states [N, S] (their angles by `period`) and box actions [N, *a] that arrived."""
    numbers = np.asarray(states, np.float64)
    columns: list[Floats] = []
    for number in range(numbers.shape[1]):
        turn = period[number] if period else 0.0
        column = numbers[:, number]
        columns += [np.cos(2 * np.pi / turn * column), np.sin(2 * np.pi / turn * column)] if turn > 0 else [column]
    if actions is not None:
        columns += list(np.asarray(actions, np.float64).reshape(len(numbers), -1).T)
    return np.stack(columns, axis=1)


def terms(z: Floats) -> Floats:
    """Return float64[N, F]: 1, the numbers of z, and their products where they are few."""
    parts = [np.ones((len(z), 1)), z]
    if z.shape[1] <= MOST_SQUARES:
        first, second = np.triu_indices(z.shape[1])
        parts.append(z[:, first] * z[:, second])
    return np.concatenate(parts, axis=1)


class Adding:
    """A surface, ready to be added step by step."""

    def __init__(self, surface: Surface) -> None:
        """Lay its numbers out as arrays."""
        self._low, self._high = np.array(surface.low), np.array(surface.high)
        self._centre, self._scale = np.array(surface.centre), np.array(surface.scale)
        self._weights: Floats = np.array(surface.weights)

    def __call__(self, z: Floats, groups: Ints) -> Floats:
        """Return float64[N, D]: what is added at z float64[N, Z] where the discrete actions are int[N] (a box: 0).

        Each row depends on its own z alone, to the last bit.
        """
        rows = terms((np.minimum(np.maximum(z, self._low), self._high) - self._centre) / self._scale)
        return np.asarray((rows[:, :, None] * self._weights[groups]).sum(axis=1))


def added(surface: Surface, z: Floats, groups: Ints) -> Floats:
    """Return what a surface adds, as `Adding` does."""
    return Adding(surface)(z, groups)


def groups_of(space: gymnasium.Space[Any], actions: Array) -> Ints:
    """Return int[N]: which surface's weights count for actions [N, *a] that arrived."""
    if isinstance(space, gymnasium.spaces.Discrete):
        return np.asarray(actions, np.intp) - int(space.start)
    return np.zeros(len(actions), np.intp)


def box_of(space: gymnasium.Space[Any], actions: Array) -> Array | None:
    """Return the actions where they are a part of z."""
    return actions if isinstance(space, gymnasium.spaces.Box) else None
