"""The input monitor: do episodes begin, and look, as they did? It never leads to a rollback."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flywheel.observe.monitors.baseline import ShiftMonitor
from flywheel.observe.monitors.conformal import MAX_DRIFTS, Typical
from flywheel.observe.monitors.transitions import rows_of
from flywheel.records import Episode


@dataclass(frozen=True, slots=True)
class Usual:
    """What the first episodes looked like."""

    first: Typical
    whole: Typical


class InputMonitor(ShiftMonitor[Usual]):
    """Evidence that episodes' summaries are no longer those of the release's first episodes.

    A summary is the first observation, then means and deviations of the episode's observations, float64[3 D]. What the
    transition model can't see is in them: episodes that begin elsewhere, and sensors that are off by a constant.
    """

    def _fit(self, episodes: list[Episode]) -> Usual:
        rows = [summary(episode) for episode in episodes]
        size = len(rows[0]) // 3
        return Usual(Typical([row[:size] for row in rows]), Typical([row[size:] for row in rows]))

    def _sizes(self) -> int:
        return 2

    def _score(self, model: Usual, episode: Episode) -> NDArray[np.float64]:
        row = summary(episode)
        size = len(row) // 3
        far = [model.first.distance(row[:size]), model.whole.distance(row[size:])]
        return np.concatenate([far, row[:MAX_DRIFTS]])


def summary(episode: Episode) -> NDArray[np.float64]:
    """Return the first observation, and means and deviations of all that are read, float64[3 D]."""
    rows = rows_of(episode)
    return np.concatenate([rows[0], rows.mean(axis=0), rows.std(axis=0)])
