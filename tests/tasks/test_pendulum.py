"""Pendulum as a task: an exact vector form, failing and margin, states whose angle turns, and a drift that matters."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from flywheel.analyze.calibrate import calibrate
from flywheel.config import AnalyzeConfig
from flywheel.policy import Policy
from flywheel.records import Array, Episode
from flywheel.simulate import play
from flywheel.tasks.pendulum import (
    NUM_STEPS,
    Pendulums,
    observed_state,
    pendulum,
    set_parameters,
    set_state,
    state,
)
from flywheel.testing import check_worlds, load_linear


class Swing:
    """A controller that pumps energy into the rod and holds it upright: it masters the nominal world."""

    def __init__(self) -> None:
        self._idle = load_linear(pendulum, np.zeros((2, 3)))
        self.spec, self.digest = self._idle.spec, "swing"

    def act(self, observations: Array, draws: Array, rule: Any = None) -> tuple[Array, Array]:
        """Return torques as raw actions: half of the environment's."""
        cosine, sine, speed = np.asarray(observations, np.float64).T
        energy = speed**2 / 6 + 5 * (cosine - 1)  # J, 0 at rest upright; for the nominal rod
        pump = np.where(energy < 0, np.sign(speed) + (speed == 0), -np.sign(speed))
        hold = -(10 * np.arctan2(sine, cosine) + 3 * speed)
        torque = np.where(cosine > 0.9, hold, 2 * pump)
        return (np.clip(torque, -2, 2) / 2).astype(np.float32)[:, None], np.zeros(len(observations))


SWING: Any = Swing()


def played(policy: Policy, num: int = 40, **parameters: float) -> list[Episode]:
    return play(pendulum, policy, seeds=range(num), parameters=[parameters] * num, draw_keys=range(num))


def test_worlds_are_functions_of_their_seed_in_the_vector_form_and_alone() -> None:
    check_worlds(pendulum)


def test_single_and_vector_form_step_alike_with_any_parameters_and_states() -> None:
    rng = np.random.default_rng(0)
    values = {p.name: rng.uniform(p.low, p.high, 64) for p in pendulum.parameters}
    states = rng.uniform([-9.0, -8.0], [9.0, 8.0], (64, 2))
    actions = rng.uniform(-3.0, 3.0, (64, 1)).astype(np.float32)
    worlds = Pendulums(64)
    worlds.reset(seed=0)
    set_parameters(worlds, values)
    shown = set_state(worlds, states)
    observations, rewards, *_ = worlds.step(actions)
    env = pendulum.make_env()
    for i in range(64):
        env.reset(seed=0)
        set_parameters(env, {name: column[i] for name, column in values.items()})
        assert (set_state(env, states[i]) == shown[i]).all()
        observation, reward, *_ = env.step(np.clip(actions[i], -2, 2))
        assert (observation == observations[i]).all() and reward == rewards[i]
        assert (state(env) == state(worlds)[i]).all()


def test_a_vector_world_that_ended_begins_again_and_one_that_is_moved_does_not() -> None:
    worlds = Pendulums(2)
    worlds.reset(seed=1)
    still = np.zeros((2, 1), np.float32)
    for _ in range(NUM_STEPS - 1):
        assert not worlds.step(still)[3].any()
    assert worlds.step(still)[3].all()
    moved = state(worlds)
    moved[0] = (0.5, 0.0)
    set_state(worlds, moved)
    observations, rewards, _, truncated, _ = worlds.step(still)
    assert not truncated.any() and rewards[0] < 0 and rewards[1] == 0
    assert abs(observations[0, 0] - np.cos(0.5)) < 0.1, "it goes on from where it was put"
    assert worlds.num_steps.tolist() == [1, 0]


def test_set_state_gives_back_the_observation_and_observed_state_the_state() -> None:
    env = pendulum.make_env()
    env.reset(seed=3)
    for angle in (-3.0, 0.0, 2.5):
        observation = set_state(env, (angle, -4.0))
        assert observation.dtype == np.float32 and np.allclose(observed_state(observation), (angle, -4.0), atol=1e-6)


def test_nominal_parameters_are_gymnasiums_own() -> None:
    world: Any = pendulum.make_env().unwrapped
    assert {name: getattr(world, name) for name in pendulum.nominal} == pendulum.nominal
    assert (world.max_speed, world.max_torque, world.dt) == (8, 2.0, 0.05)


def test_failed_and_margin_agree() -> None:
    assert pendulum.margin is not None
    held = played(SWING)
    hanging = played(load_linear(pendulum, np.zeros((2, 3)), bias=[0.0, -5.0]))
    assert sum(episode.failed for episode in held) == 0
    assert all(episode.failed for episode in hanging)
    assert all((pendulum.margin(episode) <= 0) == episode.failed for episode in [*held, *hanging])
    assert not pendulum.failed(dataclasses.replace(hanging[0], end="lost"))
    assert pendulum.return_range is not None
    low, high = pendulum.return_range
    assert all(low <= episode.total <= high for episode in [*held, *hanging])


def test_the_nominal_world_and_every_edge_case_of_it_can_be_mastered() -> None:
    for case in pendulum.edge_cases:
        start: dict[str, Any] = {"parameters": [case.parameters] * 20, "states": [case.state] * 20}
        episodes = play(pendulum, SWING, seeds=range(20), draw_keys=range(20), **start)
        assert sum(episode.failed for episode in episodes) == 0, case.name


def test_drift_makes_the_nominal_controller_worse() -> None:
    before, after = played(SWING, 100), played(SWING, 100, **pendulum.drift)
    assert np.mean([e.total for e in after]) < np.mean([e.total for e in before]) - 30
    assert sum(episode.failed for episode in after) == 0, "and yet the changed world can be mastered"


@pytest.mark.parametrize("parameters", [pendulum.drift, {"m": 1.5}, {"g": 12.0, "l": 0.9}])
def test_what_calibration_finds_moves_the_rod_as_production_did(parameters: dict[str, float]) -> None:
    found = calibrate(pendulum, played(SWING, **parameters), AnalyzeConfig(), before=played(SWING, 20))
    assert found is not None and found.explained > 0.99
    true = {**pendulum.nominal, **parameters}
    for value in (lambda p: p["g"] / p["l"], lambda p: p["m"] * p["l"] ** 2):
        assert value(found.values) == pytest.approx(value(true), rel=1e-3)


def test_calibration_names_the_one_parameter_that_explains_it() -> None:
    found = calibrate(pendulum, played(SWING, **pendulum.drift), AnalyzeConfig(), before=played(SWING, 20))
    assert found is not None
    assert found.values == pytest.approx({**pendulum.nominal, **pendulum.drift}, rel=1e-3)
    assert found.not_identified == ("g", "m", "l"), "two numbers move the rod, and there are three"
