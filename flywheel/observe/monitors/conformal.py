"""Conformal bets: is an episode's score an unusual one among those before it? No number of a model is trusted."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

WINDOW = 2000
"""Scores that an episode is ranked among: the last ones, so that memory stays bounded."""
MAX_DRIFTS = 64
"""Signed numbers of an episode that are followed one by one; what is beyond costs time and is left to the energies."""
_RANKS = np.array([2.0, 4.0, 8.0])
"""Bets that the score is among the 2, 4 or 8 largest so far, at the rest's expense: they find a great change, and
episodes that are already changed spoil them only after as many."""
_TAILS = np.array([0.05, 0.05, 0.2])
"""Bets that the score is among so large a share of the largest: they find a change of the tails."""
_STAKES = np.array([0.9, 0.9, 0.9, 0.5, 0.2, 0.5])
"""Share of the wealth that each bet risks."""
NUM_BETS = len(_STAKES)
"""Bets on one score's size."""
_TILTS = (0.75, 2.0)
"""Shifts, in deviations, for which the bets on drift grow fastest: what only adds up, and what each episode shows."""
NUM_DRIFTS = 2 * len(_TILTS)
"""Bets on one signed number: both directions of each tilt."""


class Conformal:
    """Bets on the ranks of an episode's scores: a change makes `num_sizes` of them large, and `num_signed` drift.

    While nothing changes the scores are exchangeable, so that each one's rank among all so far is uniform and
    independent of the ranks before, whatever the scores' distribution (conformal p-values: Vovk, Gammerman and Shafer
    2005, chapter 8); ties count against alarm. A factor's mean is then at most 1. (Ranks among the last `WINDOW` only
    are so up to 1 / WINDOW.)

    The drift of a signed number is betted on by the likelihood ratio of a shifted normal at the number's normal score:
    small shifts in one direction add up over episodes as in CUSUM, and the bets on the other direction lose.
    """

    def __init__(self, num_sizes: int, num_signed: int) -> None:
        """Begin with no score."""
        self._num_sizes = num_sizes
        self._scores = np.empty((num_sizes + num_signed, 64))
        self._num, self._next = 0, 0

    def __len__(self) -> int:
        """Return how many scores the next one is ranked among."""
        return self._num

    @staticmethod
    def weights(num_sizes: int, num_signed: int) -> list[float]:
        """Return each bet's share of the wealth, float[J]: half of it is for drift, where any is followed."""
        sizes, drifts = num_sizes * NUM_BETS, num_signed * NUM_DRIFTS
        return [1.0 / max(sizes, 1)] * sizes + [1.0 / max(drifts, 1)] * drifts

    def factors(self, score: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return what each bet multiplies its wealth by, float64[J], and keep the score float64[sizes + signed]."""
        before, num, sizes = self._scores[:, : self._num], self._num + 1, self._num_sizes
        above = 1 + np.count_nonzero(before >= score[:, None], axis=1)
        below = 1 + np.count_nonzero(before[sizes:] <= score[sizes:, None], axis=1)
        self._keep(score)
        table = drift_factors(num)
        drifts = np.stack([table[:, above[sizes:] - 1], table[:, below - 1]])
        return np.concatenate([size_factors(above[:sizes] / num, num), drifts.ravel()])

    def _keep(self, score: NDArray[np.float64]) -> None:
        size, room = self._scores.shape
        if self._next == room < WINDOW:
            self._scores = np.concatenate([self._scores, np.empty((size, min(WINDOW - room, room)))], axis=1)
        self._next %= WINDOW
        self._scores[:, self._next] = score
        self._next += 1
        self._num = max(self._num, self._next)


def size_factors(p_values: NDArray[np.float64], num: int) -> NDArray[np.float64]:
    """Return what bets on large scores give at these p-values among `num` scores, float64[scores * NUM_BETS]."""
    chances = np.minimum(np.concatenate([_RANKS / num, _TAILS]), 1.0)
    won = p_values[:, None] <= chances + 1e-12
    return np.asarray((1.0 - _STAKES + _STAKES * won / chances).ravel())


@functools.lru_cache(maxsize=4)
def drift_factors(num: int) -> NDArray[np.float64]:
    """Return what bets on drift give, float64[tilts, num], for the largest of `num` scores, the second largest, ...

    The mean of each row is 1.
    """
    normal = ndtri(1.0 - (np.arange(num) + 0.5) / num)
    ratios = np.exp(np.array(_TILTS)[:, None] * normal)
    return np.asarray(ratios / ratios.mean(axis=1, keepdims=True))


class Typical:
    """What is typical of vectors: their mean and covariance, learnt once."""

    def __init__(self, vectors: Sequence[NDArray[np.float64]]) -> None:
        """Learn from at least one vector float64[K]; the fewer there are, the less their correlations are believed."""
        rows = np.array(vectors)
        num, size = rows.shape
        self._mean = rows.mean(axis=0)
        self._deviation = rows.std(axis=0) + 1e-6 * np.abs(self._mean) + 1e-12
        scaled = (rows - self._mean) / self._deviation
        believed = num / (num + size)
        moment = believed * scaled.T @ scaled / num + (1.0 - believed) * np.eye(size)
        values, vectors_ = np.linalg.eigh(moment)
        self._whiten = vectors_ / np.sqrt(np.maximum(values, 1e-6))

    def distance(self, vector: NDArray[np.float64]) -> float:
        """Return Hotelling's T² of a vector, divided by its size: near 1 where it is as typical as those learnt."""
        whitened = ((vector - self._mean) / self._deviation) @ self._whiten
        return float((whitened**2).mean())
