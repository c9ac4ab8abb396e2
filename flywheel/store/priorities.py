"""Priorities of single rows: a tree of sums, so that a draw takes the logarithm of their number."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Priorities:
    """A sum tree over rows (Schaul et al. 2016, appendix B.2.1), read and written for many rows at once."""

    def __init__(self, num_rows: int) -> None:
        """Begin with priority 0 everywhere."""
        self._depth = max(1, (num_rows - 1).bit_length())
        self._leaf = 1 << self._depth
        self._sums: Floats = np.zeros(2 * self._leaf)

    @property
    def total(self) -> float:
        """Sum of all priorities."""
        return float(self._sums[1])

    def of(self, rows: Ints) -> Floats:
        """Return the priorities float64[N] of these rows."""
        return np.asarray(self._sums[rows + self._leaf])

    def set(self, rows: Ints, priorities: Floats | float) -> None:
        """Give rows int64[N] their priorities, at least 0; of a row that comes twice, the last one counts."""
        if not len(rows):
            return
        nodes = rows + self._leaf
        self._sums[nodes] = priorities
        for _ in range(self._depth):
            nodes = nodes >> 1
            if len(nodes) > 1:
                # neighbours share their parent: rows of one episode halve at each level
                keep = np.ones(len(nodes), dtype=bool)
                keep[1:] = nodes[1:] != nodes[:-1]
                nodes = nodes[keep]
            self._sums[nodes] = self._sums[2 * nodes] + self._sums[2 * nodes + 1]

    def find(self, at: Floats) -> Ints:
        """Return the rows int64[N] in which the running sum of priorities passes `at` float64[N], in [0, total)."""
        nodes = np.ones(len(at), np.int64)
        left_over = at.copy()
        for _ in range(self._depth):
            nodes = 2 * nodes
            left = self._sums[nodes]
            # rounding may send a draw past the last row that has a priority
            right = (left_over >= left) & (self._sums[nodes + 1] > 0.0)
            left_over = np.where(right, left_over - left, left_over)
            nodes = nodes + right
        return nodes - self._leaf
