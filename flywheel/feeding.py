"""Production's episodes go from the store to the trainer, where its algorithm learns from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flywheel.config import TrainConfig
from flywheel.errors import FlywheelError
from flywheel.records import Episode, Plan, Signal
from flywheel.replaying import OFF_POLICY

MOST = 5_000
"""Episodes of one helping; the newest, where more have come since the last one."""
LACKING = 500
"""Episodes whose missing rewards are waited for, the newest: each helping reads them all again."""


class Feed:
    """What the trainer has had of production."""

    def __init__(self, config: TrainConfig, ask: Callable[..., Any], rooms: Any, say: Callable[[str], None]) -> None:
        """Ask the store, the registry and the trainer of rooms, once they are needed; `say` what was lost."""
        self._ask, self._rooms, self._say = ask, rooms, say
        self._is_wanted = config.algorithm in OFF_POLICY
        self._last = ""
        self._lacking: dict[str, int] = {}  # by id of an episode how many of its rewards weren't known
        self._began: dict[tuple[str, float], float] = {}  # by an alarm's episode and time when that episode began

    def give(self, plans: Sequence[Plan] = ()) -> int:
        """Hand over the episodes that began since the last helping, what nothing is to be learnt from, and since when.

        Those that lacked rewards come again once some have come. A trainer that came back as another process, with
        nothing that the one before had learnt from, gets the newest ones all over. `plans` are all up to the present
        one: they say when the world changed, before which nothing is learnt from.
        Returns how many transitions came; 0 where the algorithm learns in simulation alone, or nothing is served yet.
        """
        if not self._is_wanted or self._ask(self._rooms.registry.champion) is None:
            return 0
        trainer = self._rooms.trainer
        if self._ask(trainer.learnt_to) != self._last:
            if self._last:
                self._say(
                    "what was learnt from was lost with a process or its node, all of it or a shard's part: it is "
                    "given production's episodes again"
                )
            self._last, self._lacking = "", {}
        found = self._readable(self._last or None)
        new = [episode for episode in found if episode.id != self._last]
        given = [*self._filled(), *new]
        barred = {("policy", digest): "it was rolled back" for digest in self._ask(self._rooms.registry.condemned)}
        barred |= self._ask(self._rooms.serving.store.excluded)
        last = new[-1].id if new else self._last
        num: int = self._ask(trainer.learn_from, given, barred, last, self._since(changes(plans)))
        self._last = last
        self._lacking |= {episode.id: _num_lacking(episode) for episode in given}
        self._lacking = dict([item for item in self._lacking.items() if item[1]][-LACKING:])
        return num

    def _readable(self, since: str | None) -> list[Episode]:
        """Return production's newest episodes; of damaged ones it is said that they are left out."""
        recent = self._rooms.serving.store.recent
        try:
            found: list[Episode] = self._ask(recent, MOST, since)
        except FlywheelError as error:
            found = self._ask(recent, MOST, since, None, "production", False, True)
            self._say(f"{error} Nothing is learnt from them.")
        return found

    def _since(self, signals: Sequence[Signal]) -> float:
        """Return when the first of the episodes began with which these alarms' evidence begins; 0 where there is none.

        Of an episode whose steps are kept no more it is the time of the alarm.
        """
        return min(map(self._onset, signals), default=0.0)

    def _onset(self, signal: Signal) -> float:
        key = (signal.since_episode, signal.at)
        if key not in self._began:
            try:
                (first,) = self._ask(self._rooms.serving.store.read, [signal.since_episode])
                self._began[key] = first.started_at
            except FlywheelError:
                self._began[key] = signal.at
        return self._began[key]

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


def changes(plans: Sequence[Plan]) -> tuple[Signal, ...]:
    """Return the alarms of the last change of the world that a plan trains for; () where none does.

    What such a plan trains for is a shift; where it trains on production alone any alarm is, as nothing explains it.
    """
    for plan in reversed(plans):
        is_alone = plan.sampling == "production"
        found = [signal for signal in plan.signals if is_alone or signal.kind == "shift_detected"]
        if found and (is_alone or plan.sampling == "recent"):
            return tuple(found)
    return ()


def _num_lacking(episode: Episode) -> int:
    return int(np.isnan(episode.rewards).sum())
