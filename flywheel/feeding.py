"""Production's episodes go from the store to the trainer, where its algorithm learns from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from flywheel.config import TrainConfig
from flywheel.records import Episode

MOST = 5_000
"""Episodes of one helping; the newest, where more have come since the last one."""


class Feed:
    """What the trainer has had of production."""

    def __init__(self, config: TrainConfig, ask: Callable[..., Any], rooms: Any) -> None:
        """Ask the store, the registry and the trainer of rooms, once they are needed."""
        self._ask, self._rooms = ask, rooms
        self._is_wanted = config.algorithm != "ppo"
        self._last = ""
        self._incomplete: list[str] = []  # ids of episodes that lacked rewards

    def give(self) -> int:
        """Hand over the episodes that began since the last helping, and which policies are condemned.

        Those that lacked rewards come again, since the rewards may have come by now, MOST at a time.
        Returns how many transitions came; 0 where the algorithm learns in simulation alone, or nothing is served yet.
        """
        if not self._is_wanted or self._ask(self._rooms.registry.champion) is None:
            return 0
        store = self._rooms.serving.store
        found: list[Episode] = self._ask(store.recent, MOST, self._last or None)
        new = [episode for episode in found if episode.id != self._last]
        again: list[Episode] = self._ask(store.read, self._incomplete) if self._incomplete else []
        barred = {digest: "it was rolled back" for digest in self._ask(self._rooms.registry.condemned)}
        num: int = self._ask(self._rooms.trainer.learn_from, [*again, *new], barred)
        self._last = new[-1].id if new else self._last
        self._incomplete = [e.id for e in (*again, *new) if np.isnan(e.rewards).any()][-MOST:]
        return num
