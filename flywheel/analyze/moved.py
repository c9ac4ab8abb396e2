"""Whether numbers of episodes moved at some point of their order, by shuffling the episodes of each policy.

A policy's episodes are compared with its own only: that another policy moves the states is nobody's alarm. While
nothing changes, a policy's episodes are exchangeable, so that the largest standardized difference of means over all
numbers and all points of the order is ranked among those of shuffled orders, which is exact (Westfall and Young 1993,
"Resampling-based multiple testing": the maximum holds the error over all numbers at once).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import ruptures
from numpy.typing import NDArray

ERROR = 0.02
"""Chance that something is named where nothing changed, over all that is asked."""
ASKED = 7
"""Questions that share it: six families of numbers, and the release."""
LIMIT = ERROR / ASKED
"""p-value up to which one of them is answered by yes."""
SHUFFLES = 1999
"""Orders that the true one is ranked among: the smallest p-value is 1 / 2,000."""
ENOUGH = 40
"""Shuffled orders at least as odd as the true one after which no more are tried: nothing moved."""
BLOCK = 100
"""Orders that are computed at once."""
LEAST = 3
"""Episodes on either side of a point."""
FARTHEST = 6.0
"""Deviations from its policy's mean that an episode's number counts at most."""

RIDGE = 1e-3
"""Share of the largest variance below which a direction of the numbers is none."""

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scan:
    """What the order of some episodes says of some numbers."""

    p_value: float
    """Of the largest difference, over all numbers and points."""
    by_number: Floats
    """float64[F]: p-value of each number, held over all of them."""
    steady: Floats
    """float64[N, F]: the numbers in deviations from their policy's mean."""


class Strata:
    """Episodes in order, by the policy that played them."""

    def __init__(self, digests: Sequence[str]) -> None:
        """Take the digest of each episode."""
        self.names = list(dict.fromkeys(digests))
        place = {name: i for i, name in enumerate(self.names)}
        self.of = np.array([place[d] for d in digests], dtype=np.intp)
        self.members = [np.flatnonzero(self.of == i) for i in range(len(self.names))]

    def steady(self, numbers: Floats) -> Floats:
        """Return float64[N, F] in deviations from the policy's own mean; numbers that never move are 0."""
        found = np.zeros_like(numbers, dtype=np.float64)
        for some in self.members:
            if len(some) < 2 * LEAST:
                continue
            values = numbers[some]
            middle, low, high = np.quantile(values, (0.5, 0.16, 0.84), axis=0)
            spread = values.std(axis=0)
            width = np.where(high - low > 0.05 * spread, (high - low) / 2, spread)
            drawn = np.clip((values - middle) / np.where(width > 1e-12, width, np.inf), -FARTHEST, FARTHEST)
            found[some] = drawn - drawn.mean(axis=0)
        return found

    def room(self, steady: Floats) -> Floats:
        """Return float64[N, F]: the deviation of the sum over episodes from each point on, in shuffled orders."""
        variance = np.zeros_like(steady)
        for some in self.members:
            num = len(some)
            since = np.searchsorted(some, np.arange(len(self.of)))  # of this policy before each point
            share = since * (num - since) / max(num * (num - 1), 1)
            variance += share[:, None] * np.square(steady[some]).sum(axis=0)
        return np.sqrt(variance)

    def balanced(self) -> Mask:
        """Return bool[N]: points with enough episodes of one policy on either side."""
        num = len(self.of)
        found = np.zeros(num, dtype=np.bool_)
        for some in self.members:
            since = np.searchsorted(some, np.arange(num))
            found |= (since >= LEAST) & (len(some) - since >= LEAST)
        return found

    def shuffled(self, rng: np.random.Generator, num: int) -> NDArray[np.intp]:
        """Return int[num, N]: orders in which each policy's episodes stand at that policy's places."""
        orders = np.tile(np.arange(len(self.of)), (num, 1))
        for some in self.members:
            orders[:, some] = some[rng.random((num, len(some))).argsort(axis=1)]
        return orders


def scan(numbers: Floats, strata: Strata, points: Mask, rng: np.random.Generator) -> Scan:
    """Return whether numbers float64[N, F] moved at one of the `points` bool[N] (a change begins at that episode)."""
    steady = strata.steady(numbers)
    points = points & strata.balanced()
    live = np.flatnonzero(np.square(steady).sum(axis=0) > 0)
    by_number = np.ones(numbers.shape[1])
    if not len(live) or not points.any():
        return Scan(p_value=1.0, by_number=by_number, steady=steady)
    single, joint = _Largest(steady[:, live], strata, points), _Joint(steady[:, live], strata, points)
    true, true_joint = single(None)[0], joint(None)[0]
    beaten, beaten_joint, tried = np.zeros(len(live)), 0, 0
    while tried < SHUFFLES:
        num = min(BLOCK, SHUFFLES - tried)
        orders = strata.shuffled(rng, num)
        beaten += (single(orders).max(axis=1)[:, None] >= true - 1e-4).sum(axis=0)
        beaten_joint += int((joint(orders) >= true_joint - 1e-4).sum())
        tried += num
        if min(beaten.min(), beaten_joint) >= ENOUGH:
            break
    by_number[live] = np.minimum(1.0, 2 * (1 + beaten) / (1 + tried))  # there are two tests
    p_value = min(float(by_number.min()), 2 * (1 + beaten_joint) / (1 + tried))
    return Scan(p_value=min(1.0, p_value), by_number=by_number, steady=steady)


class _Largest:
    """The largest standardized difference of each number, over all points."""

    def __init__(self, steady: Floats, strata: Strata, points: Mask) -> None:
        self._values = steady.astype(np.float32)
        self._points = points
        room = strata.room(steady)[points]
        self._scale = np.where(room > 1e-9, 1 / np.maximum(room, 1e-9), 0.0).astype(np.float32)

    def sums(self, orders: NDArray[np.intp] | None) -> NDArray[np.float32]:
        """Return float[B, K, F]: the standardized sum of what stands from each of K points on."""
        values = self._values[None] if orders is None else self._values[orders]
        total = np.cumsum(values[:, ::-1], axis=1)[:, ::-1][:, self._points]
        return np.asarray(total * self._scale)

    def __call__(self, orders: NDArray[np.intp] | None) -> Floats:
        """Return float[B, F]."""
        return np.asarray(np.abs(self.sums(orders)).max(axis=1))


class _Joint(_Largest):
    """The largest difference of all numbers together: many small ones that no number shows by itself."""

    def __init__(self, steady: Floats, strata: Strata, points: Mask) -> None:
        values, vectors = np.linalg.eigh(steady.T @ steady / len(steady))
        kept = values > RIDGE * values.max()
        super().__init__(steady @ (vectors[:, kept] / np.sqrt(values[kept])), strata, points)

    def __call__(self, orders: NDArray[np.intp] | None) -> Floats:
        """Return float[B]."""
        return np.asarray(np.square(self.sums(orders)).sum(axis=2).max(axis=1))


def onset(steady: Floats) -> int:
    """Return the episode at which numbers float64[N, F] most likely moved: the best split into two means.

    By ruptures (Truong, Oudre and Vayatis 2020), exactly.
    """
    return int(ruptures.Dynp(model="l2", min_size=LEAST, jump=1).fit(steady).predict(n_bkps=1)[0])
