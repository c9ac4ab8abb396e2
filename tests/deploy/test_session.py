"""What a replica decides, from rows alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flywheel.deploy.outbox import join
from flywheel.deploy.session import REMEMBERED, Session
from flywheel.deploy.wire import ActRow, Decision, EndRow, RejectedError, ResentRow
from flywheel.draws import draw_key, draws
from flywheel.policy import bundle
from flywheel.records import Artifact
from flywheel.verdicts import admit
from tests.deploy.conftest import NOW, World

RUN_KEY = b"k" * 32
OBSERVATION = [0.01, 0.02, 0.03, 0.04]


def session_of(world: World, *artifacts: Artifact) -> Session:
    """Return a session that holds the registry's champion and more."""
    session = Session(RUN_KEY, max_batch=1024)
    for artifact in artifacts:
        verdict = world.registry.verdict(artifact.digest)
        assert verdict is not None
        session.hold(admit(bundle(artifact), verdict, world.registry.task, world.registry.keys.public))
    session.adopt(world.registry.admission())
    return session


def first(episode: str = "e", observation: list[float] | None = None) -> ActRow:
    return ActRow(episode=episode, t=0, observation=observation or OBSERVATION)


def after(decision: Decision, **changes: Any) -> ActRow:
    """Return the next row of an episode, repeating an answer."""
    fields: dict[str, Any] = {
        "episode": decision.episode, "t": decision.t + 1, "observation": OBSERVATION, "reward": 1.0,
        "digest": decision.digest, "action": decision.raw_action,
    } | changes  # fmt: skip
    return ActRow(**fields)


def over(decision: Decision, **changes: Any) -> EndRow:
    fields: dict[str, Any] = {
        "episode": decision.episode, "t": decision.t + 1, "observation": OBSERVATION, "reward": 1.0,
        "digest": decision.digest, "action": decision.raw_action, "terminated": True, "truncated": False,
    } | changes  # fmt: skip
    return EndRow(**fields)


def resent(row: ActRow, decision: Decision, **changes: Any) -> ResentRow:
    fields: dict[str, Any] = {
        "episode": row.episode, "t": row.t, "observation": row.observation, "reward": row.reward,
        "digest": decision.digest, "action": decision.raw_action,
    } | changes  # fmt: skip
    return ResentRow(**fields)


def other(decision: Decision) -> int:
    """Return the action that was not given."""
    return 0 if decision.raw_action == 1 else 1


def test_the_observer_is_told_what_the_client_repeated(world: World) -> None:
    session = session_of(world, world.served())
    (one, two), begun = session.decide([first("a"), first("b")], NOW)
    _, going_on = session.decide([first("c"), after(one)], NOW)
    ended = session.end([over(two)], NOW)
    again = session.resend([resent(first("a"), one)], NOW)
    assert begun is not None and going_on is not None and again is not None
    assert begun.repeated_digests == ("", "") and again.repeated_digests == ("",)
    assert going_on.repeated_digests == ("", one.digest) and going_on.repeated_actions[1] == one.raw_action
    assert ended.repeated_digests == (two.digest,) and ended.repeated_actions.tolist() == [two.raw_action]


def test_a_decision_is_a_function_of_digest_observation_episode_and_t(world: World) -> None:
    artifact = world.served()
    rows = [first(f"e{i}", [0.01 * i, -0.02, 0.03, 0.01 * i]) for i in range(300)]
    decisions, steps = session_of(world, artifact).decide(rows, NOW)
    assert steps is not None
    keys = [draw_key(RUN_KEY, row.episode) for row in rows]
    for i in (0, 7, 255, 256, 299):
        alone, _ = session_of(world, artifact).decide([rows[i]], NOW + 9)
        assert alone == [decisions[i]], "the batch it is in doesn't matter, nor the replica, nor the time"
    np.testing.assert_array_equal(steps.draw_keys, np.array(keys, dtype=np.uint64))
    assert draws(keys[:1], [0], 1).shape == (1, 1)
    assert np.isnan(steps.rewards).all()
    assert set(steps.digests) == {artifact.digest}


def test_steps_hold_what_was_answered(world: World) -> None:
    session = session_of(world, world.served())
    (decision,), _ = session.decide([first()], NOW)
    (second,), piece = session.decide([after(decision)], NOW + 1)
    assert piece is not None
    steps = join([piece])
    assert (steps.episodes, steps.t.tolist(), steps.rewards.tolist(), steps.ends) == (("e",), [1], [1.0], ("no",))
    assert steps.raw_actions.tolist() == [second.raw_action]
    assert steps.logps.tolist() == [second.logp]
    assert steps.observations.dtype == np.float32
    assert steps.seen_at.tolist() == [NOW + 1]


def test_a_retry_gets_the_same_answer_and_is_not_logged_again(world: World) -> None:
    old = world.served(1.0)
    session = session_of(world, old)
    answer = session.decide([first()], NOW)[0]
    new = world.served(2.0, NOW + 1)
    verdict = world.registry.verdict(new.digest)
    assert verdict is not None
    session.hold(admit(bundle(new), verdict, world.registry.task, world.registry.keys.public))
    session.adopt(world.registry.admission())
    assert session.decide([first()], NOW + 2) == (answer, None)
    assert session.decide([first("other")], NOW + 2)[0][0].digest == new.digest


def test_an_episode_keeps_its_policy_while_that_is_admissible(world: World) -> None:
    old, new = world.served(1.0), world.served(2.0, NOW + 1)
    decision = Decision("e", 4, old.digest, 0, 0, 0.0)
    both, only_new = session_of(world, old, new), session_of(world, new)
    assert both.decide([after(decision)], NOW)[0][0].digest == old.digest
    assert only_new.wanted([after(decision)]) == {old.digest}
    assert only_new.decide([after(decision)], NOW)[0][0].digest == new.digest, "it can't be loaded: the episode goes on"
    world.registry._condemn(old.digest, "fell over", NOW)
    both.adopt(world.registry.admission())
    assert both.decide([after(decision, t=7)], NOW)[0][0].digest == new.digest


def test_other_content_is_a_conflict_and_changes_nothing(world: World) -> None:
    session = session_of(world, world.served())
    (decision, _), _ = session.decide([first(), first("f")], NOW)
    for row in (
        first("e", [0.5, 0.0, 0.0, 0.0]),
        after(decision, action=other(decision)),
        after(decision, digest="0" * 64),
    ):
        with pytest.raises(RejectedError) as caught:
            session.decide([first("g"), row], NOW)
        assert (caught.value.status, caught.value.field[:8]) == (409, "steps[1]")
    assert session.decide([first("g"), after(decision)], NOW)[1] is not None, "neither row was remembered"


def test_an_end_that_contradicts_an_answer_is_a_conflict(world: World) -> None:
    session = session_of(world, world.served())
    (decision,), _ = session.decide([first()], NOW)
    (second,), _ = session.decide([after(decision)], NOW)
    for row in (over(second, t=1), over(second, action=other(second)), over(second, digest="0" * 64)):
        with pytest.raises(RejectedError) as caught:
            session.end([row], NOW)
        assert caught.value.status == 409
    steps = session.end([over(second)], NOW)
    assert (steps.t.tolist(), steps.ends, steps.rewards.tolist()) == ([2], ("terminated",), [1.0])
    assert session.end([over(second, terminated=False, truncated=True)], NOW).ends == ("truncated",)


def test_lost_steps_are_computed_again_exactly(world: World) -> None:
    artifact = world.served()
    rows = [first(f"e{i}", [0.002 * i, 0.0, -0.001 * i, 0.0]) for i in range(100)]
    decisions, steps = session_of(world, artifact).decide(rows, NOW)
    again = session_of(world, artifact).resend(
        [resent(row, decision) for row, decision in zip(rows, decisions, strict=True)], NOW
    )
    assert steps is not None
    assert again is not None
    for name in ("t", "observations", "raw_actions", "logps", "draw_keys", "rewards"):
        np.testing.assert_array_equal(getattr(again, name), getattr(steps, name))
    assert again.digests == steps.digests


def test_a_lost_step_that_never_was_is_a_conflict(world: World) -> None:
    session = session_of(world, world.served())
    (decision,), _ = session.decide([first()], NOW)
    with pytest.raises(RejectedError, match="never gave this action") as caught:
        session.resend([resent(first(), decision, action=other(decision))], NOW)
    assert (caught.value.status, caught.value.field) == (409, "resend[0].action")
    assert session.resend([], NOW) is None


def test_without_a_policy_nothing_is_answered() -> None:
    with pytest.raises(RejectedError) as caught:
        Session(RUN_KEY).decide([first()], NOW)
    assert caught.value.status == 503


nan, inf = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("row", "field"),
    [
        (first("e", [0.0, 0.0, 0.0]), "steps[0].observation"),
        (first("e", [0.0] * 5), "steps[0].observation"),
        (first("e", [0.0, nan, 0.0, 0.0]), "steps[0].observation[1]"),
        (first("e", [0.0, 0.0, -inf, 0.0]), "steps[0].observation[2]"),
        (first("e", [0.0, 0.0, 0.0, 1e300]), "steps[0].observation[3]"),
        (ActRow(episode="e", t=0, observation=OBSERVATION, reward=1.0), "steps[0].reward"),
        (ActRow(episode="e", t=0, observation=OBSERVATION, action=1), "steps[0].action"),
        (ActRow(episode="e", t=1, observation=OBSERVATION, action=1), "steps[0].digest"),
        (ActRow(episode="e", t=1, observation=OBSERVATION, digest="0" * 64), "steps[0].action"),
        (ActRow(episode="e", t=1, observation=OBSERVATION, digest="0" * 64, action=2), "steps[0].action"),
        (ActRow(episode="e", t=1, observation=OBSERVATION, digest="0" * 64, action=-1), "steps[0].action"),
        (ActRow(episode="e", t=1, observation=OBSERVATION, digest="0" * 64, action=1.0), "steps[0].action"),
        (ActRow(episode="e", t=1, observation=OBSERVATION, digest="0" * 64, action=[1.0]), "steps[0].action"),
        (ActRow(episode="e", t=1, observation=OBSERVATION, digest="0" * 64, action=1, reward=nan), "steps[0].reward"),
    ],
)
def test_a_row_that_does_not_fit_is_named(world: World, row: ActRow, field: str) -> None:
    session = session_of(world, world.served())
    with pytest.raises(RejectedError) as caught:
        session.decide([row, first("fine")], NOW)
    assert (caught.value.status, caught.value.field) == (422, field)
    assert session.decide([first("fine")], NOW)[1] is not None, "nothing was remembered of the rejected request"


def test_too_many_rows_and_an_episode_twice_are_named(world: World) -> None:
    session = session_of(world, world.served())
    with pytest.raises(RejectedError, match="At most 1024") as caught:
        session.decide([first(str(i)) for i in range(1025)], NOW)
    assert caught.value.status == 422
    with pytest.raises(RejectedError, match="twice"):
        session.decide([first(), first()], NOW)


def test_an_end_has_to_say_how(world: World) -> None:
    session = session_of(world, world.served())
    (decision,), _ = session.decide([first()], NOW)
    with pytest.raises(RejectedError) as caught:
        session.end([over(decision, terminated=False)], NOW)
    assert (caught.value.status, caught.value.field) == (422, "episodes[0].terminated")


def test_memory_of_silent_episodes_is_bounded(world: World) -> None:
    session = session_of(world, world.served())
    for start in range(0, REMEMBERED + 1024, 1024):
        session.decide([first(str(i)) for i in range(start, start + 1024)], NOW)
    assert len(session._last) == REMEMBERED


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=6), seed=st.integers(0, 2**32 - 1))
def test_retries_anywhere_change_no_answer(world: World, sizes: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    artifact = world.served()
    plain, retried = session_of(world, artifact), session_of(world, artifact)
    before: dict[str, Decision] = {}
    for size in sizes:
        observations = rng.normal(0, 0.1, (size, 4)).tolist()
        rows = [
            after(before[str(i)], observation=o) if str(i) in before else first(str(i), o)
            for i, o in enumerate(observations)
        ]
        decisions, _ = plain.decide(rows, NOW)
        logged = 0
        for _ in range(rng.integers(1, 4)):
            again, piece = retried.decide(rows, NOW)
            assert again == decisions
            logged += 0 if piece is None else len(join([piece]).t)
        assert logged == size, "each step is logged once"
        before |= {decision.episode: decision for decision in decisions}
