"""Late rewards and whole episodes in the plain observer: each is counted once, and read when its rewards are known."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from flywheel.config import ObserveConfig
from flywheel.observe.observer import Observer
from flywheel.outcomes import outcome_of
from flywheel.records import Episode
from flywheel.tasks.cartpole import cartpole
from flywheel.testing import SHORT_POLE
from tests.observe.streams import DIGEST, real, rows_of, steps_of
from tests.observe.test_observer import feed, keep, make, release

WINDOW = ObserveConfig(reward_window_s=10.0)


def waiting() -> Observer:
    """Return an observer that waits for rewards."""
    observer = Observer(cartpole, WINDOW)
    observer.release(release(), 0.05)
    return observer


def lacking(id_: str, at: float, *unknown: int) -> Episode:
    """Return a whole episode that lacks some rewards."""
    (episode,) = real(1, seed=5)
    rewards = episode.rewards.copy()
    rewards[list(unknown)] = math.nan
    return dataclasses.replace(episode, id=id_, rewards=rewards, started_at=at, ended_at=at + 1.0)


def upload(observer: Observer, episodes: list[Episode], now: float, **answers: str) -> list[Episode]:
    """Upload episodes of a client that said so when they began."""
    observer.begun({episode.id: episode.started_at for episode in episodes}, now)
    return observer.uploaded(episodes, {episode.id: "stored" for episode in episodes} | answers, now)


def with_reward(episode: Episode, reward: float) -> Episode:
    return dataclasses.replace(episode, rewards=np.nan_to_num(episode.rewards, nan=reward))


def test_the_reward_of_an_open_step_is_what_came_with_the_next_row() -> None:
    observer, rows = make(), rows_of("a", 3, start=0.0)
    observer.add(steps_of(rows[:2]), 1.0)
    assert observer.reward_of("a", 0) == rows[1][4]
    told = observer.reward_of("a", 1)
    assert told is not None and math.isnan(told), "it was acted, and nobody said what for"
    assert observer.reward_of("a", 2) is None and observer.reward_of("b", 0) is None
    observer.add(steps_of(rows[2:]), 1.0)
    assert [observer.reward_of("a", t) for t in range(4)] == [rows[1][4], rows[2][4], rows[3][4], None]
    assert observer.is_open("a")
    keep(observer, observer.whole(steps_of(rows)), 2.0)
    assert observer.reward_of("a", 0) is None and not observer.is_open("a")


def test_an_outcome_waits_for_its_rewards_and_holds_up_those_that_began_after_it() -> None:
    observer, late, known = waiting(), lacking("late", 1.0, 3), lacking("known", 2.0)
    upload(observer, [late, known], now=5.0)
    observer.tick(now=6.0)
    assert observer.status()["read"] == 0 and observer.settled_until(6.0) == (1.0, "late")
    observer.rewarded(with_reward(late, 7.0), outcome_of(late))
    observer.tick(now=7.0)
    read, heard = observer.heard(9)
    assert (read, [(o.id, o.total) for o in heard]) == (2, [("late", late.total + 7.0), ("known", known.total)])
    assert observer.settled_until(7.0) == (7.0 - WINDOW.lease_wait_s, "")


def test_what_never_comes_is_waited_for_as_long_as_the_window_is() -> None:
    observer, late = waiting(), lacking("late", 1.0, 3)
    upload(observer, [late], now=5.0)
    observer.tick(now=14.9)
    assert observer.status()["read"] == 0
    observer.tick(now=15.0)
    assert observer.heard(1)[1][0].total == late.total
    observer.rewarded(with_reward(late, 7.0), outcome_of(late))
    assert observer.heard(1)[1][0].total == late.total, "what was read stays as it was read"
    assert observer.status()["digests"][DIGEST]["total"] == late.total + 7.0, "and what is counted is what is known"


def test_of_what_waits_only_what_a_monitor_will_read_is_kept_whole() -> None:
    observer, mine = waiting(), lacking("mine", 1.0, 3)
    theirs = dataclasses.replace(mine, id="theirs", digests=("e" * 64,) * mine.num_steps, started_at=0.5)
    upload(observer, [mine, theirs], now=5.0)
    first = observer.order.waiting.pop()
    assert (first.outcome.id, first.given) == ("theirs", None)
    given = observer.order.waiting.pop().given
    assert given is not None and given.episode is mine


def test_rewards_that_come_in_any_order_leave_the_order_of_start() -> None:
    observer = waiting()
    late = [lacking(f"e{i:02d}", float(i), 3) for i in range(20)]
    upload(observer, late[::-1], now=20.0)
    for i in np.random.default_rng(0).permutation(20):
        observer.rewarded(with_reward(late[i], float(i)), outcome_of(late[i]))
    observer.tick(now=25.0)
    assert [(o.id, o.total - late[0].total) for o in observer.heard(99)[1]] == [
        (f"e{i:02d}", float(i)) for i in range(20)
    ]


def test_without_a_window_nothing_is_waited_for() -> None:
    observer = make()
    upload(observer, [lacking("late", 1.0, 3)], now=5.0)
    observer.tick(now=5.0)
    assert observer.status()["read"] == 1


def test_a_late_reward_changes_what_is_counted_once_however_often_it_is_told() -> None:
    observer, late = waiting(), lacking("late", 1.0, 3)
    failed = dataclasses.replace(late, failed=True)
    upload(observer, [failed, lacking("other", 2.0)], now=5.0)
    better = dataclasses.replace(with_reward(late, 7.0), failed=False)
    for _ in range(3):
        observer.rewarded(better, outcome_of(failed))
    counted = observer.status()["digests"][DIGEST]
    assert (counted["episodes"], counted["failed"]) == (2, 0)
    assert counted["total"] == better.total + lacking("other", 2.0).total
    assert observer.window(9)[0].total == better.total


def test_a_whole_episode_is_counted_once_and_one_with_other_content_never() -> None:
    observer, one, two = make(), lacking("one", 1.0), lacking("two", 2.0)
    assert upload(observer, [one, two], now=5.0, two="conflict") == [one]
    assert upload(observer, [one], now=6.0, one="same") == []
    counts = observer.status()["counts"]
    assert (observer.episodes(DIGEST), counts["uploaded"], counts["quarantined"], counts["whole"]) == (1, 1, 1, 0)
    observer.tick(now=7.0)
    assert observer.heard(9)[0] == 1


def test_whole_episodes_raise_the_signals_that_answered_ones_do() -> None:
    episodes = [
        dataclasses.replace(e, started_at=float(i))
        for i, e in enumerate([*real(150, seed=1, gains=SHORT_POLE), *real(12, seed=2, gains=SHORT_POLE, length=2.0)])
    ]
    observer, alone = make(), make()
    observer.begun({episode.id: episode.started_at for episode in episodes}, now=200.0)
    for episode in reversed(episodes):
        observer.uploaded(observer.judge([episode]), {episode.id: "stored"}, now=200.0)
    raised = observer.tick(now=400.0)
    told = [signal for episode in episodes for signal in alone.observe(alone.judge([episode])[0])]
    assert [(s.monitor, s.at_episode, s.value) for s in raised] == [(s.monitor, s.at_episode, s.value) for s in told]
    assert "world" in {signal.monitor for signal in raised}


def test_an_answered_episode_waits_for_its_rewards_as_well() -> None:
    observer = waiting()
    rows = [(*row[:4], math.nan if row[1] == 2 else row[4], *row[5:]) for row in rows_of("a", 3, start=0.0)]
    assert feed(observer, rows, now=1.0) == ["a"]
    observer.tick(now=2.0)
    assert observer.status()["read"] == 0 and observer.status()["waiting"] == 1
    observer.tick(now=11.0)
    assert observer.status()["read"] == 1
