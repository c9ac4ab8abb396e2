"""Both arms of a release are gathered from registry and observer, whole, and say whose doing its alarm is."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from flywheel import beside
from flywheel.arms import Arms, Control
from flywheel.outcomes import Outcome
from flywheel.records import Release, Signal
from flywheel.tasks.cartpole import cartpole
from tests.deploy.test_canary import alarm
from tests.test_arms import outcome

PAGE = 100
CONTROL = Control(policy="old", champion="new", share=0.5, begun_at=1000.0, settled_at=1002.0)
RELEASE = Release(digest="new", stage="full", share=1.0, previous="old", released_at=1000.0)


class Rooms:
    """Registry and observer that answer from lists, the observer a page at a time."""

    def __init__(self, outcomes: list[Outcome], *controls: Control) -> None:
        self.known, self.num_pages = sorted(outcomes), 0
        first = dataclasses.replace(RELEASE, digest="old", previous=None, released_at=500.0)
        self.registry = SimpleNamespace(controls=lambda: list(controls), releases=lambda: [first, RELEASE])
        self.serving = SimpleNamespace(observer=SimpleNamespace(outcomes=self._outcomes))

    def _outcomes(self, digests: tuple[str, ...], after: tuple[float, str]) -> list[Outcome]:
        self.num_pages += 1
        return [o for o in self.known if o.digest in digests and (o.started_at, o.id) > after][:PAGE]


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "ask", lambda method, *arguments: method(*arguments))


def history(new_every: int, old_every: int) -> list[Outcome]:
    """Return 400 outcomes of the old policy alone, then 300 of each side by side; every so many fail."""
    before = [outcome(510.0 + t, "old", failed=t % 50 == 1) for t in range(400)]
    side = [
        outcome(1010.0 + t, ("new", "old")[t % 2], failed=(t // 2) % (new_every, old_every)[t % 2] == 1)
        for t in range(600)
    ]
    return [outcome(100.0, "old", failed=True), *before, *side]


def gathered(rooms: Any, *signals: Signal) -> Arms | None:
    return beside.gathered(rooms, cartpole, RELEASE, signals)


def test_all_pages_of_both_arms_are_read_and_cut_where_the_evidence_begins() -> None:
    rooms = Rooms(history(5, 50), CONTROL)
    found = gathered(rooms, dataclasses.replace(alarm(digest="new"), since_episode="e1110"))
    assert found is not None and rooms.num_pages == 5 + 7, "until a page is empty"
    assert (found.former.num, found.former.num_failed, found.share) == (400, 8, 0.5)
    assert [side.num for side in (*found.before, *found.after)] == [50, 50, 250, 250]
    assert found.after[0].loss > found.after[0].num_failed == 50, "what a return lacks is a loss, too"


def test_an_alarm_about_outcomes_goes_before_an_older_one_about_the_world() -> None:
    world = dataclasses.replace(alarm("shift_detected", digest="new"), since_episode="e1020", at=1.0)
    worse = dataclasses.replace(alarm(digest="new"), since_episode="e1110", at=2.0)
    found = gathered(Rooms(history(5, 50), CONTROL), world, worse)
    assert found is not None and found.since == 1110.0
    found = gathered(Rooms(history(5, 50), CONTROL), world)
    assert found is not None and found.since == 1020.0


@pytest.mark.parametrize(("new_every", "old_every", "whose"), [(5, 50, "policy"), (5, 5, "world"), (50, 50, "unknown")])
def test_it_says_whose_doing_an_alarm_is(new_every: int, old_every: int, whose: str) -> None:
    rooms: Any = Rooms(history(new_every, old_every), CONTROL)
    found = beside.blamed(rooms, cartpole, RELEASE, [dataclasses.replace(alarm(digest="new"), since_episode="e1010")])
    assert found is not None and found.whose == whose, found


def test_a_control_that_ended_counts_up_to_its_end() -> None:
    ended = dataclasses.replace(CONTROL, ended_at=1110.0)
    found = gathered(Rooms(history(5, 50), ended), dataclasses.replace(alarm(digest="new"), since_episode="e1050"))
    assert found is not None and [side.num for side in found.beside] == [50, 50] and found.former.num == 400


def test_a_control_that_had_ended_before_the_evidence_begins_says_nothing_of_it() -> None:
    """The champion was worse beside it, which no alarm came of; what alarms now is another thing."""
    rooms: Any = Rooms(history(5, 50), dataclasses.replace(CONTROL, ended_at=1510.0))
    late = dataclasses.replace(alarm(digest="new"), since_episode="e1560")
    assert beside.blamed(rooms, cartpole, RELEASE, [late]) is None
    early = dataclasses.replace(alarm(digest="new"), since_episode="e1050")
    found = beside.blamed(rooms, cartpole, RELEASE, [early])
    assert found is not None and found.whose == "policy"


def test_without_an_alarm_or_a_control_of_this_release_that_counts_nobody_says_anything() -> None:
    others = (
        (), (dataclasses.replace(CONTROL, settled_at=None),), (dataclasses.replace(CONTROL, begun_at=900.0),),
        (CONTROL, dataclasses.replace(CONTROL, champion="newer")),
    )  # fmt: skip
    for controls in others:
        assert gathered(Rooms(history(5, 50), *controls), alarm(digest="new")) is None
    rooms: Any = Rooms(history(5, 50), CONTROL)
    assert beside.blamed(rooms, cartpole, RELEASE, []) is None and rooms.num_pages == 0
