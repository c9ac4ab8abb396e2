"""A challenger goes from shadow to full on evidence only, whatever comes in first, and never both ways."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel.config import DeployConfig
from flywheel.deploy.canary import OPEN, STEEP, Canary, Ramp, State
from flywheel.errors import UsageError
from flywheel.outcomes import Outcome
from flywheel.records import End, Signal, SignalKind

OLD, NEW = "old", "new"
SOON = DeployConfig(
    shadow_decisions=0, ramp=(0.1, 0.3, 0.5), ramp_first=3, canary_margin=0.2, promote_error=0.2, canary_episodes=40,
    settle_s=0.0, canary_timeout_s=1e6, split_error=1e-300,
)  # fmt: skip
"""Ends of every kind come within some dozens of outcomes, whatever share of them is the challenger's."""
NOW = 10_000.0


def outcome(at: float, digest: str, failed: bool = False, lost: bool = False) -> Outcome:
    """Return an episode that began at a time and is over."""
    end: End = "lost" if lost else "terminated" if failed else "truncated"
    return Outcome(
        started_at=at, id=f"e{at:g}", digest=digest, end=end, failed=failed, total=1.0, num_steps=1, ended_at=at + 1
    )


def alarm(kind: SignalKind = "degradation", released_at: float = 0.0, digest: str = OLD) -> Signal:
    """Return an alarm about a release of the champion."""
    return Signal(
        kind=kind, monitor="world" if kind == "shift_detected" else "failed", digest=digest, value=2.0, threshold=1.0,
        since_episode="a", at_episode="b", evidence={"released_at": released_at}, at=NOW,
    )  # fmt: skip


@st.composite
def streams(draw: st.DrawFn) -> list[Outcome]:
    """Draw outcomes of both arms (and of a third policy), one a second, at rates of any kind."""
    rng, found = random.Random(draw(st.integers(0, 2**32))), []
    rates = {OLD: draw(st.sampled_from([0.0, 0.1, 0.5])), NEW: draw(st.sampled_from([0.0, 0.1, 0.9]))}
    lost = {OLD: 0.05, NEW: draw(st.sampled_from([0.0, 0.05, 0.6]))}
    for second in range(draw(st.integers(0, 150))):
        digest = rng.choices([OLD, NEW, "another"], [50, 45, 5])[0]
        failed = rng.random() < rates.get(digest, 0.5)
        found.append(outcome(second + 1.0, digest, failed, rng.random() < lost.get(digest, 0.0)))
    return found


def heard(outcomes: Iterable[Outcome], config: DeployConfig = SOON, urgent: bool = False) -> Canary:
    """Return the canary that has heard all of these at once."""
    ramp = Ramp(config)
    return ramp.hear(ramp.begin(NEW, OLD, 0.0, urgent=urgent), outcomes, NOW)


@given(streams(), st.randoms(use_true_random=False))
def test_only_the_order_of_start_counts_not_that_of_arrival(stream: list[Outcome], rng: random.Random) -> None:
    ramp, known = Ramp(SOON), list(stream)
    canary = ramp.begin(NEW, OLD, 0.0)
    while known:  # what is known up to some start comes in any order, some of it again
        cut = rng.randint(1, len(known))
        some, known = known[:cut], known[cut:]
        some = some + stream[: rng.randint(0, 3)]
        rng.shuffle(some)
        canary = ramp.hear(canary, some, NOW)
    assert canary == heard(stream)


def do(ramp: Ramp, canary: Canary, what: int, batch: list[Outcome], now: float) -> Canary:
    """Return the canary after an event of one kind or another."""
    events: list[Callable[[], Canary]] = [
        lambda: ramp.hear(canary, batch, now),
        lambda: ramp.shadowed(canary, 1, 1, now),
        lambda: ramp.tick(canary, now),
        lambda: ramp.approve(canary, True, now),
        lambda: ramp.approve(canary, False, now),
        lambda: ramp.broke(canary, "it crashed", now),
        lambda: ramp.drop(canary, "I say so", now),
        lambda: ramp.replace(canary, "third", now),
        lambda: ramp.freeze(canary, "I want to look", now),
        lambda: ramp.alarmed(canary, [alarm()], now),
    ]
    return events[what]()


@given(
    streams(),
    st.lists(st.tuples(st.sampled_from([0] * 9 + list(range(10))), st.integers(1, 30)), max_size=30),
    st.sampled_from(["rollback", "freeze"]),
    st.sampled_from(["", "module:function"]),
)
def test_stages_only_go_forward_and_an_end_is_an_end(
    stream: list[Outcome], events: list[tuple[int, int]], on_fail: Any, approve: str
) -> None:
    ramp = Ramp(dataclasses.replace(SOON, shadow_decisions=2, on_fail=on_fail, approve=approve))
    canary, now = ramp.begin(NEW, OLD, 0.0), 0.0
    order: dict[State, int] = {"shadow": 0, "canary": 1, "frozen": 2}
    for what, size in events:
        now += size
        before, canary = canary, do(ramp, canary, what, [o for o in stream if o.started_at <= now], now)
        assert order.get(canary.state, 3) >= order.get(before.state, 3)
        if before.is_over:
            assert canary == before, "an end is an end"
        elif canary.state in ("shadow", "canary"):
            assert canary.share >= before.share and canary.rung >= before.rung
            assert [share for _, share in canary.shares] == sorted({share for _, share in canary.shares})
        if before.state == "frozen":
            assert canary.state in ("frozen", "rolled_back", "replaced")
            assert canary.frozen == before.frozen
        assert (canary.state == "frozen") <= (canary.frozen is not None)
        if canary.state in ("promoted", "rolled_back"):
            assert canary.share == float(canary.state == "promoted"), "never both"
        assert (canary.release is None) == (canary.state not in ("shadow", "canary", "promoted"))


@given(streams(), st.booleans())
def test_nothing_is_promoted_or_rolled_back_without_evidence(stream: list[Outcome], urgent: bool) -> None:
    canary = heard(stream, urgent=urgent)
    is_good, is_worse = canary.test.is_good, canary.test.is_worse
    if canary.state == "promoted":
        assert is_good >= -math.log(SOON.promote_error) and is_worse < -math.log(SOON.rollback_error)
        assert canary.test.num[1] >= SOON.ramp_first and canary.rung == 2
    assert (canary.state == "rolled_back") == (is_worse >= -math.log(SOON.rollback_error))
    if canary.state == "timed_out":
        assert canary.test.num[1] == SOON.canary_episodes


def test_both_at_once_is_a_rollback() -> None:
    config = dataclasses.replace(SOON, rollback_error=0.99, promote_error=0.99, canary_margin=0.5)
    canary = heard([outcome(t, NEW) for t in range(1, 30)] + [outcome(30.0, NEW, failed=True)], config)
    assert canary.state == "promoted"
    config = dataclasses.replace(config, ramp_first=30)
    canary = heard([outcome(t, NEW) for t in range(1, 30)] + [outcome(30.0, NEW, failed=True)], config)
    assert canary.state == "rolled_back" and canary.test.is_good > 0


@given(st.lists(st.floats(0.0, 999.0), max_size=5))
def test_without_data_it_holds_and_when_time_is_up_the_old_one_stays(times: list[float]) -> None:
    for config in (DeployConfig(canary_timeout_s=1000.0), DeployConfig(canary_timeout_s=1000.0, shadow_decisions=0)):
        ramp = Ramp(config)
        canary = begun = ramp.begin(NEW, OLD, 0.0)
        for now in sorted(times):
            canary = ramp.tick(ramp.hear(canary, [outcome(now, "another")], now), now)
            assert dataclasses.replace(canary, read_to=begun.read_to) == begun
        canary = ramp.tick(canary, 1000.0)
        assert (canary.state, canary.share, canary.release) == ("timed_out", 0.0, None)


def test_a_new_challenger_begins_from_nothing() -> None:
    ramp = Ramp(SOON)
    canary = ramp.hear(ramp.begin(NEW, OLD, 0.0), [outcome(t, NEW) for t in range(1, 4)], NOW)
    assert canary.test.num == (0, 3) and canary.share == 0.3
    assert ramp.replace(canary, "third", NOW).state == "replaced"
    again = ramp.begin("third", OLD, NOW)
    assert again.test.num == (0, 0) and again.share == SOON.ramp[0] and again.test.is_good == pytest.approx(0.0)
    with pytest.raises(UsageError, match="in service already"):
        ramp.begin(OLD, OLD, NOW)


def test_the_shadow_ends_after_so_many_good_decisions() -> None:
    ramp = Ramp(DeployConfig(shadow_decisions=10))
    canary = ramp.begin(NEW, OLD, 0.0)
    release = canary.release
    assert release is not None and (release.stage, release.share, release.previous) == ("shadow", 0.0, OLD)
    canary = ramp.shadowed(canary, 9, 4, 1.0)
    assert canary.state == "shadow"
    release = ramp.shadowed(canary, 1, 0, 2.0).release
    assert release is not None and (release.stage, release.share, release.released_at) == ("canary", 0.01, 2.0)


def test_where_the_champion_is_condemned_it_begins_at_half_and_is_promoted_soon() -> None:
    ramp = Ramp()
    canary = ramp.begin(NEW, OLD, 0.0, urgent=True)
    assert (canary.state, canary.share) == ("canary", 0.5)
    rows = [outcome(10.0 + t, (OLD, NEW)[t % 2], failed=t % 2 == 0) for t in range(120)]
    canary = ramp.hear(canary, rows, NOW)
    assert canary.state == "promoted" and sum(canary.test.num) <= 60


def test_where_the_champion_is_condemned_one_that_is_no_worse_by_ten_points_is_promoted_soon() -> None:
    rows = [outcome(10.0 + t, (OLD, NEW)[t % 2]) for t in range(120)]
    ramp = Ramp()
    canary = ramp.hear(ramp.begin(NEW, OLD, 0.0, urgent=True), rows, NOW)
    assert canary.state == "promoted" and canary.reason.startswith("it fails no oftener by 10.0%: 0 of ")
    quiet = Ramp(dataclasses.replace(DeployConfig(), shadow_decisions=0, ramp=(0.5,)))
    assert quiet.hear(quiet.begin(NEW, OLD, 0.0), rows, NOW).state == "canary", "a quiet one has to show more"


def test_most_of_the_evidence_lifts_it_to_the_last_share() -> None:
    ramp, now = Ramp(dataclasses.replace(SOON, canary_margin=0.1)), 0.0
    canary = ramp.begin(NEW, OLD, 0.0)
    while canary.rung < 2:
        now += 1.0
        before, canary = canary, ramp.hear(canary, [outcome(now, NEW)], now)
    assert before.test.is_good < -math.log(SOON.promote_error) * 0.5**STEEP <= canary.test.is_good
    assert canary.share == 0.5 and canary.shares[-1] == (now, 0.5)


@pytest.mark.parametrize(("on_fail", "state"), [("rollback", "rolled_back"), ("freeze", "frozen")])
def test_a_challenger_that_fails_or_breaks_is_taken_out(on_fail: Any, state: str) -> None:
    config = dataclasses.replace(SOON, on_fail=on_fail)
    worse = heard([outcome(t, NEW, failed=True) for t in range(1, 40)], config)
    assert worse.state == state and worse.share == 0.0 and "it fails oftener" in worse.reason
    ramp = Ramp(config)
    broken = ramp.broke(ramp.begin(NEW, OLD, 0.0), "it answered NaN", 1.0)
    assert (broken.state, broken.reason, broken.is_over) == (state, "it answered NaN", state not in OPEN)
    assert ramp.tick(broken, 1e9) == broken, "who is frozen waits for a person"
    assert ramp.drop(broken, "I say so", 2.0).state == "rolled_back"


@pytest.mark.parametrize("shadow", [0, 5])
def test_a_person_may_freeze_it_and_then_only_a_person_or_another_challenger_moves_it(shadow: int) -> None:
    ramp = Ramp(dataclasses.replace(SOON, shadow_decisions=shadow))
    canary = ramp.begin(NEW, OLD, 0.0)
    frozen = ramp.decide(canary, "freeze", "I want to look", 1.0)
    assert (frozen.state, frozen.share, frozen.release) == ("frozen", 0.0, None)
    assert (frozen.reason, frozen.changed_at, frozen.frozen) == ("I want to look", 1.0, (1.0, "I want to look"))
    rows = [outcome(t, NEW, failed=True) for t in range(1, 60)]
    for what in range(6):  # outcomes, decisions, time, a word on its approval, a crash
        assert do(ramp, frozen, what, rows, 1e7) == frozen
    assert ramp.decide(frozen, "freeze", "again", 2.0) == ramp.decide(frozen, "approve", "?", 2.0) == frozen
    dropped = ramp.decide(frozen, "drop", "it hums", 2.0)
    assert (dropped.state, dropped.reason, dropped.frozen) == ("rolled_back", "it hums", frozen.frozen)
    assert ramp.freeze(dropped, "too late", 3.0) == dropped
    assert ramp.replace(frozen, "third", 2.0).state == "replaced"


def test_a_proven_challenger_waits_for_approval() -> None:
    ramp = Ramp(dataclasses.replace(SOON, approve="module:function"))
    rows = [outcome(t, NEW) for t in range(1, 60)]
    canary = ramp.hear(ramp.begin(NEW, OLD, 0.0), rows, NOW)
    assert canary.state == "canary" and canary.is_proven and canary.share == 0.5
    assert ramp.approve(canary, True, NOW).state == "promoted"
    assert ramp.approve(canary, False, NOW).state == "stopped"
    assert ramp.decide(canary, "approve", "it is fine", NOW).reason == "it was approved: it is fine"
    assert ramp.decide(canary, "freeze", "not on a Friday", NOW).state == "frozen"
    assert ramp.tick(canary, 1e7).reason == "nobody approved it after 10,000,000 s"
    worse = ramp.hear(canary, [outcome(100.0 + t, NEW, failed=True) for t in range(90)], NOW)
    assert worse.state == "rolled_back", "it is watched as long as it waits"
    early = ramp.hear(ramp.begin(NEW, OLD, 0.0), rows[:2], NOW)
    assert ramp.approve(early, True, NOW) == early


def test_unequal_shares_of_lost_episodes_stop_it() -> None:
    for arm, other in ((NEW, OLD), (OLD, NEW)):
        rows = [outcome(t, arm if t % 2 else other, lost=bool(t % 2)) for t in range(1, 60)]
        canary = heard(rows, dataclasses.replace(DeployConfig(settle_s=0.0)), urgent=True)
        assert canary.state == "stopped" and "lost oftener" in canary.reason
    alike = [outcome(t, NEW if t % 4 < 2 else OLD, lost=bool(t % 2)) for t in range(1, 60)]
    assert heard(alike, dataclasses.replace(DeployConfig(settle_s=0.0)), urgent=True).state == "canary"


@pytest.mark.parametrize("kind", ["shift_detected", "degradation"])
@pytest.mark.parametrize("shadow", [0, 5])
def test_an_alarm_ends_a_canary_that_began_in_quiet_times(kind: SignalKind, shadow: int) -> None:
    ramp = Ramp(dataclasses.replace(SOON, shadow_decisions=shadow))
    canary = ramp.begin(NEW, OLD, 1.0, alarmed=False)
    assert ramp.alarmed(canary, [], 2.0) == canary
    ended = ramp.alarmed(canary, [alarm(kind)], 2.0)
    assert (ended.state, ended.share, ended.changed_at) == ("stopped", 0.0, 2.0)
    assert ended.reason.startswith(f"an alarm about the champion came ({kind} by the ")
    frozen = ramp.freeze(canary, "wait", 2.0)
    assert ramp.alarmed(frozen, [alarm(kind)], 3.0) == frozen, "a person has it"


@pytest.mark.parametrize("signals", [[], [alarm("shift_detected")]])
def test_one_that_began_where_nobody_could_look_is_what_the_first_look_finds(signals: list[Signal]) -> None:
    ramp = Ramp(dataclasses.replace(SOON, shadow_decisions=5))
    begun = ramp.begin(NEW, OLD, 1.0)
    canary = ramp.alarmed(begun, signals, 2.0)
    assert canary == dataclasses.replace(begun, is_alarmed=bool(signals))
    later = ramp.alarmed(canary, [*signals, alarm()], 3.0)
    assert (later.state, later.is_urgent) == (("shadow", True) if signals else ("stopped", False))


def test_one_that_answers_an_alarm_goes_on_when_another_comes_and_a_degradation_makes_it_urgent() -> None:
    ramp = Ramp()
    canary = ramp.begin(NEW, OLD, 1.0, alarmed=True)
    assert (canary.state, canary.share, canary.is_urgent) == ("canary", 0.5, False)
    assert ramp.promotes_at(canary) == (0.02, 0.005), "that the world is another condemns nobody"
    shift = alarm("shift_detected")
    assert ramp.alarmed(canary, [shift], 2.0) == canary
    urgent = ramp.alarmed(canary, [shift, alarm()], 3.0)
    assert urgent == dataclasses.replace(canary, is_urgent=True) and ramp.promotes_at(urgent) == (0.1, 0.05)
    assert ramp.alarmed(urgent, [shift, alarm()], 4.0) == urgent
    begun = ramp.begin(NEW, OLD, 1.0, urgent=True)
    assert ramp.alarmed(begun, [alarm(), shift], 2.0) == begun


@given(streams(), st.booleans(), st.integers(0, 150))
def test_another_configuration_after_a_restart_moves_no_bar(stream: list[Outcome], urgent: bool, cut: int) -> None:
    canary = Ramp(SOON).begin(NEW, OLD, 0.0, urgent=urgent)
    canary = Ramp(SOON).hear(canary, stream[:cut], NOW)
    other = dataclasses.replace(
        SOON, ramp=(0.5,), ramp_first=1, canary_margin=0.5, incident_margin=0.5, rollback_error=0.9, promote_error=0.9,
        lost_error=0.9, split_error=0.9,
    )  # fmt: skip
    assert Ramp(other).hear(canary, stream, NOW) == Ramp(SOON).hear(canary, stream, NOW)


@given(streams(), st.integers(-1, 2))
def test_one_from_before_courses_were_kept_goes_by_the_configuration_whatever_it_is(
    stream: list[Outcome], rung: int
) -> None:
    shares = tuple((0.0, share) for share in SOON.ramp[: rung + 1])
    state: State = "canary" if shares else "shadow"
    canary = Canary(challenger=NEW, champion=OLD, state=state, begun_at=0.0, shares=shares, rung=rung)
    ramp = Ramp(dataclasses.replace(SOON, ramp=(0.5,)))
    assert ramp.tick(ramp.hear(canary, stream, NOW), 1e7).is_over


def split(true: float, num: int, rng: random.Random, **config: Any) -> Canary:
    """Return a canary after episodes of which a true share was the challenger's, whatever share it was given."""
    ramp = Ramp(DeployConfig(shadow_decisions=0, canary_episodes=10**6, **config))
    canary, at = ramp.begin(NEW, OLD, 0.0), 0.0
    for _ in range(num):
        at += 0.1
        share = true or canary.share
        canary = ramp.hear(canary, [outcome(at, NEW if rng.random() < share else OLD, lost=rng.random() < 0.05)], at)
    return canary


@pytest.mark.parametrize("true", [0.25, 0.75])
def test_a_share_that_is_not_the_one_that_was_given_stops_it(true: float) -> None:
    canary = split(true, 400, random.Random(7), ramp=(0.5,), promote_error=1e-9)
    assert canary.state == "stopped" and sum(canary.test.num) < 250
    assert canary.reason.startswith("its share of episodes isn't the one that it was given: ")


def test_an_honest_share_stops_nothing_through_all_its_changes() -> None:
    rng = random.Random(11)
    found = [split(0.0, 1500, rng, ramp=(0.1, 0.3, 0.5), settle_s=2.0) for _ in range(12)]
    assert not any("share" in canary.reason for canary in found)
    assert {len(canary.shares) for canary in found} & {2, 3}, "they change"


def test_a_lost_episode_that_had_failed_is_known() -> None:
    canary = heard([outcome(1.0, NEW, failed=True, lost=True), outcome(2.0, NEW, lost=True)])
    assert (canary.test.num, canary.test.num_failed, canary.test.num_lost) == ((0, 1), (0, 1), (0, 1))


def test_episodes_from_before_and_from_the_change_of_a_share_count_for_nothing() -> None:
    config = dataclasses.replace(SOON, settle_s=2.0)
    ramp = Ramp(config)
    canary = ramp.begin(NEW, OLD, 10.0)
    rows = [outcome(t, NEW) for t in (9.0, 10.5, 11.9, 12.0, 13.0, 14.0)]
    canary = ramp.hear(canary, rows, 20.0)
    assert canary.test.num == (0, 3) and canary.rung == 1
    canary = ramp.hear(canary, [outcome(19.5, NEW), outcome(20.5, NEW), outcome(22.5, NEW)], 23.0)
    assert canary.test.num == (0, 5)
    assert canary.share_at(19.5, 2.0) == 0.1 and canary.share_at(20.5, 2.0) is None
    assert canary.share_at(22.5, 2.0) == 0.3


def test_a_reason_to_think_that_it_is_worse_only_ever_slows_it_down() -> None:
    ramp = Ramp(dataclasses.replace(SOON, shadow_decisions=5))
    for how in ({"alarmed": True}, {"urgent": True}):
        fast, slow = ramp.begin(NEW, OLD, 1.0, **how), ramp.begin(NEW, OLD, 1.0, slowly=True, **how)
        assert (fast.state, fast.share) == ("canary", SOON.ramp[-1])
        assert (slow.state, slow.share, slow.is_alarmed, slow.is_urgent) == ("shadow", 0.0, True, fast.is_urgent)
        assert ramp.shadowed(slow, 5, 5, 2.0).share == SOON.ramp[0]
    assert ramp.begin(NEW, OLD, 1.0, alarmed=False, slowly=True) == ramp.begin(NEW, OLD, 1.0, alarmed=False)
