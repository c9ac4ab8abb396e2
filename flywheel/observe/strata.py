"""Strata: kinds of episodes that a task tells apart, each with a baseline of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flywheel.observe.monitors.baseline import ShiftMonitor
from flywheel.records import Episode

MAX_STRATA = 8
"""Strata with a baseline of their own, the first ones that are read: bounds memory."""
REST = "(rest)"
"""The stratum that all others share, and those that the task's `strata` fails on."""
_MAX_NAME = 200


@dataclass(frozen=True, slots=True, eq=False)
class Given:
    """What monitors of shifts read of an episode."""

    stratum: str
    scores: Mapping[str, NDArray[np.float64]] | None
    """By monitor, as their models of the time score it; None while one has no model for it yet."""
    episode: Episode | None
    """The whole of it, where there are no scores."""


class Sorter:
    """Says of what stratum an episode is."""

    def __init__(self, strata: Callable[[Episode], str] | None) -> None:
        """Ask the task's function; without one there is a single stratum, ""."""
        self._strata = strata
        self.num_errors = 0
        """Episodes on which it raised, or named no stratum."""
        self.trouble = ""
        """The last such error, as a sentence."""

    def __call__(self, episode: Episode) -> str:
        """Return the stratum's name, `REST` where the task's function gives none."""
        if self._strata is None:
            return ""
        try:
            name = self._strata(episode)
        except Exception as error:  # a user's function: said in the status, and the episode still counts
            return self._none(f"raised {error!r} on episode {episode.id}")
        if not isinstance(name, str) or len(name) > _MAX_NAME:
            return self._none(f"returned {str(name)[:40]!r} ({type(name).__name__}) for episode {episode.id}")
        return name

    def _none(self, what: str) -> str:
        self.num_errors += 1
        self.trouble = f"The task's strata() {what}, which counts as {REST}: let it return a short string."
        return REST


class Strata:
    """One monitor of shifts, with a baseline for each stratum.

    Each stratum's evidence is an e-detector over its own episodes, whose mean is at most their number while nothing
    changes. The sum's is then at most the number of all episodes: it is an e-detector as well, with the same guarantee,
    so that strata cost none of the budget.
    """

    def __init__(self, make: Callable[[], ShiftMonitor[Any]]) -> None:
        """Begin with nothing read; `make` gives a new stratum's monitor."""
        self._make = make
        self._monitors: dict[str, ShiftMonitor[Any]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The strata that have a baseline, in the order in which they came."""
        return tuple(self._monitors)

    @property
    def evidence(self) -> float:
        """How strongly the episodes speak for a change in any stratum."""
        return min(sum(monitor.evidence for monitor in self._monitors.values()), 1e300)

    @property
    def onset(self) -> str:
        """Id of the episode where the strongest stratum's evidence begins (an estimate), "" before the first."""
        return self._strongest.onset if self._monitors else ""

    @property
    def num_since(self) -> int:
        """Number of that stratum's episodes read from the onset on."""
        return self._strongest.num_since if self._monitors else 0

    @property
    def stratum(self) -> str:
        """The stratum with the strongest evidence."""
        return max(self._monitors, key=lambda name: self._monitors[name].evidence, default="")

    @property
    def testing(self) -> bool:
        """False while every stratum's baseline is learnt."""
        return any(monitor.testing for monitor in self._monitors.values())

    def score(self, episode: Episode, stratum: str) -> NDArray[np.float64] | None:
        """Return what `update` needs of the episode; None while its stratum has no model."""
        monitor = self._monitors.get(self._place(stratum))
        return None if monitor is None else monitor.score(episode)

    def update(self, id_: str, given: NDArray[np.float64] | Episode, stratum: str) -> float:
        """Take in one more episode, or what `score` gave for it, and return the evidence."""
        place = self._place(stratum)
        if place not in self._monitors:
            self._monitors[place] = self._make()
        self._monitors[place].update(id_, given)
        return self.evidence

    @property
    def _strongest(self) -> ShiftMonitor[Any]:
        return self._monitors[self.stratum]

    def _place(self, stratum: str) -> str:
        own = len(self._monitors) - (REST in self._monitors)
        return stratum if stratum in self._monitors or own < MAX_STRATA else REST
