"""Spaces: rows are Gymnasium's own flattening, whatever the nesting; what can't work is refused by name."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import gymnasium
import msgspec
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.spaces.utils import flatten as gymnasium_flatten
from gymnasium.spaces.utils import flatten_space
from gymnasium.vector import SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel.errors import FlywheelError, UsageError
from flywheel.records import Spec
from flywheel.spaces import flatten, flatten_batch, flatten_each, leaves_of, seen_spaces
from flywheel.task import spec_of
from flywheel.tasks.cartpole import cartpole
from tests.rooms import Room, room, steered

SHAPES = st.lists(st.integers(1, 3), max_size=3).map(tuple)


def boxes() -> st.SearchStrategy[gymnasium.Space[Any]]:
    kinds = st.sampled_from(["float32", "float64", "int16", "bool"])
    return st.builds(lambda shape, kind: spaces.Box(0, 1 if kind == "bool" else 9, shape, kind), SHAPES, kinds)


def multi_discretes() -> st.SearchStrategy[gymnasium.Space[Any]]:
    def build(shape: tuple[int, ...], seed: int) -> gymnasium.Space[Any]:
        rng = np.random.default_rng(seed)
        return spaces.MultiDiscrete(rng.integers(1, 5, shape), start=rng.integers(-3, 4, shape))

    return st.builds(build, st.lists(st.integers(1, 3), min_size=1, max_size=2).map(tuple), st.integers(0, 99))


LEAVES = st.one_of(
    boxes(),
    multi_discretes(),
    st.builds(lambda n, start: spaces.Discrete(n, start=start), st.integers(1, 5), st.integers(-3, 3)),
    st.lists(st.integers(1, 3), min_size=1, max_size=2).map(lambda shape: spaces.MultiBinary(shape)),
)
NAMES = st.text("ab 01._f", max_size=4)
SPACES = st.recursive(
    LEAVES,
    lambda part: st.one_of(
        st.lists(part, min_size=1, max_size=3).map(lambda parts: spaces.Tuple(parts)),
        st.dictionaries(NAMES, part, min_size=1, max_size=3).map(lambda parts: spaces.Dict(parts)),
    ),
    max_leaves=6,
)


class Shows(gymnasium.Env[Any, Any]):
    """An environment that shows samples of a space."""

    def __init__(self, space: gymnasium.Space[Any]) -> None:
        self.observation_space, self.action_space = space, spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}


@settings(deadline=None, max_examples=150)
@given(SPACES, st.integers(0, 2**31))
def test_rows_are_gymnasiums_own_flattening(space: gymnasium.Space[Any], seed: int) -> None:
    space.seed(seed)
    leaves = leaves_of(space)
    samples = [space.sample() for _ in range(4)]
    expected = np.stack([gymnasium_flatten(space, sample) for sample in samples])  # type: ignore[arg-type]
    rows = flatten_each(leaves, samples)
    flat = flatten_space(space)
    assert isinstance(flat, spaces.Box)
    assert rows.dtype == expected.dtype == flat.dtype and np.array_equal(rows, expected)
    assert rows.shape[1:] == flat.shape
    one = flatten(leaves, samples[1])
    assert one.dtype == rows.dtype and np.array_equal(one, rows[1])


@settings(deadline=None, max_examples=40)
@given(SPACES, st.integers(0, 2**20))
def test_a_vector_environments_batch_gives_the_same_rows(space: gymnasium.Space[Any], seed: int) -> None:
    envs: gymnasium.vector.VectorEnv[Any, Any, Any] = SyncVectorEnv([lambda: Shows(space)] * 3)
    seen, _ = envs.reset(seed=seed)
    rows = flatten_batch(leaves_of(space), seen)
    for i in range(3):
        space.seed(seed + i)
        assert np.array_equal(rows[i], flatten(leaves_of(space), space.sample()))


def test_a_flat_box_has_no_leaves_and_its_rows_are_left_alone() -> None:
    assert spec_of(cartpole).observation_leaves == leaves_of(spaces.Box(0, 1, (3,))) == ()
    batch = np.ones((2, 3))
    assert flatten_batch((), batch) is batch


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (spaces.Box(0, 255, (8, 8, 3), np.uint8), "image"),
        (spaces.Dict({"eye": spaces.Box(0, 255, (4, 4), np.uint8)}), "image.*at eye.*FlattenObservation"),
        (spaces.Box(0, 1, (65, 64)), "4160 numbers.*4096"),
        (spaces.Box(0, 1, (5000,)), "5000 numbers"),
        (spaces.Discrete(5000), "5000 numbers"),
        (spaces.Tuple([spaces.Discrete(2), spaces.Text(5)]), r"Text.*at \[1\]"),
        (spaces.Dict({"a": spaces.Dict({"b": spaces.Sequence(spaces.Discrete(2))})}), r"Sequence.*at a\.b"),
        (spaces.Graph(spaces.Box(0, 1, (1,)), None), "Graph"),
        (spaces.OneOf([spaces.Discrete(2), spaces.Discrete(3)]), "OneOf"),
        (spaces.Dict({}), "at least one part"),
        (spaces.Tuple([spaces.Discrete(2), spaces.Tuple([])]), r"at \[1\].*at least one part"),
        (spaces.Dict({1: spaces.Discrete(2)}), "names that are text"),  # type: ignore[dict-item]
    ],
)
def test_what_can_not_be_observed_is_refused_by_name(space: gymnasium.Space[Any], words: str) -> None:
    with pytest.raises(UsageError, match=f"Task mine observes.*{words}"):
        leaves_of(space, "Task mine")


@pytest.mark.parametrize(
    ("observation", "words"),
    [
        ({"mode": 4, "position": np.zeros(2)}, "at mode is 4; its space has 3 values from 1"),
        ({"mode": 0, "position": np.zeros(2)}, "at mode is 0"),
        ({"mode": 1, "position": np.zeros(3)}, r"at position has the shape \[3\]"),
        ({"mode": 1}, "at position does not fit"),
        ({"mode": "one", "position": np.zeros(2)}, "at mode does not fit"),
        (np.zeros(3), "does not fit"),
    ],
)
def test_an_observation_out_of_its_space_is_named(observation: Any, words: str) -> None:
    with pytest.raises(FlywheelError, match=words):
        flatten(leaves_of(Room.observation_space), observation)


def test_the_spec_survives_json_and_manifests_from_before_are_read() -> None:
    spec = spec_of(room)
    assert (spec.observation_shape, spec.observation_dtype) == ((5,), "float64")
    assert spec.observation_low == (0, 0, 0, -9, -9) and spec.observation_high == (1, 1, 1, 9, 9)
    assert (spec.action_kind, spec.action_nvec, spec.action_starts, spec.num_draws) == (
        "multi_discrete", (3, 2), (-1, 0), 2,
    )  # fmt: skip
    assert (spec.num_outputs, spec_of(steered).num_outputs, spec_of(cartpole).num_outputs) == (5, 4, 2)
    plain = json.loads(json.dumps(dataclasses.asdict(spec)))
    assert msgspec.convert(plain, Spec) == spec
    old = json.loads(json.dumps(dataclasses.asdict(spec_of(cartpole))))
    for name in ("observation_leaves", "action_nvec", "action_starts"):
        del old[name]
    assert msgspec.convert(old, Spec) == spec_of(cartpole)


def test_the_trainer_sees_flat_boxes_and_actions_without_starts() -> None:
    observation, action = seen_spaces(spec_of(room))
    assert observation == spaces.Box(np.array([0, 0, 0, -9, -9]), np.array([1, 1, 1, 9, 9]), dtype=np.float32)
    assert action == spaces.MultiDiscrete([3, 2])
    assert seen_spaces(spec_of(steered))[1] == spaces.Box(-1, 1, (2,))
    assert seen_spaces(spec_of(cartpole))[1] == spaces.Discrete(2)
