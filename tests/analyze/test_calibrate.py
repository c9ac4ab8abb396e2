"""The simulator's parameters are found in production's transitions, and what can't be found is named."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flywheel.analyze.calibrate import calibrate, obstacle
from flywheel.config import AnalyzeConfig
from flywheel.records import Episode
from flywheel.task import Task

Produce = Callable[..., list[Episode]]

CONFIG = AnalyzeConfig()


@pytest.mark.parametrize("num", [5, 40])
def test_a_pole_four_times_as_long_is_found(task: Task, produce: Produce, num: int) -> None:
    found = calibrate(task, produce(num, length=2.0), CONFIG)
    assert found is not None
    assert found.values["length"] == pytest.approx(2.0, rel=1e-3)
    assert found.values == pytest.approx({**task.nominal, "length": 2.0}, rel=1e-3)
    low, high = found.intervals["length"]
    assert low <= found.values["length"] <= high
    assert found.explained > 0.999
    assert found.not_identified == ("masscart", "masspole", "force_mag")


@pytest.mark.parametrize("noise", [0.001, 0.01])
def test_it_is_found_within_a_tenth_through_noisy_sensors(task: Task, produce: Produce, noise: float) -> None:
    before = produce(20, noise=noise)
    found = calibrate(task, produce(40, first=100, noise=noise, length=2.0), CONFIG, before=before)
    assert found is not None
    assert found.values["length"] == pytest.approx(2.0, rel=0.1)
    assert found.explained > 0.95


@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["gravity", "masscart", "masspole", "length", "force_mag"]),
    share=st.floats(0.05, 0.95),
    other=st.floats(0.7, 1.4),
)
def test_any_single_change_in_range_is_found_beside_another_gravity(
    task: Task, produce: Produce, name: str, share: float, other: float
) -> None:
    parameter = next(p for p in task.parameters if p.name == name)
    value = parameter.low * (parameter.high / parameter.low) ** share
    world = {**task.nominal, "gravity": 9.8 * other, name: value}
    found = calibrate(task, produce(20, **world), CONFIG)
    assert found is not None
    assert found.values == pytest.approx(world, rel=0.01)


def test_the_same_episodes_give_the_same_calibration(task: Task, produce: Produce) -> None:
    episodes = produce(10, length=1.0)
    assert calibrate(task, episodes, CONFIG) == calibrate(task, episodes, CONFIG)


def test_episodes_from_before_the_change_are_left_out(task: Task, produce: Produce) -> None:
    changed = produce(10, first=50, length=2.0)
    found = calibrate(task, [*produce(9), *changed], CONFIG)
    alone = calibrate(task, changed, CONFIG)
    assert found is not None and alone is not None
    assert found.values["length"] == pytest.approx(2.0, rel=1e-3)
    assert found.num_transitions == alone.num_transitions


def test_a_reset_inside_an_episode_is_left_out(task: Task, produce: Produce) -> None:
    first, second, *rest = produce(10, length=2.0)
    joined = dataclasses.replace(
        first,
        observations=np.concatenate([first.observations, second.observations]),
        raw_actions=np.concatenate([first.raw_actions, [0], second.raw_actions]),
        rewards=np.ones(first.num_steps + second.num_steps + 1),
    )
    found = calibrate(task, [joined, *rest], CONFIG)
    assert found is not None
    assert found.values["length"] == pytest.approx(2.0, rel=1e-3)
    assert found.explained > 0.999


def test_numbers_that_are_not_finite_are_left_out(task: Task, produce: Produce) -> None:
    first, *rest = produce(10, length=2.0)
    observations = first.observations.copy()
    observations[-1] = np.nan
    found = calibrate(task, [dataclasses.replace(first, observations=observations), *rest], CONFIG)
    assert found is not None
    assert found.values["length"] == pytest.approx(2.0, rel=1e-3)


def test_the_unchanged_world_is_nominal_and_fully_explained(task: Task, produce: Produce) -> None:
    found = calibrate(task, produce(10), CONFIG)
    assert found is not None
    assert found.values == pytest.approx(task.nominal, rel=1e-3)
    assert found.explained == 1.0


def test_a_push_that_no_parameter_makes_is_not_explained(task: Task, produce: Produce) -> None:
    found = calibrate(task, produce(20, push=0.1), CONFIG, before=produce(10, first=50))
    assert found is not None
    assert found.explained < CONFIG.explained


@pytest.mark.parametrize("factor", [-1.0, 10.0, 1e30])
def test_a_fit_on_the_edge_of_a_range_is_not_believed(task: Task, produce: Produce, factor: float) -> None:
    broken = [
        dataclasses.replace(e, observations=(e.observations * factor).astype(np.float32))
        for e in produce(20, first=100)
    ]
    found = calibrate(task, broken, CONFIG, before=produce(10))
    assert found is not None and found.explained == 0.0


def test_states_that_no_simulator_can_step_are_not_explained(task: Task, produce: Produce) -> None:
    broken = [dataclasses.replace(e, observations=e.observations * np.float32(1e30)) for e in produce(10)]
    in_float32 = dataclasses.replace(task, state=None)  # its predictions overflow
    found = calibrate(in_float32, broken, CONFIG)
    assert found is not None and found.explained == 0.0


def test_a_nominal_value_may_be_the_end_of_its_range(task: Task, produce: Produce) -> None:
    parameters = tuple(dataclasses.replace(p, low=p.nominal) if p.name == "gravity" else p for p in task.parameters)
    found = calibrate(dataclasses.replace(task, parameters=parameters), produce(10, length=2.0), CONFIG)
    assert found is not None and found.explained > 0.999


def test_a_frozen_sensor_is_named(task: Task, produce: Produce) -> None:
    def stuck(episode: Episode, *which: int) -> Episode:
        observations = episode.observations.copy()
        observations[:, which] = observations[0, which]
        return dataclasses.replace(episode, observations=observations)

    before, since = produce(5), produce(10, first=100, length=2.0)
    assert obstacle(task, since, before) == ""
    wholly = [stuck(e, 0, 1, 2, 3) for e in since]
    assert "no number of the observed state ever moves" in obstacle(task, wholly)
    assert calibrate(task, wholly, CONFIG) is None
    partly = [stuck(e, 1, 3) for e in since]
    assert "number 1, 3 of the observed state never moves" in obstacle(task, partly, before)
    assert calibrate(task, partly, CONFIG, before=before) is None
    assert obstacle(task, partly, [stuck(e, 1, 3) for e in before]) == "", "it never moved: a constant, not a sensor"


def test_noise_that_grew_is_not_explained(task: Task, produce: Produce) -> None:
    found = calibrate(task, produce(20, noise=0.01), CONFIG, before=produce(20, first=50, noise=0.001))
    assert found is not None
    assert found.explained < CONFIG.explained


def test_without_a_vector_form_the_same_is_found(task: Task, produce: Produce) -> None:
    episodes = produce(3, length=2.0)
    alone = calibrate(dataclasses.replace(task, vector=None), episodes, CONFIG)
    assert alone is not None
    assert alone.values["length"] == pytest.approx(2.0, rel=1e-3)


def test_a_range_that_reaches_zero_is_fitted_without_logs(task: Task, produce: Produce) -> None:
    parameters = tuple(dataclasses.replace(p, low=0.0) if p.name == "masspole" else p for p in task.parameters)
    found = calibrate(dataclasses.replace(task, parameters=parameters), produce(20, length=2.0), CONFIG)
    assert found is not None
    assert found.values["length"] == pytest.approx(2.0, rel=1e-3)


@pytest.mark.parametrize(
    ("without", "reason"),
    [
        ({"parameters": (), "edge_cases": (), "drift": {}}, "names no parameters"),
        ({"set_state": None, "edge_cases": ()}, "no set_state"),
        ({"observed_state": None}, "no observed_state"),
    ],
)
def test_a_task_that_can_not_be_calibrated_says_why(
    task: Task, produce: Produce, without: dict[str, object], reason: str
) -> None:
    poorer = dataclasses.replace(task, **without)  # type: ignore[arg-type]
    episodes = produce(3, length=2.0)
    assert reason in obstacle(poorer, episodes)
    assert calibrate(poorer, episodes, CONFIG) is None


def test_too_few_transitions_are_no_calibration(task: Task) -> None:
    none: list[Episode] = []
    assert "only 0 transitions" in obstacle(task, none)
    assert calibrate(task, none, CONFIG) is None
