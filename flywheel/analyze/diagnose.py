"""What changed: where in production's order the change begins, and what the episodes since then say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flywheel.analyze import from_episodes
from flywheel.analyze.calibrate import calibrate, obstacle
from flywheel.analyze.correct import correct
from flywheel.analyze.remedies import believed
from flywheel.analyze.spread import Map
from flywheel.config import AnalyzeConfig
from flywheel.errors import FlywheelError
from flywheel.policy import Bundle, load
from flywheel.records import Calibration, Correction, Episode, Parameters, Signal
from flywheel.simulate.corrected import corrected
from flywheel.task import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What production says of the simulator."""

    calibration: Calibration | None
    obstacle: str
    """Why there is no calibration, as a phrase; "" if there is one."""
    num_changed: int
    """Episodes from the estimated beginning of the change on."""
    correction: Correction | None = None
    """What explains them where no parameter does; one that corrects nothing: the simulator does what they show."""
    no_correction: str = ""
    """Why there is none, as a phrase; "" if there is one, or parameters explain the change."""


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


def enough(
    task: Task, episodes: Sequence[Episode], signals: Sequence[Signal], config: AnalyzeConfig, *, is_quiet: bool = False
) -> bool:
    """Say whether the changed episodes at hand are all that `diagnose` would wait for.

    Transitions may be enough before the episodes are; where whole episodes are what is fitted, only those count.
    """
    changed = episodes if is_quiet else split(episodes, signals)[1]
    if len(changed) >= config.episodes:
        return True
    return not from_episodes.needed(task) and sum(e.num_steps for e in changed) >= config.min_transitions


def diagnose(
    task: Task,
    episodes: Sequence[Episode],
    signals: Sequence[Signal],
    config: AnalyzeConfig,
    served: Bundle | None = None,
    seed: int = 0,
    map: Map | None = None,
    *,
    is_quiet: bool = False,
    parameters: Parameters | None = None,
    present: Correction | None = None,
) -> Diagnosis:
    """Return the simulator's parameters as the episodes since the change show them, or why there are none.

    Where they don't explain the change, what does is looked for among corrections.

    Args:
        task: names the parameters, and what its simulator can do.
        episodes: production's, changed and unchanged.
        signals: alarms that say where the change begins.
        config: how many episodes are read, and what a fit may cost.
        served: the policy in service, which a task that can't be put into a state needs:
            the simulator plays it, and only episodes that it began are read.
        seed: root of the worlds that are played then.
        map: computes parts of what takes a heavy simulator long.
        is_quiet: nothing alarmed, and production is asked all the same, since it contradicts the gate: all episodes
            count as changed.
        parameters: of the worlds that were trained in so far (None or missing ones: nominal).
        present: what is corrected in them: parameters are fitted in such worlds.
    """
    before, changed = ([], list(episodes)) if is_quiet else split(episodes, signals)
    if not signals and not is_quiet:
        return Diagnosis(calibration=None, obstacle="production raised no alarm", num_changed=len(changed))
    found, why = _calibrated(corrected(task, present), before, changed, config, served, seed, map)
    num, is_believed = len(changed), found is not None and believed(found, config)
    if is_believed and not config.follow_rewards:
        return Diagnosis(calibration=found, obstacle=why, num_changed=num)
    at = found.values if found is not None and is_believed else parameters or {}
    form = correct(task, changed, config, parameters=at, before=before, present=present, known=parameters or {})
    return Diagnosis(
        calibration=found, obstacle=why, num_changed=num, correction=form.correction, no_correction=form.why
    )


def _calibrated(
    task: Task,
    before: Sequence[Episode],
    changed: Sequence[Episode],
    config: AnalyzeConfig,
    served: Bundle | None,
    seed: int,
    map: Map | None,
) -> tuple[Calibration | None, str]:
    """Return the parameters, or None and why there are none."""
    if not task.parameters or not from_episodes.needed(task):
        why = obstacle(task, changed, before)
        return None if why else calibrate(task, changed, config, before=before, map=map), why
    policy = None if served is None else load(served)
    why = from_episodes.obstacle(task, policy, changed)
    if policy is None or why:
        return None, why
    try:
        return from_episodes.calibrate(task, policy, changed, config, seed, map), why
    except FlywheelError as error:
        return None, f"its simulator can't be played all over the parameters' ranges ({error})"
