"""What open episodes will come to, looked at now and then: an estimate to be shown, which no monitor reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flywheel.records import Episode
from flywheel.task import Task

EARLY = "observer.early"
"""Name of the store's note of the last estimate, as JSON."""
CLOSED = 150
"""Most recent closed episodes of a policy that are learnt from."""
OPEN = 64
"""Most open episodes that are asked about: more make the estimate little surer."""
EVERY_S = 10.0
"""Seconds between two looks: one takes some 0.2 s of a core, beside the observer's own work."""
STALE_S = 60.0
"""Seconds after which an estimate is of episodes that are mostly over."""
Foresee = Callable[[Task, Sequence[Episode], Sequence[Episode], float], Any]
"""(task, closed episodes, others that aren't known whole, now) -> a record that says of itself what it is, or None."""


class Outlook:
    """The last estimate, and when the next one is due."""

    def __init__(self, task: Task, foresee: Foresee | None) -> None:
        """Ask `foresee`; None says nothing, ever."""
        self._task, self._foresee, self._next_at = task, foresee, 0.0
        self.last: Any = None

    def is_due(self, now: float) -> bool:
        """Say whether it is time to look again, and count this as the look."""
        if self._foresee is None or now < self._next_at:
            return False
        self._next_at = now + EVERY_S
        return True

    def look(self, recent: Sequence[Episode], begun: Sequence[Episode], now: float) -> str:
        """Return what is noted of the estimate, as JSON: what it says (null: nothing) and when; "" for no change.

        `recent` are closed episodes of the policy; those of them that lack a reward are asked about, too.
        """
        assert self._foresee is not None
        before = self.last
        late = [e for e in recent if e.end != "lost" and np.isnan(e.rewards).any()]
        self.last = self._foresee(self._task, recent, [*late[-OPEN:], *begun], now)
        return "" if self.last is before is None else json.dumps({"said": self.told, "at": now})

    @staticmethod
    def noted(text: str | None, now: float) -> str | None:
        """Return what a note of an estimate says, None where it says nothing or is of another time."""
        if not text:
            return None
        found = json.loads(text)
        said: str | None = found["said"]
        return said if now - found["at"] < STALE_S else None

    @property
    def told(self) -> str | None:
        """The last estimate as a sentence, None where there is none."""
        return None if self.last is None else str(self.last)
