"""What the control group beside the champion says of an alarm: gathers both arms from registry and observer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from flywheel.analyze.concurrent import Blame, blame
from flywheel.arms import Arms, Control, compare, failed
from flywheel.cluster import Rooms, ask
from flywheel.observe.arm import loss_of
from flywheel.outcomes import Outcome
from flywheel.records import Release, Signal
from flywheel.task import Task

MOST = 100_000
"""Outcomes that are read at most, from the control's time as champion on: the oldest of a longer time are enough."""


def blamed(rooms: Rooms, task: Task, release: Release, signals: Sequence[Signal]) -> Blame | None:
    """Return whose doing the alarms about a release are; None without an alarm, or a control group that counts."""
    arms = gathered(rooms, task, release, signals) if signals else None
    return None if arms is None else blame(arms)


def gathered(rooms: Rooms, task: Task, release: Release, signals: Sequence[Signal]) -> Arms | None:
    """Return how the champion and its control fared, cut where the first alarm's evidence begins.

    An alarm about outcomes goes before one about the world. None where no control group counts beside this release, or
    it had ended when the alarm's evidence begins: then it never saw what the alarm is about.
    """
    controls: list[Control] = ask(rooms.registry.controls)
    if not controls or (controls[-1].champion, controls[-1].begun_at) != (release.digest, release.released_at):
        return None
    control = controls[-1]
    if control.settled_at is None:
        return None
    until = float("inf") if control.ended_at is None else control.ended_at
    alarm = min(signals, key=lambda signal: (signal.kind != "degradation", signal.at))
    releases: list[Release] = ask(rooms.registry.releases)
    begun = [r.released_at for r in releases if r.digest == control.policy and r.released_at < control.begun_at]
    former = _read(rooms, (control.policy,), begun[-1] if begun else control.begun_at, control.begun_at)
    beside = _read(rooms, (release.digest, control.policy), control.begun_at, until)
    if control.ended_at is not None and all(outcome.id != alarm.since_episode for outcome in beside):
        return None
    return compare(
        release.digest,
        control.policy,
        [*former, *beside],
        share=control.share,
        begun_at=control.begun_at,
        counted_from=control.settled_at,
        since_episode=alarm.since_episode,
        until=until,
        loss=failed if task.return_range is None else partial(loss_of, return_range=task.return_range),
    )


def _read(rooms: Rooms, digests: tuple[str, ...], since: float, until: float) -> list[Outcome]:
    """Return the settled outcomes of these policies that began between two times, in order of start."""
    found: list[Outcome] = []
    after = (since, "")
    while len(found) < MOST and after[0] < until:
        page: list[Outcome] = ask(rooms.serving.observer.outcomes, digests, after)
        if not page:
            break
        found += page
        after = (page[-1].started_at, page[-1].id)
    return [outcome for outcome in found if outcome.started_at < until]
