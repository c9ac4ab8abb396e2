"""A control stays on the policy before a quiet release, for a share and a time; never on one that is condemned."""

from __future__ import annotations

import contextlib
import dataclasses
import sqlite3

import pytest

from flywheel.arms import Control
from flywheel.deploy.admission import Admission, Tried
from flywheel.deploy.canary import Canary, Ramp
from flywheel.deploy.driver import Driver
from flywheel.deploy.on_ray import RegistryActor
from flywheel.deploy.registry import Registry, open_readonly
from flywheel.deploy.service import Service
from flywheel.draws import CONTROL, bucket
from flywheel.records import Artifact
from flywheel.task import task_digest
from flywheel.tasks.cartpole import cartpole
from tests.deploy.conftest import NOW, Links, World, verdict_on
from tests.deploy.test_canary import alarm, outcome
from tests.deploy.test_challenger import Broken, crash
from tests.deploy.test_challenges import CONFIG, trying
from tests.deploy.test_driver import Seen, at
from tests.deploy.test_session import RUN_KEY, after, first, session_of

RAMP = Ramp(CONFIG)


def twice(world: World, share: float = 0.1) -> tuple[Artifact, Artifact]:
    """Return two policies, the second of which was released quietly at NOW + 1."""
    old, new = world.served(1.0), world.judged(2.0)
    world.registry.promote(new.digest, NOW + 1, share)
    return old, new


def beside(world: World) -> tuple[str | None, float]:
    admission = world.registry.admission()
    return admission.control, admission.control_share


def won(canary: Canary) -> Canary:
    """Return a canary that was promoted."""
    proven = dataclasses.replace(canary, state="canary", is_proven=True)
    return RAMP.approve(proven, True, canary.begun_at + 500)


def test_a_quiet_release_leaves_a_share_on_the_policy_before_it_and_outlives_a_restart(world: World) -> None:
    old, new = twice(world)
    present = world.registry.present()
    assert present is not None and (present.digest, present.stage, present.share) == (new.digest, "full", 0.9)
    assert world.registry.releases()[-1].share == 1.0, "the release itself is what it was: nobody watches it anew"
    (control,) = world.registry.controls()
    assert control == Control(policy=old.digest, champion=new.digest, share=0.1, begun_at=NOW + 1)
    assert (control.release.digest, control.release.stage, control.release.share) == (old.digest, "full", 0.1)
    world.registry.close()
    world.registry = Registry(world.run_dir, task_digest(cartpole))
    assert beside(world) == (old.digest, 0.1) and world.registry.admission().changed_at == NOW + 1
    with contextlib.closing(open_readonly(world.run_dir)) as registry:
        assert registry.controls() == [control]


def test_the_first_release_has_none_and_so_has_one_that_is_not_quiet(world: World) -> None:
    only = world.judged(1.0)
    world.registry.promote(only.digest, NOW, 0.1)
    assert beside(world) == (None, 0.0)
    second = world.judged(2.0)
    world.registry.promote(second.digest, NOW + 1)
    assert world.registry.controls() == [] and world.registry.admission().changed_at == 0.0


@pytest.mark.parametrize(("how", "stays"), [({}, True), ({"alarmed": True}, False), ({"urgent": True}, False)])
def test_a_challenger_that_answers_no_alarm_leaves_one(world: World, how: dict[str, bool], stays: bool) -> None:
    canary = trying(world, **how)
    assert world.registry.keep_canary(won(canary)) is not None
    assert beside(world) == ((canary.champion, 0.1) if stays else (None, 0.0))


def test_nobody_stays_where_nobody_could_say_whether_an_alarm_was_open(world: World) -> None:
    world.served(1.0)
    canary = world.registry.challenge(world.judged(2.0).digest, RAMP, NOW + 1)
    assert canary.is_alarmed is None
    world.registry.keep_canary(won(canary))
    assert beside(world) == (None, 0.0)


def test_a_rollback_ends_it_and_leaves_none(world: World) -> None:
    old, new = twice(world)
    assert world.registry.rollback(NOW + 2).digest == old.digest
    (control,) = world.registry.controls()
    assert (control.ended_at, beside(world)) == (NOW + 2, (None, 0.0)) and control.release.share == 0.0
    present = world.registry.present()
    assert present is not None and (present.share, new.digest in world.registry.condemned()) == (1.0, True)


def test_a_control_that_is_condemned_or_fails_a_later_verdict_answers_nobody(world: World) -> None:
    old, _ = twice(world)
    world.registry.record(verdict_on(old, "fail"))
    assert beside(world) == (None, 0.0)
    world.registry.record(verdict_on(old, "pass"))
    assert beside(world) == (old.digest, 0.1)
    world.registry._condemn(old.digest, "it was found out", NOW + 3)
    assert beside(world) == (None, 0.0)
    (control,) = world.registry.controls()
    assert (control.ended_at, control.reason) == (NOW + 3, "it was condemned: it was found out")


def test_the_file_itself_refuses_a_control_that_is_condemned_or_unjudged_and_a_second_one(world: World) -> None:
    old, new = twice(world)
    bad = world.judged(3.0)
    world.registry._condemn(bad.digest, "bad", NOW)
    with contextlib.closing(sqlite3.connect(world.run_dir / "registry.sqlite")) as file:
        for digest in (bad.digest, world.artifact(4.0).digest):
            with pytest.raises(sqlite3.IntegrityError, match="condemned"):
                file.execute("INSERT INTO controls VALUES (9, ?, ?, 0.1, 0, NULL, 1, '')", (digest, new.digest))
        with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
            file.execute("INSERT INTO controls VALUES (9, ?, ?, 0.1, 0, NULL, NULL, '')", (old.digest, new.digest))


def test_a_challenger_ends_it_and_the_next_quiet_release_begins_another(world: World) -> None:
    _, new = twice(world)
    third = world.judged(3.0)
    world.registry.challenge(third.digest, RAMP, NOW + 5, alarmed=False)
    (control,) = world.registry.controls()
    assert control.ended_at == NOW + 5 and third.digest[:12] in control.reason and beside(world) == (None, 0.0)
    canary = world.registry.canary()
    assert canary is not None
    world.registry.keep_canary(won(canary))
    assert beside(world) == (new.digest, 0.1) and len(world.registry.controls()) == 2


def test_who_answered_at_a_time_names_it(world: World) -> None:
    old, new = twice(world)
    world.registry.end_control("enough", NOW + 9)
    served = world.registry.served(NOW + 5)
    assert (served.champion, served.control, served.control_share) == (new.digest, old.digest, 0.1)
    assert world.registry.served(NOW + 9).control is None and world.registry.served(NOW).control is None


# In a replica


def test_a_share_of_episodes_begins_on_it_by_a_hash_of_its_own_and_goes_on_there(world: World) -> None:
    old, new = twice(world)
    session = session_of(world, old, new)
    ids = [f"e{i}" for i in range(4000)]
    decided = {d.episode: d for some in (ids[:1000], ids[1000:2000], ids[2000:3000], ids[3000:])
               for d in session.decide([first(id_) for id_ in some], NOW)[0]}  # fmt: skip
    its = {id_ for id_ in ids if decided[id_].digest == old.digest}
    assert its == {id_ for id_ in ids if bucket(RUN_KEY, id_, CONTROL) < 0.1} and 320 < len(its) < 480
    assert {decided[id_].digest for id_ in ids} == {old.digest, new.digest}
    both = sum(bucket(RUN_KEY, id_) < 0.1 for id_ in its)
    assert both < 0.2 * len(its), "another salt than the canary's"
    some = min(its)
    world.registry.end_control("enough", NOW + 9)
    session.adopt(world.registry.admission())
    assert session.decide([after(decided[some])], NOW)[0][0].digest == old.digest, "an episode goes on as it began"
    assert session.decide([first(f"again {some}")], NOW)[0][0].digest == new.digest


def test_all_begin_on_the_champion_where_the_control_cannot_answer(world: World) -> None:
    old, new = twice(world, 0.5)
    session = session_of(world, old, new)
    policy = session.policy(old.digest)
    assert policy is not None
    session.hold(Broken(policy, crash))
    decided, _ = session.decide([first(f"e{i}") for i in range(50)], NOW)
    assert {d.digest for d in decided} == {new.digest}
    (told,) = session.take_tried()
    assert (told.digest, "crashed" in told.trouble) == (old.digest, True)


async def test_a_replica_holds_it_shows_it_and_says_what_it_acts_by(
    world: World, links: Links, service: Service
) -> None:
    old, new = twice(world)
    await service.start()
    try:
        status = service.status()
        assert (status["digest"], status["control"], status["control_share"]) == (new.digest, old.digest, 0.1)
        assert set(links.loads) == {old.digest, new.digest}
        await service.reload()
        assert [changed_at for _, changed_at in links.looks[:2]] == [None, NOW + 1]
        assert len({replica for replica, _ in links.looks}) == 1
    finally:
        await service.stop()


# Driven


async def test_it_ends_after_its_episodes_unless_an_alarm_is_open(world: World) -> None:
    old, new = twice(world)
    seen = Seen(alarm(released_at=NOW + 1, digest=new.digest))
    driver = Driver(world.registry, dataclasses.replace(CONFIG, control_episodes=20, settle_s=2.0), 0.05)
    await driver.step(seen, at(NOW + 2))
    (control,) = world.registry.controls()
    assert control.settled_at == NOW + 3
    seen.known = [outcome(NOW + 2 + t, old.digest, lost=t == 5) for t in range(25)]
    await driver.step(seen, at(NOW + 40))
    assert seen.asked[-1] == ((old.digest,), (NOW + 3, ""))
    assert beside(world) == (old.digest, 0.1), "an incident is open: it is wanted"
    seen.raised = ()
    await driver.step(seen, at(NOW + 41))
    assert beside(world) == (None, 0.0)
    (control,) = world.registry.controls()
    assert (control.ended_at, control.reason) == (NOW + 41, "23 of its episodes are enough in quiet times")
    assert await driver.step(seen, at(NOW + 42)) is None


async def test_nobody_stays_on_a_policy_that_may_hack_its_reward(world: World) -> None:
    """The alarm about it is of another release than the present one, and no word on that."""
    old, _ = twice(world)
    hacks = alarm("reward_hacking", released_at=NOW, digest=old.digest)
    hacks = dataclasses.replace(hacks, evidence={**hacks.evidence, "words": "the return is up while more fail"})
    driver = Driver(world.registry, CONFIG, 0.05)
    await driver.step(Seen(dataclasses.replace(hacks, digest="another")), at(NOW + 2))
    assert beside(world) == (old.digest, 0.1)
    await driver.step(Seen(hacks), at(NOW + 3))
    (control,) = world.registry.controls()
    assert beside(world) == (None, 0.0) and control.ended_at == NOW + 3
    assert control.reason == "it may hack its reward: the return is up while more fail"


async def test_it_counts_from_when_all_replicas_know_of_it(world: World) -> None:
    twice(world)
    seen, driver = Seen(), Driver(world.registry, CONFIG, 0.05)
    driver.looks.saw("a", 0.0, NOW)
    driver.looks.saw("b", 0.0, NOW)
    driver.looks.saw("a", NOW + 1, NOW + 2)
    await driver.step(seen, at(NOW + 3))
    assert world.registry.controls()[0].settled_at is None
    driver.looks.saw("b", NOW + 1, NOW + 9)
    await driver.step(seen, at(NOW + 10))
    assert world.registry.controls()[0].settled_at == NOW + 9


async def test_one_that_breaks_in_a_replica_is_ended_and_not_condemned(world: World) -> None:
    old, _ = twice(world)
    driver = Driver(world.registry, CONFIG, 0.05)
    driver.tried(Tried(digest=old.digest, num_shadowed=1), NOW + 2)
    assert beside(world) == (old.digest, 0.1)
    assert driver.tried(Tried(digest=old.digest, trouble="it crashed"), NOW + 3) is None
    assert beside(world) == (None, 0.0) and world.registry.controls()[0].reason == "it crashed"
    assert world.registry.condemned() == frozenset()


async def test_a_promotion_by_hand_leaves_one_where_no_alarm_is_open(world: World) -> None:
    world.served(1.0)
    driver = Driver(world.registry, CONFIG, 0.05)
    assert await driver.quiet_share(Seen()) == 0.1
    assert await driver.quiet_share(Seen(alarm(released_at=NOW))) == 0.0
    gone = Seen()
    gone.away = True
    assert await driver.quiet_share(gone) == 0.0


async def test_the_actor_promotes_without_one_where_there_is_no_observer(world: World) -> None:
    old, new = world.served(1.0), world.judged(2.0)
    world.registry.close()
    actor = RegistryActor(str(world.run_dir), task_digest(cartpole), config=CONFIG)
    actor._driver = Driver(actor._registry, CONFIG, 0.05)
    actor._observer = Away()  # type: ignore[assignment]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flywheel.deploy.on_ray.time.time", lambda: NOW + 5)
        assert (await actor.promote(new.digest)).previous == old.digest
    found: Admission = await actor.admission("a", NOW)
    assert found.control is None and actor.controls() == []
    assert actor._driving is not None
    actor._driving.cancel()
    actor._registry.close()


class Away(Seen):
    """An observer that can't be asked."""

    def __init__(self) -> None:
        super().__init__()
        self.away = True


# A challenger whose share a starved replica learns of late


async def test_a_good_challenger_is_not_stopped_because_a_replica_learnt_of_its_share_late(world: World) -> None:
    canary = trying(world, urgent=True)
    config = dataclasses.replace(CONFIG, settle_s=2.0)
    seen, driver = Seen(), Driver(world.registry, config, 0.05)
    driver.looks.saw("a", 0.0, NOW)
    late = [outcome(NOW + 4 + 0.1 * t, canary.champion) for t in range(60)]
    seen.known = late
    driver.looks.saw("a", 0.0, NOW + 9)
    assert await driver.step(seen, at(NOW + 9.5)) is None
    kept = world.registry.canary()
    assert kept is not None and kept.state == "canary" and kept.test.num == (0, 0), "nothing is read yet"
    driver.looks.saw("a", canary.begun_at, NOW + 10.5)
    arms = (canary.champion, canary.challenger)
    seen.known = [*late, *(outcome(NOW + 11 + t, arms[t % 2]) for t in range(30))]
    await driver.step(seen, at(NOW + 50))
    kept = world.registry.canary()
    assert kept is not None and not kept.is_over and kept.test.num == (15, 15)
    assert kept.settled == ((canary.begun_at, NOW + 10.5),)


async def test_one_that_no_replica_ever_gives_an_episode_is_stopped_all_the_same(world: World) -> None:
    canary = trying(world, urgent=True)
    seen, driver = Seen(), Driver(world.registry, dataclasses.replace(CONFIG, settle_s=2.0), 0.05)
    seen.known = [outcome(NOW + 4 + t, canary.champion) for t in range(300)]
    for second in range(300):
        driver.looks.saw("a", 0.0, NOW + second)
    await driver.step(seen, at(NOW + 299))
    kept = world.registry.canary()
    assert kept is not None and kept.state == "stopped" and "isn't the one that it was given" in kept.reason
