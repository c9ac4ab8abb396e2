"""Shiryaev-Roberts e-detectors: evidence for a change at any time, with a guarantee on false alarms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class ShiryaevRoberts:
    """A weighted average of J e-detectors M = (1 + M) * factor, one for each way to bet.

    While each factor has a conditional mean of at most 1 (no change yet), the mean number of episodes to the first
    evidence >= A is at least A less the head start, whatever the dependence between episodes (Shin, Ramdas and Rinaldo
    2024, "E-detectors", theorem 2.4; an average of e-detectors is one). Memory and time are constant.
    """

    def __init__(self, num_bets: int, weights: Sequence[float] | None = None, head_start: float = 0.0) -> None:
        """Begin with evidence `head_start` >= 0; `weights` float[J] are shares of the budget, equal ones by default.

        A head start finds what is changed from the first episode sooner (Moustakides, Polunchenko and Tartakovsky
        2011, "A numerical approach to performance analysis of quickest change-point detection procedures"): evidence
        less the number of episodes has a mean of at most `head_start`, so that A has to be larger by as much.
        """
        given = np.ones(num_bets) if weights is None else np.array(weights, dtype=np.float64)
        self._weights = given / given.sum()
        self._evidence = np.full(num_bets, head_start)
        self._gain = np.zeros(num_bets)
        self._since = np.zeros(num_bets, np.int64)
        self._names = np.full(num_bets, "", dtype=object)
        self._num_read = 0

    @property
    def evidence(self) -> float:
        """The average of the detectors."""
        return float(self._weights @ self._evidence)

    @property
    def onset(self) -> str:
        """Id of the episode where the evidence begins: an estimate of the first changed one, "" before the first.

        A bet's evidence begins where its log wealth was last at its lowest, the maximum likelihood estimate of CUSUM
        (Page 1954); of all bets it is their median, weighed by their evidence.
        """
        return str(self._names[self._middle])

    @property
    def num_since(self) -> int:
        """Number of episodes read from the onset on."""
        return self._num_read - int(self._since[self._middle])

    def update(self, factors: NDArray[np.float64], episode: str) -> float:
        """Take in the factors float64[J] > 0 of one more episode and return the evidence."""
        lowest = self._gain <= 0.0
        self._since[lowest], self._names[lowest] = self._num_read, episode
        self._gain = np.maximum(self._gain, 0.0) + np.log(factors)
        self._evidence = np.minimum((1.0 + self._evidence) * factors, 1e300)
        self._num_read += 1
        return self.evidence

    @property
    def _middle(self) -> int:
        order = np.argsort(self._since, kind="stable")
        share = np.cumsum((self._weights * self._evidence)[order])
        return int(order[np.searchsorted(share, share[-1] / 2.0)])


class Monitor:
    """What every monitor shows of its detector."""

    def __init__(self, num_bets: int, weights: Sequence[float] | None = None, head_start: float = 0.0) -> None:
        """Begin with nothing read, as `ShiryaevRoberts` does."""
        self._detector = ShiryaevRoberts(num_bets, weights, head_start)
        self.num_read = 0

    @property
    def evidence(self) -> float:
        """How strongly the episodes speak for a change; compare it with the mean run to a false alarm."""
        return self._detector.evidence

    @property
    def onset(self) -> str:
        """Id of the episode where the evidence begins (an estimate), "" before the first."""
        return self._detector.onset

    @property
    def num_since(self) -> int:
        """Number of episodes read from the onset on."""
        return self._detector.num_since
