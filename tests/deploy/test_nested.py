"""Observations over the wire: what is sent arrives as Gymnasium flattens it, and a wrong part is named by its place."""

from __future__ import annotations

import json
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.spaces.utils import flatten as gymnasium_flatten
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel.client.observations import plain
from flywheel.deploy import columns
from flywheel.deploy.session import Session
from flywheel.deploy.wire import ActRow, RejectedError, parse, wire
from flywheel.draws import draw_key, draws
from flywheel.policy import Policy
from flywheel.spaces import leaves_of
from flywheel.task import spec_of
from flywheel.testing import load_linear
from tests.deploy.conftest import NOW
from tests.rooms import room, steered
from tests.test_spaces import SPACES

SPEC = spec_of(room)
WIRE = wire(SPEC.observation_leaves)
GOOD = '{"position": [0.5, 1], "mode": 1}'


def body(observation: str) -> bytes:
    return f'{{"steps": [{{"episode": "e", "t": 0, "observation": {observation}}}]}}'.encode()


def spec_for(space: gymnasium.Space[Any]) -> Any:
    flat = spaces.utils.flatten_space(space)
    shape, dtype = flat.shape, str(flat.dtype)
    changed = {"observation_leaves": leaves_of(space), "observation_shape": shape, "observation_dtype": dtype}
    return type(SPEC)(**{name: getattr(SPEC, name) for name in SPEC.__dataclass_fields__} | changed)


@settings(deadline=None, max_examples=80)
@given(SPACES, st.integers(0, 2**31))
def test_what_a_client_sends_arrives_as_gymnasium_flattens_it(space: gymnasium.Space[Any], seed: int) -> None:
    space.seed(seed)
    samples = [space.sample() for _ in range(3)]
    sent = plain(samples, ["a", "b", "c"])
    steps = [{"episode": str(i), "t": 0, "observation": o} for i, o in enumerate(sent)]
    read = parse(json.dumps({"steps": steps}).encode(), wire(leaves_of(space)).act)
    rows = columns.observations(read.steps, spec_for(space), "steps")
    expected = np.stack([gymnasium_flatten(space, sample) for sample in samples])  # type: ignore[arg-type]
    assert rows.dtype == expected.dtype and np.array_equal(rows, expected)


@pytest.mark.parametrize(
    ("observation", "field"),
    [
        ('{"position": [0, "1"], "mode": 1}', "steps[0].observation.position[1]"),
        ('{"position": [0, true], "mode": 1}', "steps[0].observation.position[1]"),
        ('{"position": [0, NaN], "mode": 1}', "steps[0].observation.position[1]"),
        ('{"position": [Infinity, 0], "mode": 1}', "steps[0].observation.position[0]"),
        ('{"position": [1e39, 0], "mode": 1}', "steps[0].observation.position[0]"),
        ('{"position": [1, 2, 3], "mode": 1}', "steps[0].observation.position"),
        ('{"position": [1], "mode": 1}', "steps[0].observation.position"),
        ('{"position": [1, 2], "mode": 0}', "steps[0].observation.mode"),
        ('{"position": [1, 2], "mode": 4}', "steps[0].observation.mode"),
        ('{"position": [1, 2], "mode": true}', "steps[0].observation.mode"),
        ('{"position": [1, 2], "mode": 1.5}', "steps[0].observation.mode"),
        ('{"position": [1, 2], "mode": NaN}', "steps[0].observation.mode"),
        ('{"position": [1, 2]}', "steps[0].observation"),
        ('{"position": [1, 2], "mode": 1, "more": 1}', "steps[0].observation"),
        ("[1, 0, 0, 1, 2]", "steps[0].observation"),
    ],
)
def test_a_wrong_part_is_named_by_its_place(observation: str, field: str) -> None:
    with pytest.raises(RejectedError) as caught:
        columns.observations(parse(body(observation), WIRE.act).steps, SPEC, "steps")
    assert (caught.value.status, caught.value.field) == (422, field)
    assert field in caught.value.sentence


def test_a_part_of_a_grid_is_named_by_all_its_indices() -> None:
    space = spaces.Tuple([spaces.Box(0, 1, (2, 2)), spaces.Discrete(2)])
    read = parse(body("[[[0, 1], [NaN, 1]], 1]"), wire(leaves_of(space)).act)
    with pytest.raises(RejectedError) as caught:
        columns.observations(read.steps, spec_for(space), "steps")
    assert caught.value.field == "steps[0].observation[0][1][0]"


def session_for(policy: Policy) -> Session:
    """Return a session that serves this policy."""
    from flywheel.deploy.admission import Admission

    session = Session(b"k" * 32)
    session.hold(policy)
    session.adopt(Admission(policy.digest, (policy.digest,), frozenset([policy.digest])))
    return session


@pytest.mark.parametrize("task", [room, steered], ids=["multi_discrete", "box"])
def test_decisions_on_nested_observations_are_the_policys_and_retries_are_exact(task: Any) -> None:
    spec = spec_of(task)
    policy = load_linear(task, np.random.default_rng(0).normal(size=(spec.num_outputs, 5)), digest="d" * 64)
    session = session_for(policy)
    (row,) = parse(body(GOOD), session.wire.act).steps
    (decision,), steps = session.decide([row], NOW)
    assert steps is not None and steps.observations.tolist() == [[1, 0, 0, 0.5, 1]]
    uniform = draws([draw_key(b"k" * 32, "e")], [0], spec.num_draws)
    actions, logps = policy.act(steps.observations, uniform)
    assert np.array_equal(actions, steps.raw_actions) and decision.logp == logps[0]
    assert decision.raw_action == actions[0].tolist()
    env = task.make_env()
    assert env.action_space.contains(np.array(decision.action, env.action_space.dtype))

    assert session.decide(parse(body(GOOD), session.wire.act).steps, NOW + 1) == ([decision], None)
    for other in ('{"position": [0.5, 1], "mode": 2}', '{"position": [0.5, 1.5], "mode": 1}'):
        with pytest.raises(RejectedError) as caught:
            session.decide(parse(body(other), session.wire.act).steps, NOW)
        assert caught.value.status == 409

    shared: dict[str, Any] = {"episode": "e", "digest": decision.digest, "observation": json.loads(GOOD)}
    end = shared | {"t": 1, "action": decision.raw_action, "reward": 1.0, "terminated": True, "truncated": False}
    again = shared | {"t": 0, "action": decision.raw_action}
    request = parse(json.dumps({"episodes": [end], "resend": [again]}).encode(), session.wire.end)
    ended, resent = session.end(request.episodes, NOW), session.resend(request.resend, NOW)
    assert resent is not None and np.array_equal(resent.raw_actions, steps.raw_actions)
    assert np.array_equal(resent.observations, steps.observations) and np.array_equal(resent.logps, steps.logps)
    assert ended.observations.tolist() == steps.observations.tolist()
    only_lost = parse(json.dumps({"resend": [again]}).encode(), session.wire.end)
    assert session.end(only_lost.episodes, NOW).observations.shape == (0, 5)


@pytest.mark.parametrize(
    ("action", "field"),
    [
        ([0.0, 2.0], "steps[0].action[1]"),
        ([-1.0, 0.0], "steps[0].action[0]"),
        ([0.5, 0.0], "steps[0].action[0]"),
        ([float("nan"), 0.0], "steps[0].action[0]"),
        ([0.0], "steps[0].action"),
        (0, "steps[0].action"),
    ],
)
def test_a_wrong_sub_action_is_named(action: Any, field: str) -> None:
    row = ActRow(episode="e", t=1, observation=None, digest="d" * 64, action=action)
    with pytest.raises(RejectedError) as caught:
        columns.repeated([row], SPEC)
    assert (caught.value.status, caught.value.field) == (422, field)
    columns.repeated([ActRow(episode="e", t=1, observation=None, digest="d" * 64, action=[2.0, 1.0])], SPEC)
