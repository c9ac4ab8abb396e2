"""A challenger that may hack its reward is stopped with that reason; that the champion may stops nobody."""

from __future__ import annotations

import dataclasses
import json

from flywheel.config import canonical
from flywheel.correction import Correction, Surface
from flywheel.deploy.canary import Ramp
from flywheel.deploy.driver import Driver
from flywheel.records import Signal
from tests.deploy.conftest import NOW, World, verdict_on
from tests.deploy.test_canary import alarm
from tests.deploy.test_challenges import CONFIG, RAMP, trying
from tests.deploy.test_driver import Seen, at

WORDS = "the return is up by 3 (2 to 4) over 30 episodes, while 40.0% of its episodes fail, of the reference's 2.0%"


def hacks(digest: str, begun_at: float) -> Signal:
    """Return the accusation of a policy."""
    found = dataclasses.replace(alarm("reward_hacking", begun_at, digest), monitor="hacking")
    return dataclasses.replace(found, evidence={**found.evidence, "words": WORDS})


async def test_a_challenger_that_hacks_is_stopped_and_says_why(world: World) -> None:
    canary, driver = trying(world), Driver(world.registry, CONFIG, 0.05)
    await driver.step(Seen(hacks("another", NOW + 1)), at(NOW + 2))
    assert world.registry.canary() == canary
    await driver.step(Seen(hacks(canary.challenger, NOW + 1.5)), at(NOW + 3))
    found = world.registry.canary()
    assert found is not None and found.state == "stopped" and found.reason == f"it may hack its reward: {WORDS}"
    assert world.registry.admission().challenger is None and not world.registry.condemned()
    assert Ramp().stop(found, "again", NOW + 4) == found


async def test_that_the_champion_hacks_neither_stops_a_challenger_nor_hurries_it(world: World) -> None:
    canary, driver = trying(world), Driver(world.registry, CONFIG, 0.05)
    accused = Seen(hacks(canary.champion, NOW))
    await driver.step(accused, at(NOW + 2))
    assert world.registry.canary() == canary
    again = await driver.challenge(world.judged(3.0).digest, accused, at(NOW + 3))
    assert (again.state, again.is_alarmed, again.is_urgent) == ("shadow", False, False)


async def test_a_challenger_that_was_trained_for_another_reward_is_meant_to_act_otherwise(world: World) -> None:
    reward = Surface(low=(0.0,), high=(1.0,), centre=(0.0,), scale=(1.0,), weights=(((1.0,),) * 3,))
    trained_on = {"correction": json.loads(canonical(dataclasses.asdict(Correction(reward=reward))))}
    old = world.served(1.0)
    new = world.artifact(2.0, trained_on)
    world.registry.record(verdict_on(new, baseline=old.digest))
    canary, driver = (
        world.registry.challenge(new.digest, RAMP, NOW + 1, alarmed=True),
        Driver(world.registry, CONFIG, 0.05),
    )
    await driver.step(Seen(hacks(new.digest, NOW + 1.5)), at(NOW + 3))
    assert world.registry.canary() == canary and not canary.is_over
    assert world.registry.pays_otherwise(new.digest, old.digest)
    release = world.registry.promote(new.digest, NOW + 4)
    assert [each.pays_otherwise for each in world.registry.releases()] == [False, True]
    assert release.pays_otherwise and world.registry.releases()[-1] == release
