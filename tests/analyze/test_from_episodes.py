"""Whole episodes are enough to find what changed, where no state can be set; and what they can't say is named."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from flywheel.analyze.from_episodes import calibrate, needed, obstacle
from flywheel.config import AnalyzeConfig
from flywheel.policy import Policy
from flywheel.records import Episode
from flywheel.simulate import play
from flywheel.task import Parameter, Task
from flywheel.tasks.cartpole import cartpole, set_parameters
from flywheel.testing import SHORT_POLE, load_linear

CONFIG = AnalyzeConfig(episodes=30, simulations=700)


def blind(*names: str) -> Task:
    """Return CartPole as a task that doesn't say what its state is, with some of its parameters."""
    some = tuple(p for p in cartpole.parameters if p.name in names)
    return dataclasses.replace(cartpole, observed_state=None, parameters=some, edge_cases=(), drift={})


TASK = blind("gravity", "length")


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load_linear(cartpole, SHORT_POLE, digest="served")


def produced(policy: Policy, num: int = 30, **world: float) -> list[Episode]:
    seeds = range(1000, 1000 + num)
    return play(cartpole, policy, seeds=seeds, parameters=[world] * num, draw_keys=seeds)


def test_a_longer_pole_is_found_within_its_interval_and_again(policy: Policy) -> None:
    episodes = produced(policy, length=2.0)
    found = calibrate(TASK, policy, episodes, CONFIG, seed=1)
    assert found is not None and found.method == "episodes"
    low, high = found.intervals["length"]
    assert low <= 2.0 <= high and high / low < 2.0
    assert found.explained >= CONFIG.explained_episodes
    assert found == calibrate(TASK, policy, episodes, CONFIG, seed=1)


def test_a_stuck_sensor_is_explained_by_no_parameter(policy: Policy) -> None:
    stuck = []
    for episode in produced(policy, length=2.0):
        observations = episode.observations.copy()
        observations[:, 3] = 0.0
        stuck.append(dataclasses.replace(episode, observations=observations))
    found = calibrate(TASK, policy, stuck, CONFIG, seed=1)
    assert found is not None and found.explained < CONFIG.explained_episodes


def test_the_unchanged_world_leaves_nothing_to_explain(policy: Policy) -> None:
    found = calibrate(TASK, policy, produced(policy), CONFIG, seed=1)
    assert found is not None and found.explained == 1.0
    for name, value in TASK.nominal.items():
        low, high = found.intervals[name]
        assert low <= value <= high


def test_what_nothing_depends_on_keeps_its_nominal_value_and_is_named(policy: Policy) -> None:
    def without_colour(env: object, values: dict[str, object]) -> None:
        set_parameters(env, {name: value for name, value in values.items() if name != "colour"})

    colour = Parameter("colour", 3.0, 1.0, 9.0)
    task = dataclasses.replace(
        blind("length"), parameters=(*blind("length").parameters, colour), set_parameters=without_colour
    )
    found = calibrate(task, policy, produced(policy, length=2.0), CONFIG, seed=1)
    assert found is not None and found.not_identified == ("colour",)
    assert found.values["colour"] == pytest.approx(3.0)


def test_only_whole_episodes_of_the_policy_in_service_are_read(policy: Policy) -> None:
    episodes = produced(policy, 10)
    assert obstacle(TASK, policy, episodes) == ""
    other = [dataclasses.replace(e, digests=("other",) * e.num_steps) for e in episodes[:3]]
    assert "only 7 whole episodes" in obstacle(TASK, policy, [*other, *episodes[3:]])
    lost = [dataclasses.replace(e, end="lost") for e in episodes]
    assert "only 0 whole episodes" in obstacle(TASK, policy, lost)
    nan = [dataclasses.replace(e, observations=e.observations * np.nan) for e in episodes]
    assert calibrate(TASK, policy, nan, CONFIG, seed=1) is None
    assert "isn't at hand" in obstacle(TASK, None, episodes)
    assert needed(TASK) and not needed(cartpole)


def test_a_task_without_parameters_says_so(policy: Policy) -> None:
    none = dataclasses.replace(TASK, parameters=())
    assert "names no parameters" in obstacle(none, policy, [])
