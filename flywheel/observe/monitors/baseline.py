"""What the monitors of shifts have in common: a model of the first episodes, and bets on the later ones' scores."""

from __future__ import annotations

from abc import abstractmethod
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from flywheel.observe.monitors.conformal import Conformal
from flywheel.observe.monitors.shiryaev_roberts import Monitor, ShiryaevRoberts
from flywheel.records import Episode

Model = TypeVar("Model")


class ShiftMonitor(Monitor, Generic[Model]):
    """Evidence that episodes are no longer like the first ones.

    Half of the baseline's episodes fit the model; each later one is scored by it and ranked among the scores before
    it (`Conformal`). No number of the model enters the guarantee: a bad fit costs speed only.
    """

    def __init__(self, baseline: int) -> None:
        """Begin with nothing read; the first max(1, baseline // 2) episodes fit the model."""
        self._num_fit = max(1, baseline // 2)
        self._num_baseline = baseline
        self._first: list[Episode] = []
        self._model: Model | None = None
        self._bets: Conformal | None = None
        super().__init__(1)

    @property
    def testing(self) -> bool:
        """False while the baseline is learnt; evidence can grow a little earlier."""
        return self.num_read >= self._num_baseline

    def score(self, episode: Episode) -> NDArray[np.float64] | None:
        """Return what `update` needs of the episode; None while the model isn't fitted."""
        return None if self._model is None else self._score(self._model, episode)

    def update(self, id_: str, given: NDArray[np.float64] | Episode) -> float:
        """Take in one more episode, or what `score` gave for it, and return the evidence."""
        self.num_read += 1
        if isinstance(given, Episode):
            if self._model is None:
                self._first.append(given)
                if len(self._first) >= self._num_fit and (model := self._fit(self._first)) is not None:
                    self._model = model
                    self._first.clear()
                return 0.0
            given = self._score(self._model, given)
        if self._bets is None:
            sizes, signed = self._sizes(), len(given) - self._sizes()
            self._bets = Conformal(sizes, signed)
            weights = Conformal.weights(sizes, signed)
            self._detector = ShiryaevRoberts(len(weights), weights)
        return self._detector.update(self._bets.factors(given), id_)

    @abstractmethod
    def _fit(self, episodes: list[Episode]) -> Model | None:
        """Return a model of these episodes, None where they show nothing."""

    @abstractmethod
    def _sizes(self) -> int:
        """Return how many of a score's numbers are large where an episode is unusual; the rest are signed."""

    @abstractmethod
    def _score(self, model: Model, episode: Episode) -> NDArray[np.float64]:
        """Return an episode's score."""
