"""The loop's look at a challenger: begins it or goes on with it, tells replicas of each change, waits for its end."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from flywheel import told, tryout
from flywheel.config import DeployConfig
from flywheel.deploy.canary import Canary, Ramp
from flywheel.records import Verdict
from tests.deploy.test_canary import outcome

RAMP = Ramp(DeployConfig(shadow_decisions=5, settle_s=0.0, ramp=(0.5,), ramp_first=1))
VERDICT = Verdict(
    digest="new", baseline="old", task="", config="", simulator="", outcome="pass", checks=(), trials=(), seed=0,
    cost_s=0.0, judged_at=0.0, valid_until=1.0,
)  # fmt: skip


def way() -> list[Canary]:
    """Return a challenger's way, as the registry answers at each look."""
    shadow = RAMP.begin("new", "old", 1.0)
    half = RAMP.shadowed(shadow, 5, 4, 2.0)
    rows = [outcome(3.0 + t, ("old", "new")[t % 2], failed=t % 2 == 0) for t in range(200)]
    return [shadow, shadow, half, RAMP.hear(half, rows[:4], 10.0), RAMP.hear(half, rows, 300.0)]


class Rooms:
    """Rooms that answer from a script."""

    def __init__(self, first: Canary | None, *looks: Canary) -> None:
        self.looks, self.said, self.reloads, self.challenged = [first, *looks], list[str](), 0, list[str]()
        self.dead = False
        self.registry = SimpleNamespace(canary=lambda: self.looks.pop(0), challenge=self._challenge)
        observer = SimpleNamespace(wait=lambda **_: None)
        self.serving = SimpleNamespace(observer=observer, deployment=SimpleNamespace(reload=self._reload))
        self.production = SimpleNamespace(check=lambda: None)

    def produce(self) -> None:
        self.produced = True

    def say(self, stage: str, text: str, passing: bool = False) -> None:
        self.said.append(text)

    def _reload(self) -> None:
        self.reloads += 1
        if self.dead:
            raise RuntimeError("a replica died")

    def _challenge(self, digest: str, slowly: bool) -> Any:
        self.challenged.append(digest)
        self.slowly = slowly
        return self.looks.pop(0)


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tryout, "ask", lambda method, *arguments, **named: method(*arguments, **named))


def test_it_waits_for_the_end_and_tells_replicas_of_each_change() -> None:
    rooms = Rooms(None, *way())
    found = tryout.try_out(rooms, VERDICT)  # type: ignore[arg-type]
    assert found.state == "promoted" and rooms.challenged == ["new"] and rooms.reloads == 3 and not rooms.slowly
    assert rooms.said[0] == "policy new is in the shadow: 0 decisions, 0 as the champion's"
    assert rooms.said[3] == "policy new has 50% of new episodes: 0 of 2 failed, 2 of 2 of the champion's"
    assert rooms.said[-1].startswith("policy new is promoted: it fails no oftener by 2.0%: 0 of ")


def test_one_that_an_earlier_start_had_begun_goes_on_and_one_that_ended_is_not_tried_again() -> None:
    first, *rest = way()
    rooms = Rooms(first, *rest)
    assert tryout.try_out(rooms, VERDICT).state == "promoted" and not rooms.challenged  # type: ignore[arg-type]
    over = Rooms(RAMP.broke(first, "it crashed", 2.0))
    assert tryout.try_out(over, VERDICT).state == "rolled_back"  # type: ignore[arg-type]
    assert not over.challenged and over.said == ["policy new is rolled back: it crashed"]
    older = Rooms(dataclasses.replace(rest[-1], begun_at=-1.0), *way())
    tryout.try_out(older, VERDICT)  # type: ignore[arg-type]
    assert older.challenged == ["new"], "that was another verdict's"


def test_a_replica_that_died_ends_nothing_and_is_told_of() -> None:
    rooms = Rooms(None, *way())
    rooms.dead = True
    assert tryout.try_out(rooms, VERDICT).state == "promoted"  # type: ignore[arg-type]
    assert rooms.said[0].startswith("not every replica could be told of the challenger's share (a replica died)")


def test_it_made_room_where_somebody_has_another_one_tried() -> None:
    first, second, *_ = way()
    other = RAMP.begin("third", "old", 2.0)
    rooms = Rooms(None, first, second, other)
    found = tryout.try_out(rooms, VERDICT)  # type: ignore[arg-type]
    assert (found.challenger, found.state, found.reason) == ("new", "replaced", "policy third took its place")


def test_one_that_is_frozen_is_waited_for_no_longer() -> None:
    ramp = Ramp(DeployConfig(on_fail="freeze"))
    frozen = ramp.broke(ramp.begin("new", "old", 1.0), "it crashed", 2.0)
    assert tryout.try_out(Rooms(frozen), VERDICT).state == "frozen"  # type: ignore[arg-type]
    assert told.canary(frozen) == "policy new is frozen: it crashed"


def test_what_production_thinks_little_of_begins_slowly() -> None:
    rooms = Rooms(None, *way())
    tryout.try_out(rooms, VERDICT, slowly=True)  # type: ignore[arg-type]
    assert rooms.slowly
