"""Rewards that come late: joined to their episodes on reading, one number a step, and contents never change."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel.records import Reward
from flywheel.store.intake import FILE, Intake, open_readonly
from tests.store.test_intake import episode, same

UNKNOWN = np.array([1.0, math.nan, math.nan])


def late(t: int, reward: float, id_: str = "a", seen_at: float = 9.0) -> Reward:
    return Reward(episode=id_, t=t, reward=reward, seen_at=seen_at)


@pytest.fixture
def intake(tmp_path: Path) -> Iterator[Intake]:
    with Intake(tmp_path) as store:
        yield store


def answers(store: Intake, *rewards: Reward, told: float | None = None) -> list[str]:
    """Return what became of rewards; `told` came with the steps of episodes that aren't stored."""
    return list(store.reward(rewards, [told] * len(rewards))[0])


def aside(store: Intake) -> list[Any]:
    return store._connection.execute("SELECT episode, t, reward FROM rewards_aside").fetchall()


def test_a_late_reward_is_in_the_episode_whenever_it_is_read(intake: Intake, tmp_path: Path) -> None:
    told = episode("a", rewards=UNKNOWN)
    intake.append([told, episode("b", at=1.0)])
    assert intake.outcomes()[0].total == 1.0
    assert answers(intake, late(2, 5.0)) == ["stored"]
    with closing(open_readonly(tmp_path)) as reader:
        found = (reader.read(["a"]), reader.recent(9), reader.following("a", -1.0))
        for episodes in found:
            np.testing.assert_array_equal(episodes[0].rewards, [1.0, math.nan, 5.0])
            assert not episodes[0].rewards.flags.writeable
        assert reader.outcomes()[0].total == 6.0 == reader.summary()["a"]["total"] - episode("b").total
    assert intake.append([told]) == {"a": "same"}, "its content is what it was"


def test_one_number_counts_for_a_step_and_others_are_set_aside(intake: Intake) -> None:
    intake.append([episode("a", rewards=UNKNOWN)])
    assert answers(intake, late(1, 5.0), late(1, 5.0), late(1, 6.0), late(1, 6.0)) == [
        "stored", "same", "conflict", "conflict",
    ]  # fmt: skip
    assert answers(intake, late(0, 1.0), late(0, 2.0)) == ["same", "conflict"], "one that came with its step is known"
    assert aside(intake) == [("a", 0, 2.0), ("a", 1, 6.0)]
    assert intake.read(["a"])[0].rewards.tolist()[:2] == [1.0, 5.0]


def test_a_step_that_nobody_knows_is_unknown(intake: Intake) -> None:
    intake.append([episode("a", rewards=UNKNOWN)])
    assert answers(intake, late(3, 1.0), late(0, 1.0, "b")) == ["unknown", "unknown"]
    assert intake._connection.execute("SELECT count(*) FROM rewards").fetchone() == (0,)


def test_the_reward_of_an_open_episode_waits_for_its_end(intake: Intake) -> None:
    assert answers(intake, late(1, 5.0), told=math.nan) == ["stored"]
    assert answers(intake, late(0, 1.0), late(0, 2.0), told=1.0) == ["same", "conflict"]
    intake.append([episode("a", rewards=UNKNOWN)])
    assert intake.outcomes()[0].total == 6.0
    assert intake.read(["a"])[0].rewards.tolist()[:2] == [1.0, 5.0]


def test_what_came_with_the_step_after_all_counts(intake: Intake) -> None:
    assert answers(intake, late(1, 5.0), late(2, 7.0), told=math.nan) == ["stored", "stored"]
    intake.append([episode("a", rewards=np.array([1.0, 4.0, 7.0]))])
    assert intake.read(["a"])[0].rewards.tolist() == [1.0, 4.0, 7.0] and intake.outcomes()[0].total == 12.0
    assert aside(intake) == [("a", 1, 5.0)], "and only what contradicts it is set aside"


def test_a_lost_episode_and_the_whole_one_in_its_place_have_the_same_late_rewards(intake: Intake) -> None:
    intake.append([episode("a", 2, rewards=UNKNOWN[:2], end="lost", failed=False)])
    assert answers(intake, late(1, 5.0)) == ["stored"]
    assert answers(intake, late(2, 7.0), told=math.nan) == ["stored"], "it goes on, where the observer has it"
    intake.append([episode("a", rewards=UNKNOWN)])
    assert intake.read(["a"])[0].rewards.tolist() == [1.0, 5.0, 7.0] and intake.outcomes()[0].total == 13.0


def test_what_changed_comes_with_its_return_of_before(intake: Intake) -> None:
    intake.append([episode("a", rewards=UNKNOWN), episode("b", at=1.0, rewards=UNKNOWN)])
    _, changed = intake.reward([late(1, 5.0), late(2, 0.5, "b"), late(0, 1.0, "c")], [None] * 3)
    assert [(each.episode.id, each.total_before, each.episode.total) for each in changed] == [
        ("a", 1.0, 6.0), ("b", 1.0, 1.5),
    ]  # fmt: skip


def test_an_episode_is_judged_again_without_a_change_of_its_content(intake: Intake) -> None:
    told = episode("a", rewards=UNKNOWN, failed=True)
    intake.append([told])
    intake.judge({"a": False})
    assert intake.read(["a"])[0].failed is False and intake.outcomes()[0].failed is False
    assert intake.summary()["a"]["failed"] == 0 and intake.append([told]) == {"a": "same"}


def test_a_commit_that_fails_keeps_none(intake: Intake) -> None:
    intake.append([episode("a", rewards=UNKNOWN)])
    with pytest.raises(sqlite3.IntegrityError):
        answers(intake, late(1, 5.0), late(2, math.nan))
    assert intake.outcomes()[0].total == 1.0 and answers(intake, late(1, 6.0)) == ["stored"]


def test_the_store_of_an_earlier_version_is_read_and_goes_on(tmp_path: Path) -> None:
    told = episode("a", rewards=UNKNOWN)
    with Intake(tmp_path) as store:
        store.append([told])
    with closing(sqlite3.connect(tmp_path / FILE)) as file:
        file.executescript("DROP TABLE rewards; DROP TABLE rewards_aside;")
    with closing(open_readonly(tmp_path)) as reader:
        assert same(reader.read(["a"])[0], told)
        with Intake(tmp_path) as store:
            assert answers(store, late(1, 5.0)) == ["stored"]
            assert reader.read(["a"])[0].total == 6.0


@settings(max_examples=60, deadline=None)
@given(
    calls=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 2)), max_size=12),
    stored_at=st.integers(0, 12),
    known=st.lists(st.booleans(), min_size=3, max_size=3),
)
def test_the_first_number_that_is_known_of_a_step_is_the_only_one(
    tmp_path_factory: pytest.TempPathFactory, calls: list[tuple[int, int]], stored_at: int, known: list[bool]
) -> None:
    """Whenever the episode is stored among late rewards, and whichever of its own rewards are known."""
    own = np.where(known, 9.0, math.nan)
    told = episode("a", rewards=own)
    with Intake(tmp_path_factory.mktemp("law")) as store:
        held: dict[int, float] = {}
        for number, (t, reward) in enumerate([*calls, (3, 1)]):
            if number == min(stored_at, len(calls)):
                store.append([told])
                held |= {step: 9.0 for step in range(3) if known[step]}
            is_stored = number >= min(stored_at, len(calls))
            (answer,) = answers(store, late(t, float(reward)), told=None if is_stored or t == 3 else math.nan)
            if t == 3:
                assert answer == "unknown"
                continue
            expected = "stored" if t not in held else "same" if held[t] == reward else "conflict"
            assert answer == expected
            held.setdefault(t, float(reward))
        found = store.read(["a"])[0]
        assert found.rewards.tolist() == pytest.approx([held.get(t, math.nan) for t in range(3)], nan_ok=True)
        assert store.outcomes()[0].total == found.total and store.append([told]) == {"a": "same"}
