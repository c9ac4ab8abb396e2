"""Leases: they fix an episode as its first step would, and what comes back under one is proven step by step."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flywheel.deploy.leases import begun, prove
from flywheel.deploy.proof import gave
from flywheel.deploy.session import Session
from flywheel.deploy.wire import Decision, EpisodeRow, Lease, RejectedError, RunningRow
from flywheel.draws import draw_key, draws
from flywheel.errors import Refused
from flywheel.policy import TOLERANCE, Policy
from flywheel.records import Array, Episode
from tests.deploy.conftest import NOW, World
from tests.deploy.test_challenger import Broken, crash, tried
from tests.deploy.test_session import RUN_KEY, after, first, resent, session_of


def acted(session: Session, lease: Lease, num_steps: int = 5, seed: int = 0, **changes: Any) -> EpisodeRow[Any]:
    """Return a whole episode of a client that acts by itself on made-up observations, by its lease's policy and key."""
    policy = session.policy(lease.digest)
    assert policy is not None
    observations = np.random.default_rng(seed).normal(0.0, 0.1, (num_steps + 1, 4)).astype(np.float32)
    uniform = draws([lease.draw_key] * num_steps, range(num_steps), policy.spec.num_draws)
    actions, _ = policy.act(observations[:-1], uniform)
    fields: dict[str, Any] = {
        "episode": lease.episode, "digest": lease.digest, "given_at": lease.given_at, "seal": lease.seal,
        "started_at": lease.given_at + 1.0, "ended_at": lease.given_at + 2.0, "observations": observations.tolist(),
        "raw_actions": actions.tolist(), "rewards": [1.0] * num_steps, "terminated": True, "truncated": False,
    } | changes  # fmt: skip
    return EpisodeRow(**fields)


def proven(session: Session, row: EpisodeRow[Any], now: float = NOW + 10, run_key: bytes = RUN_KEY) -> Episode:
    (told,) = session.told([row])
    return prove(told, session.policy(row.digest), run_key, "t", now)


def test_an_episode_acted_under_a_lease_is_the_one_that_the_server_would_have_answered(world: World) -> None:
    session = session_of(world, world.served())
    (lease,) = session.lease(["mine"], NOW)
    row = acted(session, lease, num_steps=300)
    episode = proven(session, row)
    answered: list[Decision] = []
    for observation in row.observations[:-1]:
        step = after(answered[-1], observation=observation) if answered else first("mine", observation)
        answered += session.decide([step], NOW)[0]
    assert [decision.raw_action for decision in answered] == episode.raw_actions.tolist() == row.raw_actions
    assert [decision.logp for decision in answered] == episode.logps.tolist()
    assert {decision.digest for decision in answered} == set(episode.digests) == {lease.digest}
    assert episode.draw_key == lease.draw_key == draw_key(RUN_KEY, "mine")
    assert (episode.origin, episode.end, episode.num_steps, episode.total) == ("production", "terminated", 300, 300.0)
    assert episode.observations.dtype == np.float32 and episode.observations.tolist() == row.observations


def test_a_challenger_is_given_its_share_of_leases_the_episodes_that_it_would_begin(world: World) -> None:
    old, new, session = tried(world, share=0.5)
    ids = [f"e{i}" for i in range(200)]
    leases = session.lease(ids, NOW)
    answered = session.decide([first(id_) for id_ in ids], NOW)[0]
    assert [lease.digest for lease in leases] == [decision.digest for decision in answered]
    assert {lease.digest for lease in leases} == {old.digest, new.digest}
    session.break_(new.digest, "it crashed")
    assert {lease.digest for lease in session.lease(ids, NOW)} == {old.digest}


def test_any_replica_takes_back_what_another_gave_as_long_as_it_is_of_the_same_run(world: World) -> None:
    artifact = world.served()
    one, other = session_of(world, artifact), session_of(world, artifact)
    (lease,) = one.lease(["mine"], NOW)
    assert other.lease(["mine"], NOW) == [lease]
    assert proven(other, acted(one, lease)).id == "mine"
    with pytest.raises(Refused, match="not begun under a lease"):
        proven(other, acted(one, lease), run_key=b"o" * 32)


@pytest.mark.parametrize(
    "changes",
    [{"episode": "other"}, {"given_at": NOW + 1e-6}, {"seal": "0" * 64}, {"seal": "0" * 63 + "\n"}],
    ids=["episode", "given_at", "seal", "short"],
)
def test_nothing_but_the_lease_as_it_was_given_proves_an_episode(world: World, changes: dict[str, Any]) -> None:
    session = session_of(world, world.served())
    (lease,) = session.lease(["mine"], NOW)
    assert proven(session, acted(session, lease)).id == "mine"
    with pytest.raises(Refused, match="not begun under a lease"):
        proven(session, acted(session, lease, **changes))


def test_another_policy_than_the_leases_proves_nothing(world: World) -> None:
    old, new = world.served(1.0), world.served(2.0, NOW + 1)
    session = session_of(world, old, new)
    (lease,) = session.lease(["mine"], NOW)
    assert lease.digest == new.digest
    with pytest.raises(Refused, match="not begun under a lease"):
        proven(session, acted(session, lease, digest=old.digest))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(num_steps=st.integers(1, 40), seed=st.integers(0, 2**32 - 1), data=st.data())
def test_an_action_that_the_policy_never_gave_is_refused_by_its_step(
    world: World, num_steps: int, seed: int, data: st.DataObject
) -> None:
    session = session_of(world, world.served())
    (lease,) = session.lease(["mine"], NOW)
    row = acted(session, lease, num_steps, seed)
    t = data.draw(st.integers(0, num_steps - 1))
    changed = [int(not action) if i == t else action for i, action in enumerate(row.raw_actions)]
    with pytest.raises(Refused, match=rf"^raw_actions\[{t}\]: Policy {lease.digest[:12]} never gave"):
        proven(session, msgspec.structs.replace(row, raw_actions=changed))


class Threshold(Policy):
    """Takes action 1 where the draw is below a threshold; the logp tells which action it was."""

    def __init__(self, like: Policy, threshold: Array) -> None:
        self.__dict__.update(like.__dict__)
        self._threshold = threshold

    def act(self, observations: Any, draws: Any, rule: Any = None) -> Any:
        actions = (draws[:, 0] < self._threshold[: len(draws)]).astype(np.int64)
        return actions, -1.0 - actions


def test_an_action_on_the_other_side_of_a_boundary_counts_with_its_own_log_probability(world: World) -> None:
    session = session_of(world, world.served())
    (lease,) = session.lease(["mine"], NOW)
    policy, keys, times = session.policy(lease.digest), np.array([lease.draw_key], np.uint64), np.array([0])
    assert policy is not None
    draw = draws(keys, times, 1)[:, 0]
    for beside, is_same in ((TOLERANCE / 2, True), (-TOLERANCE / 2, True), (3 * TOLERANCE, False)):
        near = Threshold(policy, draw + beside)
        (action,), (logp,) = near.act(np.zeros((1, 4)), draw[:, None])
        told = np.array([action, 1 - action])
        same, logps = gave(near, np.zeros((1, 4)), keys, times, told[:1])
        assert (same.tolist(), logps.tolist()) == ([True], [logp])
        same, logps = gave(near, np.zeros((1, 4)), keys, times, told[1:])
        assert same.tolist() == [is_same]
        assert not is_same or logps.tolist() == [-1.0 - (1 - action)]


def test_a_policy_that_breaks_refuses_the_episode_and_nothing_else(world: World) -> None:
    session = session_of(world, world.served())
    (lease,) = session.lease(["mine"], NOW)
    (told,) = session.told([acted(session, lease)])
    policy = session.policy(lease.digest)
    assert policy is not None
    with pytest.raises(Refused, match="could not be asked"):
        prove(told, Broken(policy, crash), RUN_KEY, "t", NOW)
    with pytest.raises(Refused, match="can't be loaded"):
        prove(told, None, RUN_KEY, "t", NOW)


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        ((NOW + 1, NOW + 2), (NOW + 1, NOW + 2)),
        ((NOW - 500, NOW + 2), (NOW, NOW + 2)),
        ((NOW + 1, NOW + 500), (NOW + 1, NOW + 10)),
        ((NOW + 500, NOW - 500), (NOW + 10, NOW + 10)),
        ((0.0, 0.0), (NOW, NOW)),
    ],
)
def test_times_of_another_clock_are_moved_between_the_lease_and_now(
    world: World, told: tuple[float, float], kept: tuple[float, float]
) -> None:
    session = session_of(world, world.served())
    (lease,) = session.lease(["mine"], NOW)
    episode = proven(session, acted(session, lease, started_at=told[0], ended_at=told[1]))
    assert (episode.started_at, episode.ended_at) == kept


@pytest.mark.parametrize(("settled_at", "kept"), [(0.0, NOW + 5), (NOW, NOW + 5), (NOW + 1, NOW), (NOW + 9, NOW)])
def test_an_episode_whose_lease_was_drawn_by_another_share_begins_with_its_lease(
    world: World, settled_at: float, kept: float
) -> None:
    session = session_of(world, world.served())
    (lease,) = session.lease(["mine"], NOW)
    (told,) = session.told([acted(session, lease, started_at=NOW + 5, ended_at=NOW + 6)])
    episode = prove(told, session.policy(lease.digest), RUN_KEY, "t", NOW + 10, settled_at)
    assert (episode.started_at, episode.ended_at) == (kept, NOW + 6)


@pytest.mark.parametrize(
    ("age_s", "settled_at", "kept"),
    [(4.0, 0.0, NOW + 6), (0.0, 0.0, NOW + 10), (500.0, 0.0, NOW), (4.0, NOW, NOW + 6), (4.0, NOW + 1, NOW)],
)
def test_what_runs_has_its_place_by_the_servers_clock(
    world: World, age_s: float, settled_at: float, kept: float
) -> None:
    session = session_of(world, world.served())
    (lease,) = session.lease(["mine"], NOW)
    row = RunningRow(lease.episode, lease.digest, lease.given_at, lease.seal, age_s)
    assert begun([row], RUN_KEY, NOW + 10, settled_at) == {"mine": kept}
    assert begun([row], b"o" * 32, NOW + 10, settled_at) == {}, "another run's holds none"


nan = float("nan")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"observations": [[0.0] * 4] * 5}, "observations"),
        ({"rewards": [1.0] * 4}, "rewards"),
        ({"rewards": [1.0, None, nan, 1.0, 1.0]}, "rewards[2]"),
        ({"raw_actions": [0, 1, 2, 0, 0]}, "raw_actions[2]"),
        ({"raw_actions": [0, 1, 0.0, 0, 0]}, "raw_actions[2]"),
        ({"observations": [[0.0] * 4] * 3 + [[0.0] * 3] + [[0.0] * 4] * 2}, "observations[3]"),
        ({"observations": [[0.0] * 4] * 5 + [[0.0, 1e300, 0.0, 0.0]]}, "observations[5][1]"),
        ({"terminated": False}, "terminated"),
        ({"truncated": True}, "terminated"),
    ],
)
def test_a_badly_formed_episode_is_named_by_its_field(world: World, changes: dict[str, Any], field: str) -> None:
    session = session_of(world, world.served())
    fine, bad = session.lease(["fine", "bad"], NOW)
    with pytest.raises(RejectedError) as caught:
        session.told([acted(session, fine), acted(session, bad, **changes)])
    assert (caught.value.status, caught.value.field) == (422, f"episodes[1].{field}")
    with pytest.raises(RejectedError, match="twice"):
        session.told([acted(session, fine), acted(session, fine)])


def test_without_a_policy_nothing_is_leased() -> None:
    with pytest.raises(RejectedError) as caught:
        Session(RUN_KEY).lease(["mine"], NOW)
    assert caught.value.status == 503


def test_a_lost_step_of_another_kind_of_cpu_keeps_the_log_probability_of_what_was_done(world: World) -> None:
    session = session_of(world, world.served())
    (decision,), _ = session.decide([first("mine")], NOW)
    policy = session.policy(decision.digest)
    assert policy is not None
    draw = draws([draw_key(RUN_KEY, "mine")], [0], 1)[:, 0]
    session.hold(Threshold(policy, draw + TOLERANCE / 2))
    for action in (0, 1):
        steps = session.resend([resent(first("mine"), decision, action=action)], NOW)
        assert steps is not None
        assert (steps.raw_actions.tolist(), steps.logps.tolist()) == ([action], [-1.0 - action])
