"""Asks the wheel's rooms for what a diagnosis reads, and has it made where there is a CPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from flywheel.analyze.cause import MOST, find
from flywheel.causes import CAUSE, Cause, answered, to_plain, told
from flywheel.cluster import Rooms, ask
from flywheel.errors import FlywheelError
from flywheel.records import Episode, Signal, Spec, Turn
from flywheel.remembering import forgotten
from flywheel.task import Task, spec_of

FORMER = MOST // 3
"""Episodes of the policy before the one in service that are read, where it has so many."""


def explain(
    rooms: Rooms, spec: Spec, signals: Sequence[Signal], turns: Sequence[Turn], task: Task | None = None
) -> dict[str, Any]:
    """Say why production changed since the last change that a release answered; return it as a turn's evidence.

    What a `task` remembers of actions is left out: it moves with the policy's own doing, and is no sensor.
    Only settled episodes are read, in order of start: short, failed ones are over first, and would look like a change.
    Where that fails the cause is not known, for this reason: a turn is decided without it, as one is that can't wait.
    """
    champion = signals[-1].digest
    previous: str | None = ask(rooms.registry.releases)[-1].previous
    try:
        episodes = _settled(rooms, champion, MOST - FORMER)
        if previous is not None and previous != champion:
            episodes += _settled(rooms, previous, FORMER)
        fresh = [e for e in episodes if e.started_at >= answered(turns)]
        if task is not None and task.inner is not None:
            task, fresh = forgotten(task, fresh)
            own = spec_of(task)
            names = [each.name for each in dataclasses.fields(own) if each.name.startswith("observation_")]
            spec = dataclasses.replace(spec, **{name: getattr(own, name) for name in names})
        cause: Cause = ask(rooms.work(find), fresh, spec, signals=signals, champion=champion, previous=previous)
    except FlywheelError as error:  # a damaged segment, or episodes of a kind that nobody thought of
        cause = Cause(kind="unknown", digest=champion, sentences=(f"why is not known, as asking failed: {error}",))
    rooms.say("analyze", told(cause))
    return {CAUSE: to_plain(cause)}


def _settled(rooms: Rooms, digest: str, num: int) -> list[Episode]:
    """Return a policy's last episodes before which nothing is open any more, in order of start."""
    serving: Any = rooms.serving
    recent: list[Episode] = ask(serving.store.recent, num, None, digest)
    if not recent:
        return []
    settled, after, last = set[str](), (recent[0].started_at - 1e-6, ""), (recent[-1].started_at, recent[-1].id)
    while after < last and (page := ask(serving.observer.outcomes, [digest], after)):
        settled |= {outcome.id for outcome in page}
        after = (page[-1].started_at, page[-1].id)
    return [e for e in recent if e.id in settled]
