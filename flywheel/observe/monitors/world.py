"""The world monitor: does the world still answer actions as it did? It never leads to a rollback."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flywheel.observe.monitors.baseline import ShiftMonitor
from flywheel.observe.monitors.transitions import TransitionModel
from flywheel.records import Episode

LEVELS = np.array([2.0, 1.25])
"""Scores (map, noise) up to here are all alike: twice the energy, and 5/4 the noise, that the baseline has."""


class WorldMonitor(ShiftMonitor[TransitionModel]):
    """Evidence that one-step transitions are no longer those of the release's first episodes.

    The energies (map, noise) of `TransitionModel.score` find another world that each episode shows, its signed numbers
    one that only shows over many.
    """

    def _fit(self, episodes: list[Episode]) -> TransitionModel | None:
        return TransitionModel(episodes) if any(episode.num_steps for episode in episodes) else None

    def _sizes(self) -> int:
        return len(LEVELS)

    def _score(self, model: TransitionModel, episode: Episode) -> NDArray[np.float64]:
        score = model.score(episode)
        score[: len(LEVELS)] = np.maximum(score[: len(LEVELS)], LEVELS)
        return score
