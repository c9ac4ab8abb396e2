"""CartPole as a task: parameters, states, failing, margin, and edge cases that can be mastered."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest

from flywheel.records import Episode
from flywheel.simulate import play
from flywheel.task import task_digest
from flywheel.tasks.cartpole import CartPoles, cartpole, observed_state, set_parameters, set_state, state
from flywheel.testing import GOOD, SHORT_POLE, load_linear


def played(gains: tuple[float, ...], **parameters: float) -> Episode:
    return play(cartpole, load_linear(cartpole, gains), seeds=[7], parameters=[parameters], draw_keys=[7])[0]


def test_single_and_vector_form_step_alike_with_any_parameters_and_states() -> None:
    rng = np.random.default_rng(0)
    values = {p.name: rng.uniform(p.low, p.high, 64) for p in cartpole.parameters}
    states = rng.uniform(-0.2, 0.2, (64, 4))
    actions = rng.integers(0, 2, 64)
    worlds: Any = CartPoles(64)
    worlds.reset(seed=0)
    set_parameters(worlds, values)
    shown = set_state(worlds, states)
    observations, *_ = worlds.step(actions)
    env = cartpole.make_env()
    for i in range(64):
        env.reset(seed=0)
        set_parameters(env, {name: column[i] for name, column in values.items()})
        assert (set_state(env, states[i]) == shown[i]).all()
        assert (env.step(actions[i])[0] == observations[i]).all()
        assert (state(env) == state(worlds)[i]).all()


def test_a_thousand_steps_are_gymnasiums_vector_form_to_the_last_bit_with_new_beginnings() -> None:
    rng = np.random.default_rng(1)
    theirs: Any = gymnasium.make_vec("CartPole-v1", num_envs=32, vectorization_mode="vector_entry_point")
    ours = CartPoles(32)
    for worlds in (theirs, ours):
        set_parameters(worlds, {"length": np.linspace(0.3, 3.0, 32)})
    assert (theirs.reset(seed=5)[0] == ours.reset(seed=5)[0]).all()
    begun_anew = 0
    for _ in range(1000):
        actions = rng.integers(0, 2, 32)
        for one, other in zip(theirs.step(actions)[:4], ours.step(actions)[:4], strict=True):
            assert one.dtype == other.dtype and (one == other).all()
        begun_anew += int(ours.prev_done.sum())
    assert begun_anew > 500


def test_derived_masses_follow_the_parameters() -> None:
    env = cartpole.make_env()
    set_parameters(env, {"length": 2.0, "masspole": 0.3, "masscart": 2.0})
    world: Any = env.unwrapped
    assert world.total_mass == 2.3 and world.polemass_length == 0.6


def test_nominal_parameters_are_gymnasiums_own() -> None:
    world: Any = cartpole.make_env().unwrapped
    assert {name: getattr(world, name) for name in cartpole.nominal} == cartpole.nominal


def test_a_world_put_into_another_state_is_not_done_and_the_others_stay_so() -> None:
    worlds: Any = CartPoles(2)
    worlds.reset(seed=0)
    states = np.array([[2.39, 9.0, 0.0, 0.0], [2.39, 9.0, 0.0, 0.0]])
    set_state(worlds, states)
    assert worlds.step(np.ones(2, np.int64))[2].all()
    now = state(worlds)
    now[0] = 0.0
    set_state(worlds, now)
    assert worlds.unwrapped.prev_done.tolist() == [False, True]


def test_observation_is_the_whole_state() -> None:
    env = cartpole.make_env()
    observation, _ = env.reset(seed=3)
    assert np.allclose(observed_state(observation), state(env), atol=1e-7)


def test_failed_and_margin() -> None:
    assert cartpole.margin is not None
    whole, fallen = played(GOOD), played(SHORT_POLE, length=2.0)
    assert not whole.failed and whole.total == 500 and 0 < cartpole.margin(whole) < 1
    assert fallen.failed and fallen.end == "terminated" and cartpole.margin(fallen) <= 0


@pytest.mark.parametrize("length", [0.5, 2.0])
def test_edge_cases_can_be_mastered(length: float) -> None:
    policy = load_linear(cartpole)
    for case in cartpole.edge_cases:
        episodes = play(
            cartpole,
            policy,
            seeds=range(50),
            parameters=[{"length": length, **case.parameters}] * 50,
            draw_keys=range(50),
            states=[case.state] * 50,
        )
        assert sum(episode.failed for episode in episodes) == 0, case.name


def test_drift_is_the_long_pole_and_the_digest_is_stable() -> None:
    assert cartpole.drift == {"length": 2.0}
    assert task_digest(cartpole) == task_digest(cartpole)
