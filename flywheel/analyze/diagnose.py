"""What changed: where in production's order the change begins, and what the episodes since then say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flywheel.analyze.calibrate import calibrate, obstacle
from flywheel.config import AnalyzeConfig
from flywheel.records import Calibration, Episode, Signal
from flywheel.task import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What production says of the simulator."""

    calibration: Calibration | None
    obstacle: str
    """Why there is no calibration, as a phrase; "" if there is one."""
    num_changed: int
    """Episodes from the estimated beginning of the change on."""


def split(episodes: Sequence[Episode], signals: Sequence[Signal]) -> tuple[list[Episode], list[Episode]]:
    """Return the episodes before the change and those since then, both in order of start.

    The beginning is the earliest one that a `shift_detected` names, else a `degradation`. Episodes that begin at an
    alarm's `since_episode` count as changed; where that one isn't at hand, those from the alarm on. With no signal
    nothing has changed.
    """
    ordered = sorted(episodes, key=lambda e: (e.started_at, e.id))
    place = {e.id: number for number, e in enumerate(ordered)}
    deciding = [s for s in signals if s.kind == "shift_detected"] or list(signals)
    if not deciding:
        return ordered, []
    # an alarm that names no episode at hand is older than all of them
    onset = min(place.get(s.since_episode, place.get(s.at_episode, 0)) for s in deciding)
    return ordered[:onset], ordered[onset:]


def enough(episodes: Sequence[Episode], signals: Sequence[Signal], config: AnalyzeConfig) -> bool:
    """Say whether the changed episodes at hand are all that `diagnose` would wait for."""
    _, changed = split(episodes, signals)
    return len(changed) >= config.episodes or sum(e.num_steps for e in changed) >= config.min_transitions


def diagnose(task: Task, episodes: Sequence[Episode], signals: Sequence[Signal], config: AnalyzeConfig) -> Diagnosis:
    """Return the simulator's parameters as the episodes since the change show them, or why there are none."""
    before, changed = split(episodes, signals)
    why = obstacle(task, changed, before) if signals else "production raised no alarm"
    found = None if why else calibrate(task, changed, config, before=before)
    return Diagnosis(calibration=found, obstacle=why, num_changed=len(changed))
