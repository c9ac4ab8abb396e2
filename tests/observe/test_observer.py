"""The plain observer: order of start, one alarm a monitor and release, and counts that add up."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from flywheel.config import ObserveConfig
from flywheel.observe.arm import SHARES, budgeted
from flywheel.observe.monitors.outcome import HEAD_START, FailureMonitor, shown
from flywheel.observe.observer import Observer
from flywheel.outcomes import outcome_of
from flywheel.records import Episode, Release
from flywheel.tasks.cartpole import cartpole
from flywheel.testing import SHORT_POLE
from tests.observe.streams import DIGEST, Row, real, rows_of, rows_of_episode, steps_of

CONFIG = ObserveConfig()


def release(digest: str = DIGEST, at: float = 0.0) -> Release:
    return Release(digest=digest, stage="full", share=1.0, previous=None, released_at=at)


def make() -> Observer:
    observer = Observer(cartpole, CONFIG)
    observer.release(release(), 0.05)
    return observer


def feed(observer: Observer, rows: list[Row], now: float) -> list[str]:
    """Send the rows, store and close what is whole; return the ids that were."""
    steps = steps_of(rows)
    observer.add(steps, now)
    return keep(observer, observer.whole(steps), now)


def keep(observer: Observer, episodes: list[Episode], now: float) -> list[str]:
    observer.close(episodes, {e.id: "stored" for e in episodes}, now)
    return [e.id for e in episodes]


@pytest.fixture(scope="module")
def played() -> tuple[list[Episode], list[Episode]]:
    """Episodes of a policy for the short pole, before the change and after it."""
    return real(150, seed=1, gains=SHORT_POLE), real(12, seed=2, gains=SHORT_POLE, length=2.0)


def test_the_change_raises_a_shift_and_then_a_degradation_once_each(played) -> None:
    clean, changed = played
    observer = make()
    for i, episode in enumerate([*clean, *changed]):
        feed(observer, rows_of_episode(episode, start=float(i)), now=float(i + 1))
        observer.tick(now=float(i + 1))
    kinds = {signal.monitor: signal for signal in observer.signals}
    assert set(kinds) >= {"world", "failed"} and len(observer.signals) == len(kinds)
    shift, degradation = kinds["world"], kinds["failed"]
    assert (shift.kind, degradation.kind) == ("shift_detected", "degradation")
    ids = [e.id for e in changed]
    assert shift.since_episode == degradation.since_episode == ids[0]
    assert ids.index(shift.at_episode) <= 7 and shift.digest == DIGEST
    assert shift.value >= shift.threshold == 8 * CONFIG.false_alarm_episodes / (1 - HEAD_START)
    assert shift.evidence["num_since"] == ids.index(shift.at_episode) + 1


def test_arrival_in_any_order_raises_the_same_signals(played) -> None:
    episodes = [*played[0], *played[1]]
    rows = [rows_of_episode(e, start=float(i)) for i, e in enumerate(episodes)]
    in_order, shuffled = make(), make()
    for i, one in enumerate(rows):
        feed(in_order, one, now=500.0 + i)
    in_order.tick(now=1000.0)
    for one in rows:  # all have begun before the first one ends
        feed(shuffled, one[:1], now=500.0)
    order = np.random.default_rng(3).permutation(len(rows))
    raised = []
    for i in order:
        feed(shuffled, rows[i][1:], now=510.0)
        raised += shuffled.tick(now=1000.0)
    assert [(s.monitor, s.at_episode, s.since_episode, s.value) for s in raised] == [
        (s.monitor, s.at_episode, s.since_episode, s.value) for s in in_order.signals
    ]
    assert len(raised) >= 2


def test_observing_whole_episodes_alone_raises_the_same_signals(played) -> None:
    observer = make()
    raised = [s for e in [*played[0], *played[1]] for s in observer.observe(e)]
    assert {s.monitor for s in raised} >= {"world", "failed"}
    assert observer.episodes(DIGEST) == 162 and len(observer.window(20, DIGEST)) == 20


def test_a_new_release_begins_anew_and_may_alarm_again(played) -> None:
    clean, changed = played
    observer = make()
    for e in [*clean, *changed]:
        observer.observe(e)
    before = len(observer.signals)
    observer.release(release(at=50.0), 0.05)
    monitors = observer.status()["monitors"]
    assert {name: m["evidence"] / m["threshold"] for name, m in monitors.items()} == {
        "failed": pytest.approx(HEAD_START), "loss": 0.0, "world": 0.0, "inputs": 0.0
    }  # fmt: skip
    assert observer.observe(dataclasses.replace(clean[0], started_at=49.0)) == []
    assert observer.status()["read"] == 0
    for e in [*clean, *changed]:
        observer.observe(dataclasses.replace(e, started_at=60.0))
    assert len(observer.signals) == 2 * before


def test_an_open_episode_holds_the_place_of_those_that_began_after_it() -> None:
    observer = make()
    first, second = rows_of("first", 5, start=0.0), rows_of("second", 2, start=1.0)
    feed(observer, first[:2], now=1.0)
    assert feed(observer, second, now=2.0) == ["second"]
    observer.tick(now=3.0)
    assert observer.status()["read"] == 0 and observer.status()["waiting"] == 1
    feed(observer, first[2:], now=4.0)
    observer.tick(now=4.0)
    assert observer.status()["read"] == 2 and observer.status()["waiting"] == 0


def test_a_lost_episode_frees_its_place_and_is_read_only_if_it_failed() -> None:
    observer = make()
    feed(observer, rows_of("first", 5, start=0.0)[:3], now=1.0)
    feed(observer, rows_of("second", 2, start=1.0), now=2.0)
    lost = observer.overdue(now=40.0)
    assert [e.end for e in lost] == ["lost"]
    keep(observer, [dataclasses.replace(e, failed=False) for e in lost], now=40.0)
    observer.tick(now=40.0)
    assert observer.status()["read"] == 1
    assert observer.status()["digests"][DIGEST]["lost"] == 1 and observer.episodes(DIGEST) == 2


def test_an_episode_that_has_just_begun_waits_for_earlier_ones_of_other_replicas() -> None:
    observer = make()
    feed(observer, rows_of("a", 2, start=10.0), now=10.19)
    observer.tick(now=10.19)
    assert observer.status()["read"] == 0
    observer.tick(now=10.21)
    assert observer.status()["read"] == 1


def test_closing_twice_and_conflicts_count_once_or_not_at_all() -> None:
    observer = make()
    steps = steps_of(rows_of("a", 2, start=0.0))
    observer.add(steps, 0.0)
    twice = observer.whole(steps)
    keep(observer, twice, 0.0)
    keep(observer, twice, 0.0)
    assert observer.episodes(DIGEST) == 1
    other = steps_of(rows_of("b", 2, start=0.0))
    observer.add(other, 0.0)
    observer.close(observer.whole(other), {"b": "conflict"}, 0.0)
    assert observer.episodes(DIGEST) == 1 and observer.status()["counts"]["quarantined"] == 1


def test_after_a_restart_evidence_and_signals_are_what_they_were(played) -> None:
    episodes = [dataclasses.replace(e, started_at=float(i)) for i, e in enumerate([*played[0], *played[1][:2]])]
    observer, again = make(), make()
    for e in episodes:
        observer.observe(e)
    again.resume({DIGEST: observer.status()["digests"][DIGEST]}, observer.signals)
    for page in (episodes[:70], episodes[50:]):  # whoever gives some twice changes nothing
        again.replay(page, now=1000.0)
    again.caught_up()
    assert again.status() == observer.status()
    rest = [dataclasses.replace(e, started_at=200.0 + i) for i, e in enumerate(played[1][2:])]
    assert [again.observe(e) for e in rest] == [observer.observe(e) for e in rest]
    third = make()
    third.resume({}, again.signals)
    assert all(m["raised"] == (n in {s.monitor for s in again.signals}) for n, m in third.status()["monitors"].items())


def test_after_a_restart_outcomes_whose_steps_are_kept_no_more_count_as_they_did(played) -> None:
    clean = [dataclasses.replace(e, started_at=float(i), failed=i % 30 == 7) for i, e in enumerate(played[0])]
    observer, again = make(), make()
    for e in clean:
        observer.observe(e)
    again.resume({DIGEST: observer.status()["digests"][DIGEST]}, ())
    assert again.replay([e if i % 5 == 0 else outcome_of(e) for i, e in enumerate(clean)], now=1000.0) == []
    again.caught_up()
    assert again.heard(1000) == observer.heard(1000) and again.status()["recent"] == observer.status()["recent"]
    assert again.status()["monitors"]["failed"] == observer.status()["monitors"]["failed"]


def test_other_digests_are_counted_and_not_read() -> None:
    observer = make()
    observer.release(release("other"), 0.05)
    feed(observer, rows_of("a", 2, start=0.0), now=1.0)
    observer.tick(now=1.0)
    assert observer.status()["read"] == 0 and observer.episodes(DIGEST) == 1 and observer.episodes("other") == 0


def test_what_was_heard_is_in_order_of_start_and_only_what_the_monitors_read() -> None:
    observer = Observer(cartpole, CONFIG)
    assert observer.heard(5) == (0, [])
    observer.release(release(at=1.0), 0.05)
    slow, quick = rows_of("slow", 5, start=2.0), rows_of("quick", 2, start=3.0)
    feed(observer, rows_of("too_early", 2, start=0.0), now=1.0)
    feed(observer, slow[:2], now=3.0)
    feed(observer, quick, now=4.0)
    observer.tick(now=5.0)
    assert observer.heard(5) == (0, []), "the slow one began first and holds its place"
    feed(observer, slow[2:], now=6.0)
    lost = rows_of("lost", 5, start=7.0)
    feed(observer, lost[:3], now=7.0)
    keep(observer, [dataclasses.replace(e, failed=False) for e in observer.overdue(now=50.0)], now=50.0)
    observer.tick(now=50.0)
    read, outcomes = observer.heard(5)
    assert (read, [o.id for o in outcomes]) == (2, ["slow", "quick"])
    assert [o.id for o in observer.heard(1)[1]] == ["quick"] and observer.heard(0) == (2, [])
    observer.release(release(at=60.0), 0.05)
    assert observer.heard(5) == (0, [])


def test_the_release_that_is_watched_already_goes_on(played) -> None:
    observer = make()
    for e in played[0][:20]:
        observer.observe(e)
    before = observer.status()
    observer.release(release(), 0.05)
    assert observer.status() == before and observer.heard(3)[0] == 20


def test_one_policys_episodes_are_watched_without_a_release(played) -> None:
    observer = Observer(cartpole).watch(DIGEST)
    raised = [signal for episode in [*played[0], *played[1]] for signal in observer.observe(episode)]
    assert {signal.monitor for signal in raised} >= {"world", "failed"}
    others = Observer(cartpole).watch("another", failure_bound=0.5)
    assert not [signal for episode in played[1] for signal in others.observe(episode)]
    assert others.heard(10) == (0, []) and others.status()["digests"][DIGEST]["episodes"] == len(played[1])


def test_an_open_episode_holds_back_what_began_after_it() -> None:
    observer = make()
    feed(observer, rows_of("early", 3, 10.0)[:2], 11.0)
    feed(observer, rows_of("late", 3, 12.0), 13.0)
    assert observer.settled_until(20.0) == (10.0, "early")
    feed(observer, rows_of("early", 3, 10.0)[2:], 21.0)
    assert observer.settled_until(22.0) == (22.0 - CONFIG.wait_s, "")


# What a policy has shown is what the next one is held to


def served(num: int, failed: int, start: float, digest: str = DIGEST) -> list[Episode]:
    """Episodes of one step, `failed` of them failed, evenly spread."""
    whole = real(1, seed=9)[0]
    short = dataclasses.replace(
        whole, digests=(digest,), observations=whole.observations[:2], raw_actions=whole.raw_actions[:1],
        rewards=np.array([500.0]), logps=whole.logps[:1], failed=False,
    )  # fmt: skip
    every = num // failed if failed else num + 1
    return [
        dataclasses.replace(short, id=f"{digest[:4]}{i}", started_at=start + i, failed=i % every == every - 1)
        for i in range(num)
    ]


def limit_of(observer: Observer) -> float:
    assert observer._arm is not None
    failed = observer._arm.monitors["failed"]
    assert isinstance(failed, FailureMonitor)
    return failed.limit


def test_a_release_is_held_to_what_the_policy_before_has_shown_and_a_worse_one_alarms() -> None:
    observer = make()
    assert limit_of(observer) == 0.05
    for episode in served(1000, 10, 0.0):
        assert not [s for s in observer.observe(episode) if s.monitor == "failed"]
    observer.release(release("e" * 64, at=2000.0), 0.05)
    assert limit_of(observer) == pytest.approx(shown(10, 1000)) and 0.01 < limit_of(observer) < 0.02
    raised = [s for e in served(400, 20, 2000.0, "e" * 64) for s in observer.observe(e) if s.monitor == "failed"]
    assert len(raised) == 1, "5 % is what the gate allows, and far more than was shown"
    assert raised[0].evidence["limit"] == limit_of(observer) and raised[0].evidence["promised"] == 0.05


def test_what_was_shown_is_never_above_the_promise_and_passes_on_through_short_releases() -> None:
    observer = make()
    for episode in served(1000, 10, 0.0):
        observer.observe(episode)
    observer.release(release("e" * 64, at=2000.0), 0.001)
    assert limit_of(observer) == 0.001
    for episode in served(20, 0, 2000.0, "e" * 64):
        observer.observe(episode)
    observer.release(release("f" * 64, at=3000.0), 0.05)
    assert limit_of(observer) == pytest.approx(shown(10, 1000)), "20 episodes show nothing new"


@pytest.mark.parametrize("num", [999, 1000])
def test_too_few_episodes_show_nothing_and_neither_does_an_arm_that_alarmed(num: int) -> None:
    observer = make()
    for episode in served(num, 0, 0.0):
        observer.observe(episode)
    assert observer.shown_to(release("e" * 64, at=2000.0)) == (1.0 if num < 1000 else shown(0, 1000))
    for episode in served(30, 30, 1500.0):
        observer.observe(episode)
    assert "failed" in {s.monitor for s in observer.signals}
    assert observer.shown_to(release("e" * 64, at=2000.0)) == 1.0
    assert observer.shown_to(release()) == 1.0, "what the present one was held to"


def test_all_monitors_together_keep_the_budget() -> None:
    for names in (["failed", "loss", "world", "inputs"], ["failed", "world", "inputs"]):
        thresholds = budgeted(10_000.0, names)
        rate = sum(1.0 / threshold for threshold in thresholds.values())
        assert rate == pytest.approx((1 - HEAD_START) / 10_000.0), "and the head start takes the rest"
    assert budgeted(10_000.0, list(SHARES))["failed"] == pytest.approx(10_000 * 20 / 15 / (1 - HEAD_START))
