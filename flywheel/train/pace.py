"""How long a round of training may still take, at the speed that it has at present."""

from __future__ import annotations

import dataclasses
from collections import deque

from flywheel.records import Progress

RECENT = 8
"""Probes over which the speed is taken, so that the first ones, beside which Serve starts, are soon forgotten."""


class Pace:
    """One round's speed by the clock, with the probes between its iterations."""

    def __init__(self, limit: int, now: float) -> None:
        """Begin a round that gives up after `limit` environment steps; `now` is in seconds of any clock."""
        self._limit = limit
        self._seen = deque([(now, 0)], maxlen=RECENT + 1)

    def told(self, progress: Progress, now: float) -> Progress:
        """Return the progress with the seconds that the round takes from now on if nothing ends it earlier.

        None where the clock has not moved yet. A round that began again, in another process, is timed anew.
        """
        if progress.num_steps <= self._seen[-1][1]:
            self._seen.clear()
        self._seen.append((now, progress.num_steps))
        (began, before), left = self._seen[0], max(0, self._limit - progress.num_steps)
        if now <= began or progress.num_steps <= before:
            return dataclasses.replace(progress, left_s=None)
        return dataclasses.replace(progress, left_s=left * (now - began) / (progress.num_steps - before))
