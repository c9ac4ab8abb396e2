"""The outcome monitor: do episodes fail, or lose, more than was promised? It alone may lead to a rollback."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flywheel.observe.monitors.shiryaev_roberts import Monitor

_SHARES = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
"""Alternatives that are betted on: so far from the limit towards 1."""
_BOUND_ERROR = 1e-3
"""Probability that a learnt limit is below the true mean; once a release, small beside the false alarms allowed."""


class OutcomeMonitor(Monitor):
    """Evidence that the mean of values in [0, 1] is above a limit."""

    def __init__(self, limit: float, baseline: int = 0) -> None:
        """Begin with nothing read.

        `limit` holds for the mean of an unchanged episode, given all before it. With `baseline` > 0 the limit is
        raised to an upper confidence bound of the mean of so many first episodes, which are not tested.
        """
        self._baseline: list[float] = []
        self._num_baseline = baseline
        super().__init__(len(_SHARES))
        self._set(limit)

    @property
    def testing(self) -> bool:
        """False while the baseline is learnt."""
        return self.num_read >= self._num_baseline

    def update(self, value: float, episode: str) -> float:
        """Take in one more episode's value in [0, 1] and return the evidence."""
        self.num_read += 1
        if self.num_read <= self._num_baseline:
            self._baseline.append(value)
            if self.num_read == self._num_baseline:
                self._set(max(self.limit, upper_bound(np.array(self._baseline), _BOUND_ERROR)))
                self._baseline.clear()
            return 0.0
        return self._detector.update(1.0 + self._bets * (value - self.limit), episode)

    def _set(self, limit: float) -> None:
        self.limit = min(max(limit, 1e-4), 0.999)
        # Kelly's stake for a rate p against the limit m: (p - m) / (m (1 - m)).
        self._bets: NDArray[np.float64] = np.array(_SHARES) / self.limit


def upper_bound(values: NDArray[np.float64], error: float) -> float:
    """Return an upper confidence bound of the mean of values in [0, 1], missed with probability `error` at most.

    By betting (Waudby-Smith and Ramdas 2024, section 4): the wealth of bets that the mean is below m, averaged over
    stakes, exceeds 1 / error with at most that probability when the mean is m.
    """
    stakes = np.linspace(0.05, 0.95, 10)

    def beaten(m: float) -> bool:
        wealth = np.log1p(stakes[:, None] / (1.0 - m) * (m - values)).sum(axis=1)
        return bool(np.logaddexp.reduce(wealth) - np.log(len(stakes)) >= -np.log(error))

    low, high = float(values.mean()), 1.0 - 1e-9
    while high - low > 1e-6:
        middle = (low + high) / 2.0
        low, high = (low, middle) if beaten(middle) else (middle, high)
    return high
