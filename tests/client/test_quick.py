"""A law: one decision after another is what `Policy.act` says to the last bit, by every rule and in every space."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel.client.quick import BLOCK, Quick
from flywheel.draws import draws
from flywheel.errors import FlywheelError, Refused, UsageError
from flywheel.policy import Policy, to_env
from flywheel.records import Leaf, Rule, Spec
from flywheel.spaces import flatten, width
from flywheel.task import spec_of
from flywheel.tasks import load
from flywheel.testing import linear_policy

CARTPOLE = spec_of(load("cartpole"))


def flat(size: int, dtype: str = "float32") -> dict[str, Any]:
    return {
        "observation_shape": (size,), "observation_dtype": dtype, "observation_low": (-np.inf,) * size,
        "observation_high": (np.inf,) * size, "observation_leaves": (),
    }  # fmt: skip


LEAVES = (
    Leaf(path=("place", 0), kind="box", shape=(2,), dtype="float32"),
    Leaf(path=("place", 1), kind="discrete", shape=(), dtype="int64", nvec=(3,), starts=(-1,)),
    Leaf(path=("lamps",), kind="multi_binary", shape=(2,), dtype="int8"),
    Leaf(path=("dials",), kind="multi_discrete", shape=(2,), dtype="int64", nvec=(2, 3), starts=(0, 0)),
)


def nested_observation(rng: np.random.Generator) -> Mapping[str, Any]:
    return {
        "place": (rng.normal(size=2).astype(np.float32), int(rng.integers(-1, 2))),
        "lamps": rng.integers(0, 2, 2).astype(np.int8),
        "dials": rng.integers(0, [2, 3]),
    }


NESTED = {**flat(sum(map(width, LEAVES))), "observation_leaves": LEAVES}
spaces = st.sampled_from([flat(1), flat(4), flat(9, "float64"), NESTED])


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    """Return a spec of any space, any kind of action and any acting rule."""
    kind: Any = draw(st.sampled_from(["discrete", "multi_discrete", "box"]))
    action: dict[str, Any]
    greedy, tau = draw(st.booleans()), draw(st.sampled_from([1.0, 0.3, 2.5]))
    if kind == "box":
        shape = draw(st.sampled_from([(1,), (6,), (2, 2), (17,)]))
        size = int(np.prod(shape))
        action = {
            "action_shape": shape, "num_actions": 0, "num_draws": size, "unsquash": draw(st.booleans()),
            "action_low": (-2.0,) * size, "action_high": (0.5,) * size,
            "rule": Rule(kind="gaussian", greedy=greedy, temperature=tau, squashed=draw(st.booleans())),
        }  # fmt: skip
    else:
        epsilon = draw(st.sampled_from([0.0, 0.1, 1.0]))
        nvec = tuple(draw(st.lists(st.integers(2, 7), min_size=1, max_size=12))) if kind == "multi_discrete" else ()
        rule: Any = "multi_categorical" if nvec else "categorical"
        action = {
            "action_shape": (len(nvec),) if nvec else (), "num_actions": 0 if nvec else draw(st.integers(2, 19)),
            "num_draws": len(nvec) or 1, "action_nvec": nvec, "action_starts": (3,) * len(nvec), "action_start": 2,
            "rule": Rule(kind=rule, greedy=greedy, temperature=tau, exploration_rate=epsilon),
        }  # fmt: skip
    return dataclasses.replace(CARTPOLE, action_kind=kind, **draw(spaces), **action)


@settings(max_examples=150)
@given(spec=specs(), seed=st.integers(0, 2**32 - 1), key=st.integers(0, 2**64 - 1), scale=st.sampled_from([0.1, 5.0]))
def test_it_acts_as_the_policy_does(spec: Spec, seed: int, key: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    gains = rng.normal(0.0, scale, (spec.num_outputs, *spec.observation_shape))
    policy = Policy(linear_policy(spec, gains)[0], spec)
    steps = [0, 1, 2, BLOCK - 1, BLOCK, 3, 70_000]
    observations = [
        nested_observation(rng) if spec.observation_leaves else rng.normal(size=spec.observation_shape) for _ in steps
    ]
    rows = np.stack([flatten(spec.observation_leaves, o) for o in observations]).astype(spec.observation_dtype)
    actions, logps = policy.act(rows, draws(np.full(len(steps), key, np.uint64), steps, spec.num_draws))
    quick = Quick(policy, key, "e")
    for i, t in enumerate(steps):
        quick.see(observations[i])
        action, logp = quick.act(t)
        assert np.array_equal(np.reshape(action, spec.action_shape), actions[i])
        assert logp() == logps[i]
        assert np.array_equal(quick.to_env(action), to_env(spec, actions[i : i + 1])[0])


def test_what_it_saw_is_told_as_json_carries_it() -> None:
    spec = dataclasses.replace(CARTPOLE, **flat(3, "float64"))
    quick = Quick(Policy(linear_policy(spec, np.zeros((2, 3)))[0], spec), 1, "e")
    assert quick.see([0.1, 2, np.float32(0.5)]) == [0.1, 2.0, 0.5]
    assert quick.see(np.array([1e308, 1e308, 0.0])) == [1e308, 1e308, 0.0]


@pytest.mark.parametrize(
    ("observation", "words"),
    [
        (np.zeros(3), r"shape \[3\], and the policy reads \[4\]"),
        (np.array([0, np.nan, 0, 0]), r"at \[1\] of episode 'e' is nan"),
        ([0.0, 0.0, 0.0, 1e39], r"at \[3\] of episode 'e' is inf"),
    ],
)
def test_what_it_can_not_read_is_named(observation: Any, words: str) -> None:
    quick = Quick(Policy(linear_policy(CARTPOLE, np.zeros((2, 4)))[0], CARTPOLE), 1, "e")
    with pytest.raises(UsageError, match=words):
        quick.see(observation)


def test_an_observation_of_another_space_is_named() -> None:
    spec = dataclasses.replace(CARTPOLE, **NESTED)
    quick = Quick(Policy(linear_policy(spec, np.zeros((2, 12)))[0], spec), 1, "e")
    with pytest.raises(FlywheelError, match="dials"):
        quick.see({**nested_observation(np.random.default_rng(0)), "dials": [5, 0]})


def test_a_policy_that_answers_infinity_is_refused() -> None:
    policy = Policy(linear_policy(CARTPOLE, np.full((2, 4), 1e38))[0], CARTPOLE, "ab" * 32)
    quick = Quick(policy, 1, "e")
    quick.see(np.full(4, 1e3))
    with pytest.raises(Refused, match="abababababab answered with a number that is not finite"):
        quick.act(0)


def test_a_gaussian_without_deviations_is_refused() -> None:
    box: dict[str, Any] = {"action_kind": "box", "action_shape": (2,), "num_draws": 2, "rule": Rule(kind="gaussian")}
    spec = dataclasses.replace(CARTPOLE, num_actions=0, **box)
    policy = Policy(linear_policy(spec, np.zeros((2, 4)))[0], spec)
    with pytest.raises(Refused, match="means without deviations"):
        Quick(policy, 1, "e")
