"""The world monitor: does the world still answer actions as it did? It never leads to a rollback."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from flywheel.observe.monitors.shiryaev_roberts import Monitor
from flywheel.observe.monitors.transitions import TransitionModel
from flywheel.records import Episode

WINDOW = 2000
"""Scores that an episode is ranked among: the last ones, so that memory stays bounded."""
LEVELS = np.array([2.0, 1.25])
"""Scores (map, noise) up to here are all alike: twice the energy, and 5/4 the noise, that the baseline has."""
_RANKS = np.array([2.0, 4.0])
"""Bets that the score is among the 2, or 4, largest so far, at the rest's expense: they find a great change, and
episodes that are already changed spoil them only after as many."""
_TAILS = np.array([0.05, 0.05, 0.2])
"""Bets that the score is among so large a share of the largest: they find a small change."""
_STAKES = np.array([0.9, 0.9, 0.5, 0.2, 0.5])
"""Share of the wealth that each bet risks."""


class WorldMonitor(Monitor):
    """Evidence that one-step transitions are no longer those of the release's first episodes.

    Half of the baseline's episodes fit the model; each later one is scored by it and ranked among the scores before
    it. While nothing changes the scores are exchangeable, so that the ranks are independent and uniform whatever the
    scores' distribution (conformal p-values: Vovk, Gammerman and Shafer 2005, chapter 8); ties count against alarm.
    No number of the model enters the guarantee: a bad fit costs speed only.
    """

    def __init__(self, baseline: int) -> None:
        """Begin with nothing read; the first max(1, baseline // 2) episodes fit the model."""
        self._num_fit = max(1, baseline // 2)
        self._num_baseline = baseline
        self._fit: list[Episode] = []
        self._model: TransitionModel | None = None
        self._scores: deque[NDArray[np.float64]] = deque(maxlen=WINDOW)
        super().__init__(len(LEVELS) * len(_STAKES))

    @property
    def testing(self) -> bool:
        """False while the baseline is learnt; evidence can grow a little earlier."""
        return self.num_read >= self._num_baseline

    def score(self, episode: Episode) -> NDArray[np.float64] | None:
        """Return what `update` needs of the episode, float64[2]; None while the model isn't fitted."""
        return None if self._model is None else self._model.score(episode)

    def update(self, id_: str, given: NDArray[np.float64] | Episode) -> float:
        """Take in one more episode, or what `score` gave for it, and return the evidence."""
        self.num_read += 1
        if isinstance(given, Episode):
            if self._model is None:
                self._learn(given)
                return 0.0
            given = self._model.score(given)
        score = np.maximum(given, LEVELS)
        num = len(self._scores) + 1
        above = np.array(self._scores).reshape(-1, len(LEVELS)) >= score
        p_values = (1.0 + above.sum(axis=0)) / num
        self._scores.append(score)
        return self._detector.update(_factors(p_values, num), id_)

    def _learn(self, episode: Episode) -> None:
        self._fit.append(episode)
        if len(self._fit) >= self._num_fit and any(e.num_steps for e in self._fit):
            self._model = TransitionModel(self._fit)
            self._fit.clear()


def _factors(p_values: NDArray[np.float64], num: int) -> NDArray[np.float64]:
    """Return what each bet multiplies its wealth by, float64[scores * bets]: at most 1 in the mean under no change."""
    chances = np.minimum(np.concatenate([_RANKS / num, _TAILS]), 1.0)
    won = p_values[:, None] <= chances + 1e-12
    return np.asarray((1.0 - _STAKES + _STAKES * won / chances).ravel())
