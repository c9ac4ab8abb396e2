"""A challenger in a replica: its share of episodes, its shadow, and the champion in its place when it breaks."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from typing import Any

import numpy as np
import pytest

from flywheel.deploy import links as links_module
from flywheel.deploy.admission import Tried
from flywheel.deploy.canary import Ramp
from flywheel.deploy.service import Service
from flywheel.deploy.session import Session
from flywheel.deploy.wire import ActRequest
from flywheel.draws import bucket, draw_key
from flywheel.errors import Refused
from flywheel.policy import Policy
from flywheel.records import Artifact
from tests.deploy.conftest import NOW, Links, World
from tests.deploy.test_session import RUN_KEY, after, first, session_of


def tried(world: World, share: float, number: float = 2.0) -> tuple[Artifact, Artifact, Session]:
    """Return champion, challenger and a session in which the challenger has a share, 0 for the shadow."""
    old = world.served(1.0)
    new = world.judged(number)
    world.registry.challenge(new.digest, Ramp(), NOW)
    session = session_of(world, old, new)
    session.adopt(dataclasses.replace(session.admission, share=share))
    return old, new, session


class Broken(Policy):
    """A policy that does something else than act."""

    def __init__(self, like: Policy, how: Any) -> None:
        self.__dict__.update(like.__dict__)
        self._how = how

    def act(self, observations: Any, draws: Any, rule: Any = None) -> Any:
        return self._how(observations)

    def bound(self) -> Any:
        _, seen, gives = super().bound()
        return (lambda: self._how(seen)), seen, gives


def crash(*_: Any) -> Any:
    raise ZeroDivisionError("oh")


def no_number(observations: Any) -> Any:
    raise Refused("Policy answered with a number that is not finite.")


def no_logp(observations: Any) -> Any:
    return np.zeros(len(observations), np.int64), np.full(len(observations), np.nan)


def test_buckets_are_even_sticky_and_say_nothing_of_draws() -> None:
    ids = [f"episode-{i}" for i in range(20_000)]
    places = np.array([bucket(RUN_KEY, id_) for id_ in ids])
    assert [bucket(RUN_KEY, id_) for id_ in ids[:10]] == places[:10].tolist()
    counts = np.histogram(places, bins=20, range=(0, 1))[0]
    assert counts.sum() == 20_000 and np.abs(counts - 1000).max() < 5 * 1000**0.5
    keys = np.array([draw_key(RUN_KEY, id_) for id_ in ids], dtype=np.float64)
    assert abs(np.corrcoef(places, keys)[0, 1]) < 0.03
    assert places[0] != bucket(b"o" * 32, ids[0]), "nobody can foresee it without the run's key"


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_a_challenger_begins_its_share_of_episodes_the_same_ones_everywhere(world: World, share: float) -> None:
    old, new, session = tried(world, share)
    rows = [first(f"e{i}") for i in range(1000)]
    decisions, steps = session.decide(rows, NOW)
    mine = [decision.episode for decision in decisions if decision.digest == new.digest]
    assert mine == [row.episode for row in rows if bucket(RUN_KEY, row.episode) < share]
    assert steps is not None and set(steps.digests) == {old.digest, new.digest}
    more = dataclasses.replace(session.admission, share=min(1.0, 2 * share))
    session.forget([row.episode for row in rows])
    session.adopt(more)
    again = {d.episode for d in session.decide(rows, NOW)[0] if d.digest == new.digest}
    assert again >= set(mine), "whoever has it keeps it when the share grows"


def test_later_steps_follow_the_digest_that_they_repeat(world: World) -> None:
    old, new, session = tried(world, 0.5)
    begun, _ = session.decide([first(f"e{i}") for i in range(50)], NOW)
    session.adopt(dataclasses.replace(session.admission, share=0.99))
    going_on, _ = session.decide([after(decision) for decision in begun], NOW)
    assert [d.digest for d in going_on] == [d.digest for d in begun]
    assert {d.digest for d in begun} == {old.digest, new.digest}


@pytest.mark.parametrize("how", [crash, no_number, no_logp])
def test_a_challenger_that_breaks_is_dropped_for_the_champion_in_the_same_request(world: World, how: Any) -> None:
    old, new, session = tried(world, 0.5)
    begun, _ = session.decide([first(f"e{i}") for i in range(50)], NOW)
    session.hold(Broken(session._policies[new.digest], how))
    rows = [first(f"f{i}") for i in range(50)] + [after(decision) for decision in begun]
    decisions, steps = session.decide(rows, NOW)
    assert steps is not None and {d.digest for d in decisions} == set(steps.digests) == {old.digest}
    alone, _ = session_of(world, old).decide([first(f"f{i}") for i in range(50)], NOW)
    assert decisions[:50] == alone, "the very answer that the champion would have given"
    (told,) = session.take_tried()
    assert told.digest == new.digest and told.trouble.startswith("it ")
    session.decide([first("g")], NOW)
    assert session.take_tried() == [], "it is not tried again"


def test_a_champion_that_breaks_says_so(world: World) -> None:
    old = world.served()
    session = session_of(world, old)
    session.hold(Broken(session._policies[old.digest], crash))
    with pytest.raises(ZeroDivisionError):
        session.decide([first()], NOW)


def test_in_the_shadow_it_acts_and_is_not_heard(world: World) -> None:
    old, new, session = tried(world, 0.0)
    assert session.is_shadowing
    rows = [first(f"e{i}", [0.02 * i - 0.5, 0.5, 0.01, -0.3]) for i in range(100)]
    decisions, steps = session.decide(rows, NOW)
    assert steps is not None and {d.digest for d in decisions} == {old.digest}
    session.shadow(steps)
    would, _ = session._policies[new.digest].act(
        steps.observations, np.array([[session_draw] for session_draw in _draws(steps)])
    )
    same = int((would == steps.raw_actions).sum())
    assert session.take_tried() == [Tried(digest=new.digest, num_shadowed=100, num_same=same)]
    session.hold(Broken(session._policies[new.digest], crash))
    session.shadow(steps)
    (told,) = session.take_tried()
    assert told.trouble == "it crashed with ZeroDivisionError('oh')" and not session.is_shadowing


def _draws(steps: Any) -> list[float]:
    from flywheel.draws import draws

    return [float(row[0]) for row in draws(steps.draw_keys, steps.t, 1)]


def test_a_challenger_that_is_rolled_back_answers_no_more(world: World) -> None:
    old, new, session = tried(world, 0.5)
    begun = [d for d in session.decide([first(f"e{i}") for i in range(50)], NOW)[0] if d.digest == new.digest]
    canary = world.registry.canary()
    assert canary is not None
    world.registry.keep_canary(Ramp().broke(canary, "it crashed", NOW))
    session.adopt(world.registry.admission())
    decisions, _ = session.decide([after(decision) for decision in begun] + [first(f"f{i}") for i in range(50)], NOW)
    assert {d.digest for d in decisions} == {old.digest}


async def test_the_replica_tells_the_registry_and_goes_on_while_that_is_away(
    world: World, links: Links, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links_module, "AWAY_S", 0.2)
    old, new = world.served(1.0), world.judged(2.0)
    world.registry.challenge(new.digest, Ramp(), NOW)
    await service.start()
    status = service.status()
    assert (status["digest"], status["challenger"], status["share"]) == (old.digest, new.digest, 0.0)
    links.away = True
    await service.act(ActRequest([first(f"e{i}") for i in range(30)]))
    await asyncio.sleep(0.05)
    assert not links.tried_
    links.away = False
    async with asyncio.timeout(5):
        while sum(tried.num_shadowed for tried in links.tried_) < 30:
            await asyncio.sleep(0.01)
    await service.stop()
    assert {tried.digest for tried in links.tried_} == {new.digest}


async def test_a_challenger_that_crashes_when_it_is_loaded_is_broken(
    world: World, links: Links, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = world.served(1.0), world.judged(2.0)
    await service.start()
    monkeypatch.setattr("flywheel.deploy.service.admit", crash)
    world.registry.challenge(new.digest, Ramp(), NOW)
    async with asyncio.timeout(5):
        while not links.tried_:
            await asyncio.sleep(0.01)
    await service.stop()
    assert service.status()["digest"] == old.digest
    assert links.tried_[0].trouble.startswith("it can't be loaded")


async def test_a_replica_follows_and_sends_on_whatever_went_wrong_once(
    world: World, links: Links, service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world.served(1.0)
    await service.start()
    with monkeypatch.context() as broken:
        for name in ("admission", "append"):
            broken.setattr(links, name, crash_soon)
        await service.act(ActRequest([first("e")]))
        async with asyncio.timeout(5):
            while not {"The registry could not be followed", "Steps could not be sent"} <= said(caplog):
                await asyncio.sleep(0.01)
    new = world.served(2.0, NOW + 1)
    async with asyncio.timeout(5):
        while service.status()["digest"] != new.digest or ("e", 0) not in links.rows():
            await asyncio.sleep(0.01)
    await service.stop()


async def crash_soon(*_: Any) -> Any:
    raise ZeroDivisionError("oh")


def said(caplog: pytest.LogCaptureFixture) -> set[str]:
    """Return how the logged lines begin."""
    return {re.split("[:,]", record.message)[0] for record in caplog.records}


async def test_steps_go_on_to_the_observer_when_the_shadow_breaks(
    world: World, links: Links, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.served(1.0)
    world.registry.challenge(world.judged(2.0).digest, Ramp(), NOW)
    await service.start()
    monkeypatch.setattr(Session, "shadow", crash)
    for i in range(2):
        await service.act(ActRequest([first(f"e{i}")]))
        async with asyncio.timeout(5):
            while (f"e{i}", 0) not in links.rows():
                await asyncio.sleep(0.01)
    await service.stop()


async def test_a_challenger_that_cannot_be_loaded_leaves_the_champion_alone(
    world: World, links: Links, service: Service
) -> None:
    old, new = world.served(1.0), world.judged(2.0)
    (world.run_dir / "policies" / new.digest / "policy.onnx").write_bytes(b"no network")
    world.registry.challenge(new.digest, Ramp(), NOW)
    await service.start()
    async with asyncio.timeout(5):
        while not links.tried_:
            await asyncio.sleep(0.01)
    answer = await service.act(ActRequest([first()]))
    await service.stop()
    assert answer.decisions[0].digest == old.digest
    assert links.tried_[0].digest == new.digest and "it can't be loaded" in links.tried_[0].trouble
