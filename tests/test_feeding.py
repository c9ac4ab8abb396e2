"""What the trainer is given of production: each episode once, again when rewards came, all of it after a restart."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from flywheel.config import TrainConfig
from flywheel.errors import FlywheelError, UsageError
from flywheel.feeding import Feed
from flywheel.records import Episode, Plan, Signal, SignalKind
from flywheel.sampling import Barred
from tests.store.test_intake import episode

BARRED = {("episode", "a"): "a person touched the cart"}


class Rooms:
    """A store, a registry and a trainer that remember what they were given."""

    def __init__(self) -> None:
        self.known: dict[str, Episode] = {}
        self.damaged: set[str] = set()
        self.said: list[str] = []
        self.thinned: set[str] = set()
        self.given: list[list[str]] = []
        self.since = 0.0
        self.last = ""
        self.registry = SimpleNamespace(champion=lambda: "a", condemned=lambda: ["bad"])
        self.serving = SimpleNamespace(
            store=SimpleNamespace(recent=self._recent, read=self._read, excluded=lambda: BARRED)
        )
        self.trainer = SimpleNamespace(learn_from=self._learn, learnt_to=lambda: self.last)

    def add(self, id_: str, reward: float = 1.0) -> None:
        self.known[id_] = dataclasses.replace(
            episode(id_, 2), rewards=np.array([1.0, reward]), started_at=100.0 + [*self.known, id_].index(id_)
        )

    def _recent(self, n: int, since: str | None, *how: object) -> list[Episode]:
        ids = list(self.known)
        found = ids[ids.index(since) if since else 0 :][-n:]
        if self.damaged & {*found}:
            if how != (None, "production", False, True):
                raise FlywheelError("Segment 00000001.parquet is damaged.")
            found = [id_ for id_ in found if id_ not in self.damaged]
        return [self.known[id_] for id_ in found]

    def _read(self, ids: Sequence[str]) -> list[Episode]:
        if gone := self.thinned & set(ids):
            raise UsageError(f"The steps of {gone} are kept no more.")
        return [self.known[id_] for id_ in ids]

    def _learn(self, episodes: Sequence[Episode], barred: Barred, last: str, since: float) -> int:
        self.since = since
        assert barred == {("policy", "bad"): "it was rolled back", **BARRED}
        self.given.append([each.id for each in episodes])
        self.last = last
        return len(episodes)


def feed(rooms: Rooms) -> Feed:
    config: Any = dataclasses.replace(TrainConfig(), algorithm="dqn")
    return Feed(config, lambda method, *arguments: method(*arguments), rooms, rooms.said.append)


def test_damaged_episodes_are_left_out_and_named_and_end_no_turn() -> None:
    rooms = Rooms()
    given = feed(rooms)
    for id_ in "abc":
        rooms.add(id_)
    rooms.damaged = {"b"}
    assert given.give() == 2 and rooms.given == [["a", "c"]]
    assert rooms.said == ["Segment 00000001.parquet is damaged. Nothing is learnt from them."]
    rooms.add("d")
    assert given.give() == 1 and len(rooms.said) == 1


def test_it_is_said_when_what_was_learnt_from_was_lost() -> None:
    rooms = Rooms()
    given = feed(rooms)
    rooms.add("a")
    assert given.give() == 1 and not rooms.said, "a new trainer has lost nothing"
    rooms.last = ""
    assert given.give() == 1 and rooms.given == [["a"], ["a"]]
    assert len(rooms.said) == 1 and rooms.said[0].startswith("what was learnt from was lost with a process or its node")


def test_an_episode_comes_once_and_again_only_when_a_reward_of_it_has_come() -> None:
    rooms = Rooms()
    given = feed(rooms)
    rooms.add("a")
    rooms.add("lacks", np.nan)
    assert given.give() == 2 and given.give() == given.give() == 0, "what is the same says nothing new"
    rooms.add("b")
    rooms.add("lacks")
    assert given.give() == 2 and given.give() == 0
    assert rooms.given == [["a", "lacks"], [], [], ["lacks", "b"], []]


def test_one_that_was_thinned_out_meanwhile_is_waited_for_no_more() -> None:
    rooms = Rooms()
    given = feed(rooms)
    rooms.add("lacks", np.nan)
    given.give()
    rooms.thinned.add("lacks")
    rooms.add("b")
    assert given.give() == 1 and given.give() == 0 and rooms.given[1:] == [["b"], []]


def test_a_trainer_that_came_back_gets_all_of_it_again() -> None:
    rooms = Rooms()
    given = feed(rooms)
    rooms.add("a")
    rooms.add("b", np.nan)
    given.give()
    rooms.last = ""
    rooms.add("c")
    assert given.give() == 3 and rooms.given[1] == ["a", "b", "c"]


def alarm(kind: SignalKind, since: str, at: float = 500.0) -> Signal:
    return Signal(
        kind=kind, monitor="m", digest="a", value=9.0, threshold=5.0, since_episode=since, at_episode="z",
        evidence={}, at=at,
    )  # fmt: skip


def test_what_began_before_the_change_that_a_plan_trains_for_is_learnt_from_no_more() -> None:
    rooms = Rooms()
    given = feed(rooms)
    for id_ in "abc":
        rooms.add(id_)
    quiet = Plan(strategy="continue_training", reasons=(), sampling="uniform")
    shift, worse = alarm("shift_detected", "b"), alarm("degradation", "c")
    recent = Plan(strategy="retrain_prioritize_recent", reasons=(), sampling="recent", signals=(shift, worse))
    given.give([quiet])
    assert rooms.since == 0.0
    given.give([quiet, recent])
    assert rooms.since == 101.0
    given.give([quiet, recent, quiet])
    assert rooms.since == 101.0, "it stays changed when the alarm is over"
    given.give([recent, dataclasses.replace(recent, sampling="none", signals=(worse,))])
    assert rooms.since == 101.0, "worse outcomes alone may be the policy's doing"
    given.give([recent, dataclasses.replace(recent, sampling="production", signals=(worse,))])
    assert rooms.since == 102.0, "unless nothing explains them"


def test_an_episode_that_is_kept_no_more_leaves_the_time_of_the_alarm() -> None:
    rooms = Rooms()
    given = feed(rooms)
    rooms.add("a")
    rooms.thinned.add("a")
    signals = (alarm("shift_detected", "a"),)
    given.give([Plan(strategy="retrain_prioritize_recent", reasons=(), sampling="recent", signals=signals)])
    assert rooms.since == 500.0
