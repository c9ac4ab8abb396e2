"""Production's episodes go from the store to the trainer, where its algorithm learns from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from flywheel.config import TrainConfig
from flywheel.errors import FlywheelError
from flywheel.records import Episode

MOST = 5_000
"""Episodes of one helping; the newest, where more have come since the last one."""
LACKING = 500
"""Episodes whose missing rewards are waited for, the newest: each helping reads them all again."""


class Feed:
    """What the trainer has had of production."""

    def __init__(self, config: TrainConfig, ask: Callable[..., Any], rooms: Any) -> None:
        """Ask the store, the registry and the trainer of rooms, once they are needed."""
        self._ask, self._rooms = ask, rooms
        self._is_wanted = config.algorithm != "ppo"
        self._last = ""
        self._lacking: dict[str, int] = {}  # by id of an episode how many of its rewards weren't known

    def give(self) -> int:
        """Hand over the episodes that began since the last helping, and which policies are condemned.

        Those that lacked rewards come again once some have come. A trainer that came back as another process, with
        nothing that the one before had learnt from, gets the newest ones all over.
        Returns how many transitions came; 0 where the algorithm learns in simulation alone, or nothing is served yet.
        """
        if not self._is_wanted or self._ask(self._rooms.registry.champion) is None:
            return 0
        trainer = self._rooms.trainer
        if self._ask(trainer.learnt_to) != self._last:
            self._last, self._lacking = "", {}
        found: list[Episode] = self._ask(self._rooms.serving.store.recent, MOST, self._last or None)
        new = [episode for episode in found if episode.id != self._last]
        given = [*self._filled(), *new]
        barred = {digest: "it was rolled back" for digest in self._ask(self._rooms.registry.condemned)}
        last = new[-1].id if new else self._last
        num: int = self._ask(trainer.learn_from, given, barred, last)
        self._last = last
        self._lacking |= {episode.id: _num_lacking(episode) for episode in given}
        self._lacking = dict([item for item in self._lacking.items() if item[1]][-LACKING:])
        return num

    def _filled(self) -> list[Episode]:
        """Return the episodes that lacked rewards, of those that lack fewer by now."""
        if not self._lacking:
            return []
        try:
            again: list[Episode] = self._ask(self._rooms.serving.store.read, [*self._lacking])
        except FlywheelError:  # one was thinned out, or its segment is damaged: what was learnt of them stays as it is
            self._lacking = {}
            return []
        return [episode for episode in again if _num_lacking(episode) < self._lacking[episode.id]]


def _num_lacking(episode: Episode) -> int:
    return int(np.isnan(episode.rewards).sum())
