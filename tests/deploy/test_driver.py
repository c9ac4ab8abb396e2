"""The driver moves a challenger by what the observer and people say, and waits for neither longer than it may."""

from __future__ import annotations

import asyncio
import dataclasses
import threading

import pytest

from flywheel.deploy.admission import Tried
from flywheel.deploy.canary import Canary, Ramp
from flywheel.deploy.driver import Clock, Driver
from flywheel.deploy.links import AwayError
from flywheel.errors import Refused
from flywheel.outcomes import Outcome
from flywheel.preflight import PERSON
from flywheel.records import Release, Signal
from tests.deploy.conftest import NOW, World
from tests.deploy.test_canary import alarm, outcome
from tests.deploy.test_challenges import CONFIG, trying


class Seen:
    """The observer, as the registry sees it."""

    def __init__(self, *signals: Signal) -> None:
        self.raised, self.known, self.watched = signals, list[Outcome](), list[Release]()
        self.asked: list[tuple[tuple[str, ...], tuple[float, str]]] = []
        self.away = self.hangs = False

    async def _reach(self) -> None:
        if self.away:
            raise AwayError("gone")
        if self.hangs:
            await asyncio.Event().wait()

    async def outcomes(self, digests: tuple[str, ...], after: tuple[float, str]) -> list[Outcome]:
        await self._reach()
        self.asked.append((tuple(digests), after))
        return [o for o in self.known if (o.started_at, o.id) > after and o.digest in digests]

    async def signals(self) -> tuple[Signal, ...]:
        await self._reach()
        return self.raised

    async def release(self, release: Release, failure_bound: float) -> None:
        await self._reach()
        self.watched.append(release)


def at(now: float) -> Clock:
    """Return a clock that stands."""
    return lambda: now


async def test_the_driver_moves_it_from_the_shadow_to_full(world: World) -> None:
    world.served(1.0)
    new, seen = world.judged(2.0), Seen()
    config = dataclasses.replace(CONFIG, ramp=(0.5,), ramp_first=1)
    driver = Driver(world.registry, config, 0.05)
    canary = await driver.challenge(new.digest, seen, at(NOW + 1))
    assert canary.state == "shadow" and await driver.step(seen, at(NOW + 2)) is None
    assert [r.digest for r in seen.watched] == [canary.champion] and seen.asked == []
    driver.tried(Tried(digest="another", num_shadowed=99), NOW + 2)
    driver.tried(Tried(digest=new.digest, num_shadowed=10, num_same=9), NOW + 3)
    assert await driver.step(seen, at(NOW + 4)) is None, "no data: it holds"
    both = (canary.champion, canary.challenger)
    assert seen.asked[-1] == (both, (NOW + 1, ""))
    seen.known = [outcome(NOW + 5 + t, both[t % 2], failed=t % 2 == 0) for t in range(200)]
    release = await driver.step(seen, at(NOW + 300))
    assert release is not None and release.digest == new.digest and seen.watched[-1] == release
    assert await driver.step(seen, at(NOW + 301)) is None


async def test_an_open_incident_of_the_champion_lets_it_begin_at_half(world: World) -> None:
    world.served(1.0)
    new, driver = world.judged(2.0), Driver(world.registry, CONFIG, 0.05)
    healed = alarm(released_at=NOW - 5)
    assert (await driver.challenge(new.digest, Seen(healed), at(NOW + 1))).state == "shadow"
    third = world.judged(3.0)
    canary = await driver.challenge(third.digest, Seen(healed, alarm(released_at=NOW)), at(NOW + 2))
    assert (canary.state, canary.share) == ("canary", 0.5)


async def test_a_crash_in_a_replica_rolls_it_back_at_once(world: World) -> None:
    canary = trying(world)
    driver = Driver(world.registry, CONFIG, 0.05)
    assert driver.tried(Tried(digest=canary.challenger, trouble="it crashed"), NOW + 2) is None
    assert canary.challenger in world.registry.condemned()
    assert driver.tried(Tried(digest=canary.challenger, trouble="it crashed"), NOW + 3) is None, "told twice"


WORDS: list[bool | None] = []


def says(canary: Canary) -> bool | None:
    """Give the next word, as a person would."""
    assert canary.is_proven
    if not WORDS:
        raise RuntimeError("nobody is there")
    return WORDS.pop(0)


async def test_a_person_is_asked_until_there_is_a_word(world: World) -> None:
    canary = trying(world, urgent=True)
    config = dataclasses.replace(CONFIG, approve=f"{__name__}:says")
    driver, seen = Driver(world.registry, config, 0.05), Seen()
    both = (canary.champion, canary.challenger)
    seen.known = [outcome(NOW + 2 + t, both[t % 2], failed=t % 2 == 0) for t in range(200)]
    for word in ([], [None]):
        WORDS[:] = word
        for _ in range(3):
            assert await driver.step(seen, at(NOW + 300)) is None
            await heard(driver)
        found = world.registry.canary()
        assert found is not None and found.is_proven and not found.is_over and not WORDS
    WORDS[:] = [True]
    releases = []
    for _ in range(3):
        releases.append(await driver.step(seen, at(NOW + 301)))
        await heard(driver)
    (release,) = filter(None, releases)
    assert release.digest == canary.challenger


async def heard(driver: Driver) -> None:
    """Wait until the function has said something, if it is asked."""
    if driver._asked is not None:
        await driver._asked[1]


async def test_a_person_who_says_nothing_keeps_nobody_from_giving_it_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    never = threading.Event()
    monkeypatch.setitem(globals(), "waits", lambda canary: never.wait(60))
    config = dataclasses.replace(CONFIG, approve=f"{__name__}:waits")
    canary = trying(world, urgent=True)
    driver, seen = Driver(world.registry, config, 0.05), Seen()
    both = (canary.champion, canary.challenger)
    try:
        async with asyncio.timeout(10):
            seen.known = [outcome(NOW + 2 + t, both[t % 2], failed=t % 2 == 0) for t in range(200)]
            for _ in range(3):
                assert await driver.step(seen, at(NOW + 300)) is None
            found = world.registry.canary()
            assert found is not None and found.is_proven and driver._asked is not None
            await driver.step(seen, at(NOW + 1e6))
            found = world.registry.canary()
            assert found is not None and found.reason.startswith("nobody approved it after")
    finally:
        never.set()


@pytest.mark.parametrize("how", ["away", "hangs"])
async def test_without_the_observer_time_still_ends_it_and_its_absence_is_told_once(
    world: World, how: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("flywheel.deploy.links.AWAY_S", 0.01)
    canary, seen, driver = trying(world, urgent=True), Seen(), Driver(world.registry, CONFIG, 0.05)
    setattr(seen, how, True)
    for second in range(3):
        assert await driver.step(seen, at(NOW + 2 + second)) is None
    assert world.registry.canary() == canary and caplog.text.count("The observer is away") == 1
    assert await driver.step(seen, at(NOW + 1e6)) is None
    found = world.registry.canary()
    assert found is not None and found.state == "timed_out" and world.registry.admission().share == 0.0
    setattr(seen, how, False)
    await driver.step(seen, at(NOW + 1e6 + 1))
    setattr(seen, how, True)
    world.registry.rollback(NOW + 1e6 + 2) if world.registry.previous() else world.served(3.0, NOW + 9)
    await driver.step(seen, at(NOW + 1e6 + 2))
    assert caplog.text.count("The observer is away") == 2, "that is another absence"


async def test_a_share_counts_from_when_it_is_in_force_however_long_the_observer_took(world: World) -> None:
    config, now = dataclasses.replace(CONFIG, ramp_first=1), [NOW + 100.0]
    ramp = Ramp(config)
    world.served(1.0)
    canary = world.registry.challenge(world.judged(2.0).digest, ramp, NOW + 1)
    world.registry.keep_canary(ramp.shadowed(canary, 10, 10, NOW + 2))

    class Slow(Seen):
        async def outcomes(self, digests: tuple[str, ...], after: tuple[float, str]) -> list[Outcome]:
            now[0] += 4.0
            return [outcome(NOW + 3 + t, canary.challenger if t == 50 else canary.champion) for t in range(60)]

    await Driver(world.registry, config, 0.05).step(Slow(), lambda: now[0])
    found = world.registry.canary()
    assert found is not None and found.shares[-1] == (NOW + 104.0, 0.1)


async def test_an_alarm_ends_a_canary_that_began_in_quiet_times(world: World) -> None:
    canary, driver = trying(world), Driver(world.registry, CONFIG, 0.05)
    await driver.step(Seen(alarm("shift_detected", NOW - 1)), at(NOW + 2))
    assert world.registry.canary() == canary, "that was about a release before"
    await driver.step(Seen(alarm("shift_detected", NOW)), at(NOW + 3))
    found = world.registry.canary()
    assert found is not None and found.state == "stopped" and "shift_detected by the world monitor" in found.reason
    assert world.registry.admission().challenger is None and not world.registry.condemned()


async def test_a_challenge_needs_no_observer_and_the_first_look_finds_the_alarm(world: World) -> None:
    old, new, driver = world.served(1.0), world.judged(2.0), Driver(world.registry, CONFIG, 0.05)
    seen = Seen(alarm("degradation", NOW, old.digest))
    seen.away = True
    canary = await driver.challenge(new.digest, seen, at(NOW + 1))
    assert (canary.state, canary.is_alarmed) == ("shadow", None)
    seen.away = False
    await driver.step(seen, at(NOW + 2))
    assert world.registry.canary() == dataclasses.replace(canary, is_alarmed=True, is_urgent=True)


async def test_an_alarm_that_a_canary_answers_does_not_end_it(world: World) -> None:
    old, new, driver = world.served(1.0), world.judged(2.0), Driver(world.registry, CONFIG, 0.05)
    shift = alarm("shift_detected", NOW, old.digest)
    canary = await driver.challenge(new.digest, Seen(shift), at(NOW + 1))
    assert (canary.share, canary.is_urgent) == (0.5, False)
    await driver.step(Seen(shift), at(NOW + 2))
    assert world.registry.canary() == canary
    await driver.step(Seen(shift, alarm("degradation", NOW, old.digest)), at(NOW + 3))
    assert world.registry.canary() == dataclasses.replace(canary, is_urgent=True)


@pytest.mark.parametrize(("failed", "urgent"), [(0, False), (2, False), (40, True)])
async def test_a_shift_alone_is_urgent_only_where_the_champion_fails_since(
    world: World, failed: int, urgent: bool
) -> None:
    old, new, seen = world.served(1.0), world.judged(2.0), Seen()
    seen.raised = (dataclasses.replace(alarm("shift_detected", NOW, old.digest), at=NOW),)
    before = [outcome(NOW - 50 + t, old.digest, failed=True) for t in range(40)]
    seen.known = before + [outcome(NOW + 1 + t, old.digest, failed=t < failed) for t in range(100)]
    canary = await Driver(world.registry, CONFIG, 0.05).challenge(new.digest, seen, at(NOW + 200))
    assert (canary.share, canary.is_alarmed, canary.is_urgent) == (0.5, True, urgent)


async def test_a_person_is_told_that_what_is_approved_may_not_be_promoted_any_more(world: World) -> None:
    canary = trying(world, urgent=True)
    driver, seen = Driver(world.registry, dataclasses.replace(CONFIG, approve=PERSON), 0.05), Seen()
    both = (canary.champion, canary.challenger)
    seen.known = [outcome(NOW + 2 + t, both[t % 2], failed=t % 2 == 0) for t in range(200)]
    await driver.step(seen, at(NOW + 300))
    found, release = world.registry.decide("approve", "it looks fine", NOW + 1e5)
    assert release is None and found.state == "stopped" and "not valid now" in found.reason


async def test_another_ramp_after_a_restart_stalls_nothing(world: World) -> None:
    canary, seen = trying(world, urgent=True), Seen()
    seen.known = [outcome(NOW + 2 + t, (canary.champion, canary.challenger)[t % 2], t % 2 == 0) for t in range(200)]
    driver = Driver(world.registry, dataclasses.replace(CONFIG, ramp=(0.5,)), 0.05)
    release = await driver.step(seen, at(NOW + 500))
    assert release is not None and release.digest == canary.challenger


async def test_where_a_person_approves_nobody_is_asked_and_it_waits_for_the_word(world: World) -> None:
    canary = trying(world, urgent=True)
    driver, seen = Driver(world.registry, dataclasses.replace(CONFIG, approve=PERSON), 0.05), Seen()
    both = (canary.champion, canary.challenger)
    with pytest.raises(Refused, match="can't be approved before"):
        world.registry.decide("approve", "it looks fine", NOW + 2)
    seen.known = [outcome(NOW + 2 + t, both[t % 2], failed=t % 2 == 0) for t in range(200)]
    assert await driver.step(seen, at(NOW + 300)) is None
    found, release = world.registry.decide("approve", "it looks\nfine", NOW + 301, canary.challenger[:8])
    assert (found.state, found.reason) == ("promoted", "it was approved: it looks fine")
    assert release is not None and release == world.registry.releases()[-1]
    assert world.registry.champion() == canary.challenger and world.registry.previous() == canary.champion
    assert await driver.step(seen, at(NOW + 302)) is None
    assert seen.watched[-1] == release, "the observer watches it without being told"
