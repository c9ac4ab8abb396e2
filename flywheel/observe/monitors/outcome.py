"""The outcome monitors: do episodes fail, or lose, more than was promised? They alone may lead to a rollback."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from flywheel.observe.monitors.shiryaev_roberts import Monitor

NEAREST, FARTHEST = 2.0, 0.5
"""Alternatives that are betted on: means from twice the limit up to 0.5, as evenly as factors are."""
WEIGHTS = (16.0, 8.0, 4.0, 2.0, 1.0)
"""Shares of the wealth on them: the nearest takes longest to find, and costs most episodes."""
HEAD_START = 0.06
"""Evidence at a release, as a share of the threshold: it is when most bad policies come."""
SHOWN_EPISODES = 1000
"""Episodes of a policy that show its failure rate: fewer would leave the bound far above it."""
SHOWN_ERROR = 0.05
"""Probability that what a policy has shown lies below its failure rate."""
_BOUND_ERROR = 1e-3
"""Probability that a learnt limit is below the true mean; once a release, small beside the false alarms allowed."""


class OutcomeMonitor(Monitor):
    """Evidence that the mean of values in [0, 1], given all before each of them, was above a limit.

    It is an e-detector: nothing is asked of the values but that limit, so that they may depend on each other as they
    like. A bet on the mean p stakes (p - m) / (m (1 - m)) on each value's excess over the limit m, which makes wealth
    grow fastest where the values are 0 or 1 with that mean (Kelly 1956).
    """

    def __init__(self, limit: float, head_start: float = 0.0) -> None:
        """Begin with nothing read and evidence `head_start`."""
        super().__init__(len(WEIGHTS), WEIGHTS, head_start)
        self._hold_to(limit)

    @property
    def testing(self) -> bool:
        """False while a baseline is learnt."""
        return True

    def update(self, value: float, episode: str) -> float:
        """Take in one more episode's value in [0, 1] and return the evidence."""
        self.num_read += 1
        return self._detector.update(1.0 + self._bets * (value - self.limit), episode)

    def _hold_to(self, limit: float) -> None:
        self.limit = min(max(limit, 1e-4), 0.999)
        self._bets = stakes(self.limit)


class FailureMonitor(OutcomeMonitor):
    """Evidence that episodes fail oftener than a limit that is known when the release begins."""


class LossMonitor(OutcomeMonitor):
    """Evidence that episodes lose more than the first ones did, or than a limit where that is higher."""

    def __init__(self, limit: float, baseline: int) -> None:
        """Begin with `baseline` untested episodes: the limit is raised to an upper confidence bound of their mean."""
        self._first: list[float] = []
        self._num_baseline = baseline
        super().__init__(limit)

    @property
    def testing(self) -> bool:
        """False while the baseline is learnt."""
        return self.num_read >= self._num_baseline

    def update(self, value: float, episode: str) -> float:
        """Take in one more episode's value in [0, 1] and return the evidence."""
        if self.testing:
            return super().update(value, episode)
        self.num_read += 1
        self._first.append(value)
        if self.testing:
            self._hold_to(max(self.limit, upper_bound(np.array(self._first), _BOUND_ERROR)))
            self._first.clear()
        return 0.0


def stakes(limit: float) -> NDArray[np.float64]:
    """Return what each bet stakes on a value's excess over a limit in (0, 1), float64[J]."""
    nearest = min(NEAREST * limit, (1.0 + limit) / 2.0)
    means = np.geomspace(nearest, max(FARTHEST, nearest), len(WEIGHTS))
    return np.asarray((means - limit) / (limit * (1.0 - limit)))


def shown(num_failed: int, num_episodes: int) -> float:
    """Return an upper confidence bound (95 %, Clopper and Pearson 1934) of a policy's failure rate; 1 for too few."""
    if num_episodes < SHOWN_EPISODES or num_failed >= num_episodes:
        return 1.0
    return float(beta.ppf(1.0 - SHOWN_ERROR, num_failed + 1, num_episodes - num_failed))


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
