"""Follows training and its turns for those who look on: how long a round may still take, meters, trackers' curves."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flywheel import told, trackers
from flywheel.config import Config
from flywheel.meters import readings
from flywheel.meters.on_ray import Recorder
from flywheel.outcomes import Outcome
from flywheel.records import Plan, Probe, Progress, Turn
from flywheel.story import Story
from flywheel.train.ending import Ending, most_steps
from flywheel.train.pace import Pace


class Following:
    """What is told of a run's rounds while they go on."""

    def __init__(self, config: Config, run_dir: Path, wheel: str, say: Story, recorder: Recorder) -> None:
        """Write curves below the run directory, numbers to the recorder and sentences to `say`."""
        self._config, self._say, self._meters = config, say, recorder
        self._trackers = trackers.opened(config.train.trackers, run_dir, wheel, settings_of(config), say)
        self._pace = Pace(0, time.monotonic())
        self._needed = math.nan

    def begin(self, number: int, plan: Plan, rival: Probe | None, ending: Ending | None = None) -> None:
        """Follow a round that begins in this turn, and how it is to end, where that is by another return."""
        self._needed = math.nan if ending is None else ending.needed
        limit = most_steps(plan, rival, self._config.train)
        self._pace = Pace(limit, time.monotonic())
        self._trackers.begin(number, limit)

    def seen(self, progress: Progress, probe: Probe) -> Progress:
        """Tell how far the round is, and return its progress with the time that is left of it, at most."""
        progress = self._pace.told(progress, time.monotonic())
        self._meters.record(readings.of_left(progress.left_s))
        self._trackers.round(progress, probe)
        words = told.progress(progress, probe, self._needed)
        self._say("train", words, passing=True, **told.numbers(progress, probe))
        return progress

    def over(self, progress: Progress, probe: Probe) -> None:
        """Tell how a round ended."""
        self._meters.record(readings.of_left(0.0))
        self._say("train", told.progress(dataclasses.replace(progress, left_s=None), probe, self._needed))

    def turned(self, turn: Turn) -> None:
        """Tell of a turn that is in the journal."""
        self._meters.record(readings.of_turn(turn))
        self._trackers.turn(turn)

    def close(self) -> None:
        """Have all curves written."""
        self._trackers.close()


def failure_rate(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Return the share of failed episodes among those that were not lost, {} where there are none."""
    ended = [outcome for outcome in outcomes if outcome.end != "lost"]
    return {"failure_rate": sum(outcome.failed for outcome in ended) / len(ended)} if ended else {}


def settings_of(config: Config) -> dict[str, Any]:
    """Return a configuration's values by their whole names."""
    return dict(_named(dataclasses.asdict(config), ""))


def _named(part: Mapping[str, Any], where: str) -> Iterator[tuple[str, Any]]:
    for name, value in part.items():
        if isinstance(value, Mapping):
            yield from _named(value, f"{where}{name}.")
        else:
            yield f"{where}{name}", value
