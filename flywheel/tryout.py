"""A challenger on its way, as the loop sees it: begins it, tells how it fares, and waits for its end."""

from __future__ import annotations

from typing import Any

from flywheel import told
from flywheel.cluster import Rooms, ask
from flywheel.deploy.canary import Canary, Ramp
from flywheel.records import Verdict

LOOK_S = 0.5
"""Seconds between two looks at a challenger; the registry's owner moves it each second."""


def try_out(rooms: Rooms, verdict: Verdict, slowly: bool = False) -> Canary:
    """Return how a judged challenger ended, or that it is frozen; one that an earlier start had begun goes on.

    `slowly` lets it begin in the shadow in any case, as Ramp.begin.

    Replicas are told of each change at once; one that can't be told finds it out by itself. Raises Refused where it may
    not be tried.
    """
    rooms.produce()
    canary = _begun(rooms, verdict, slowly)
    shown: Any = None
    while True:
        now = (canary.state, canary.share)
        if now != shown:
            _reload(rooms)
            shown = now
        if canary.is_over or canary.state == "frozen":
            rooms.say("deploy", told.canary(canary))
            return canary
        rooms.say("deploy", told.canary(canary), passing=True)
        rooms.production.check()
        ask(rooms.serving.observer.wait, timeout_s=LOOK_S)
        present: Canary = ask(rooms.registry.canary)
        is_same = present.is_same(canary)  # else somebody has another policy tried, and this one made room
        canary = present if is_same else Ramp().replace(canary, present.challenger, present.begun_at)


def _reload(rooms: Rooms) -> None:
    try:
        rooms.serving.deployment.reload()
    except Exception as error:  # Ray's, Serve's or a room's, as of a replica that died: replicas look each second
        rooms.say("deploy", f"not every replica could be told of the challenger's share ({error}): each will look")


def _begun(rooms: Rooms, verdict: Verdict, slowly: bool) -> Canary:
    known: Canary | None = ask(rooms.registry.canary)
    if known is not None and known.challenger == verdict.digest and known.begun_at >= verdict.judged_at:
        return known
    begun: Canary = ask(rooms.registry.challenge, verdict.digest, slowly)
    return begun
