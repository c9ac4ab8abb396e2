"""Challengers in the registry: judged before they are tried, one at a time, and one commit for an end and its alias."""

from __future__ import annotations

import dataclasses
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from flywheel.config import DeployConfig
from flywheel.deploy.admission import Served
from flywheel.deploy.canary import Canary, Ramp
from flywheel.deploy.on_ray import RegistryActor
from flywheel.deploy.registry import Registry, open_readonly
from flywheel.errors import Refused, UsageError
from tests.deploy.conftest import NOW, World, verdict_on
from tests.deploy.test_canary import outcome

CONFIG = DeployConfig(shadow_decisions=10, settle_s=0.0)


RAMP = Ramp(CONFIG)


def trying(world: World, **how: bool) -> Canary:
    """Return the canary of a second policy beside a first one."""
    world.served(1.0)
    return world.registry.challenge(world.judged(2.0).digest, RAMP, NOW + 1, **({"alarmed": False} | how))


def test_only_what_may_be_promoted_is_tried_and_only_beside_a_champion(world: World) -> None:
    first = world.judged(1.0)
    with pytest.raises(Refused, match="promote it at once"):
        world.registry.challenge(first.digest, RAMP, NOW)
    world.registry.promote(first.digest, NOW)
    for artifact, now, why in (
        (world.artifact(2.0), NOW, "never judged"),
        (world.judged(3.0), NOW + 1000, "not valid now"),
    ):
        with pytest.raises(Refused, match=why):
            world.registry.challenge(artifact.digest, RAMP, now)
    failed = world.artifact(4.0)
    world.registry.record(verdict_on(failed, "fail", baseline=first.digest))
    with pytest.raises(Refused, match="'fail'"):
        world.registry.challenge(failed.digest, RAMP, NOW)
    assert world.registry.canary() is None and world.registry.admission().challenger is None
    file = sqlite3.connect(world.run_dir / "registry.sqlite")
    with pytest.raises(sqlite3.IntegrityError, match="no passing verdict"):
        file.execute("INSERT INTO canaries VALUES (1, ?, ?, 'canary', 0, '{}')", (failed.digest, first.digest))
    file.close()


def test_replicas_are_told_of_a_challenger_and_its_share(world: World) -> None:
    canary = trying(world)
    admission = world.registry.admission()
    assert (admission.champion, admission.challenger, admission.share) == (canary.champion, canary.challenger, 0.0)
    assert canary.challenger in admission.admissible and canary.challenger in admission.known
    world.registry.keep_canary(RAMP.shadowed(canary, 10, 5, NOW + 2))
    assert world.registry.admission().share == 0.01
    assert world.registry.aliases() == {"@champion": canary.champion, "@challenger": canary.challenger}


def test_a_promotion_is_the_canarys_end_and_the_release_in_one_commit(world: World) -> None:
    canary = trying(world, urgent=True)
    rows = [outcome(NOW + 2 + t, (canary.champion, canary.challenger)[t % 2], failed=t % 2 == 0) for t in range(100)]
    done = RAMP.hear(canary, rows, NOW + 200)
    assert done.state == "promoted"
    release = world.registry.keep_canary(done)
    assert release is not None and (release.digest, release.stage, release.previous) == (
        canary.challenger, "full", canary.champion,
    )  # fmt: skip
    assert world.registry.champion() == canary.challenger and world.registry.previous() == canary.champion
    assert world.registry.admission().challenger is None
    assert world.registry.aliases() == {"@champion": canary.challenger, "@previous": canary.champion}
    with pytest.raises(Refused, match="is over"):
        world.registry.keep_canary(done)
    assert len(world.registry.releases()) == 2
    world.registry.close()
    world.registry = Registry(world.run_dir, world.registry.task)
    assert world.registry.canary() == done, "it is read again as it was"
    with open_readonly(world.run_dir)._db as _:
        assert open_readonly(world.run_dir).canaries() == [done]


def test_a_challenger_that_is_rolled_back_is_condemned_and_one_that_timed_out_is_not(world: World) -> None:
    canary = trying(world)
    world.registry.keep_canary(RAMP.tick(canary, NOW + 1e6))
    assert not world.registry.condemned() and canary.challenger in world.registry.admission().admissible
    assert world.registry.previous() is None, "it never served, so nobody goes back to it"
    again = world.registry.challenge(canary.challenger, RAMP, NOW + 2)
    world.registry.keep_canary(RAMP.broke(again, "it answered NaN", NOW + 3))
    assert world.registry.reasons()[canary.challenger] == ("it answered NaN", NOW + 3)
    assert canary.challenger not in world.registry.admission().admissible
    assert canary.challenger in world.registry.admission().known, "its steps can be sent again"
    with pytest.raises(Refused, match="condemned"):
        world.registry.challenge(canary.challenger, RAMP, NOW + 4)


def test_one_that_is_frozen_answers_nobody(world: World) -> None:
    canary = trying(world)
    frozen = Ramp(dataclasses.replace(CONFIG, on_fail="freeze")).broke(canary, "it crashed", NOW + 2)
    world.registry.keep_canary(frozen)
    admission = world.registry.admission()
    assert admission.challenger is None and canary.challenger not in admission.admissible
    assert not world.registry.condemned() and world.registry.aliases()["@challenger"] == canary.challenger


def test_one_that_was_frozen_answers_nobody_when_another_takes_its_place(world: World) -> None:
    canary = trying(world)
    lifted = RAMP.shadowed(canary, 10, 10, NOW + 5)
    world.registry.keep_canary(lifted)
    world.registry.decide("freeze", "it hums", NOW + 9)
    third = world.judged(3.0)
    world.registry.challenge(third.digest, RAMP, NOW + 20)
    admission = world.registry.admission()
    assert set(admission.admissible) == {canary.champion, third.digest} and canary.challenger in admission.known
    assert [world.registry.served(NOW + at).challenger for at in (6, 8, 9, 15, 20)] == [
        canary.challenger, canary.challenger, None, None, third.digest,
    ]  # fmt: skip
    world.registry.challenge(canary.challenger, RAMP, NOW + 30)
    assert canary.challenger in world.registry.admission().admissible, "a person has it tried again"


def test_an_admission_reads_one_record_however_many_challengers_there_were(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = trying(world)
    world.registry.keep_canary(RAMP.tick(canary, NOW + 1e6))
    again = [world.registry.challenge(canary.challenger, RAMP, NOW + 2 + i) for i in range(2)]
    world.registry.keep_canary(RAMP.tick(again[-1], NOW + 1e6))
    third = world.judged(3.0)
    world.registry.challenge(third.digest, RAMP, NOW + 9)
    read: list[int] = []
    canaries = world.registry.canaries
    monkeypatch.setattr(world.registry, "canaries", lambda last=-1: read.append(last) or canaries(last))
    admission = world.registry.admission()
    assert set(read) == {1}
    assert admission.admissible == (canary.champion, canary.challenger, third.digest)


def test_another_challenger_begins_from_nothing_and_a_retry_changes_nothing(world: World) -> None:
    canary = trying(world)
    assert world.registry.challenge(canary.challenger, RAMP, NOW + 2) == canary
    third = world.judged(3.0)
    fresh = world.registry.challenge(third.digest, RAMP, NOW + 3)
    states = [(c.challenger, c.state) for c in world.registry.canaries()]
    assert states == [(canary.challenger, "replaced"), (third.digest, "shadow")] and fresh.num_shadowed == 0
    with pytest.raises(Refused, match="is over"):
        world.registry.keep_canary(canary)


def test_a_promotion_or_a_rollback_by_hand_ends_the_canary(world: World) -> None:
    canary = trying(world)
    world.registry.promote(canary.challenger, NOW + 2)
    found = world.registry.canary()
    assert found is not None and found.state == "replaced"
    third = world.judged(3.0)
    world.registry.challenge(third.digest, RAMP, NOW + 3)
    world.registry.rollback(NOW + 4)
    found = world.registry.canary()
    assert found is not None and found.state == "replaced" and world.registry.champion() == canary.champion


def test_history_says_who_was_tried_beside_whom_and_with_which_share(world: World) -> None:
    canary = trying(world)
    champion, challenger = canary.champion, canary.challenger
    lifted = RAMP.shadowed(canary, 10, 10, NOW + 5)
    world.registry.keep_canary(lifted)
    world.registry.keep_canary(RAMP.broke(lifted, "it crashed", NOW + 9))
    third = world.judged(3.0)
    world.registry.challenge(third.digest, RAMP, NOW + 20)
    assert [world.registry.served(at) for at in (NOW - 1, NOW, NOW + 1, NOW + 5, NOW + 8.9, NOW + 9, NOW + 20)] == [
        Served(NOW - 1, None, None, 0.0),
        Served(NOW, champion, None, 0.0),
        Served(NOW + 1, champion, challenger, 0.0),
        Served(NOW + 5, champion, challenger, 0.01),
        Served(NOW + 8.9, champion, challenger, 0.01),
        Served(NOW + 9, champion, None, 0.0),
        Served(NOW + 20, champion, third.digest, 0.0),
    ]
    present = world.registry.canary()
    assert present is not None
    world.registry.keep_canary(dataclasses.replace(present, state="promoted", changed_at=NOW + 30))
    assert world.registry.served(NOW + 29).challenger == third.digest
    assert world.registry.served(NOW + 30) == Served(NOW + 30, third.digest, None, 0.0)
    with closing(open_readonly(world.run_dir)) as reader:
        assert reader.served(NOW + 5).share == 0.01, "whoever only reads can say it"


def promoted(world: World, now: float = NOW + 200) -> Canary:
    """Return a canary at its end, as the ramp says."""
    canary = trying(world, urgent=True)
    rows = [outcome(NOW + 2 + t, (canary.champion, canary.challenger)[t % 2], failed=t % 2 == 0) for t in range(100)]
    done = RAMP.hear(canary, rows, now)
    assert done.state == "promoted"
    return done


@pytest.mark.parametrize("why", ["not valid now", "'fail'", "calibrated anew", "condemned"])
def test_what_may_not_be_promoted_any_more_is_stopped_for_that_reason(world: World, why: str) -> None:
    done = promoted(world, NOW + 1e5 if why == "not valid now" else NOW + 200)
    if why == "'fail'":
        failed = verdict_on(world.registry.artifact(done.challenger), "fail", baseline=done.champion)
        world.registry.record(failed)
    elif why == "calibrated anew":
        world.registry.set_terms("c", "another", NOW + 100)
    elif why == "condemned":
        world.registry._condemn(done.challenger, "it hums", NOW + 100)
    assert world.registry.keep_canary(done) is None
    found = world.registry.canary()
    assert found is not None and found.state == "stopped" and why in found.reason
    assert found.reason.startswith("it may not be promoted any more: ")
    assert world.registry.champion() == done.champion and len(world.registry.releases()) == 1


def test_a_person_freezes_a_challenger_and_drops_it(world: World) -> None:
    canary = trying(world)
    frozen, release = world.registry.decide("freeze", "it hums", NOW + 2)
    assert release is None and world.registry.canary() == frozen and frozen.state == "frozen"
    assert world.registry.admission().challenger is None and not world.registry.condemned()
    for word in ("freeze", "approve"):
        with pytest.raises(Refused, match="is frozen: it can be dropped"):
            world.registry.decide(word, "again", NOW + 3)  # type: ignore[arg-type]
    dropped, _ = world.registry.decide("drop", "it hums louder", NOW + 4)
    assert dropped.state == "rolled_back" and dropped.frozen == (NOW + 2, "it hums")
    assert world.registry.reasons()[canary.challenger] == ("it hums louder", NOW + 4)
    with pytest.raises(Refused, match="No challenger is on its way"):
        world.registry.decide("drop", "again", NOW + 5)


def test_nothing_is_decided_without_a_reason_or_about_another_challenger(world: World) -> None:
    with pytest.raises(Refused, match="No challenger is on its way"):
        world.registry.decide("drop", "it hums", NOW)
    canary = trying(world)
    with pytest.raises(UsageError, match="for a reason"):
        world.registry.decide("drop", " \n", NOW + 2)
    with pytest.raises(Refused, match=f"Policy {canary.challenger[:12]} is on its way by now"):
        world.registry.decide("drop", "it hums", NOW + 2, canary.champion)
    assert world.registry.canary() == canary


async def test_the_registrys_actor_does_what_a_person_says(tmp_path: Path) -> None:
    """The actor's body, without Ray."""
    world = World(tmp_path)
    canary = trying(world)
    world.registry.close()
    actor = RegistryActor(str(tmp_path), world.registry.task, config=CONFIG)
    assert actor.decide("freeze", "it hums") == actor.canary()
    assert (await actor.admission()).challenger is None
    assert actor.decide("drop", "it hums louder", canary.challenger).state == "rolled_back"
    assert actor.condemned() == {canary.challenger}
    assert actor._driving is not None
    actor._driving.cancel()
    actor._registry.close()
