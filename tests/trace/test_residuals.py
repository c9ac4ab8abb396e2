"""Where a world leaves the simulator: found at the step, and nothing in a world that is the simulator's."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from flywheel.records import Episode
from flywheel.simulate import play
from flywheel.task import Task
from flywheel.tasks.cartpole import cartpole
from flywheel.tasks.lunarlander import lunarlander
from flywheel.tasks.pendulum import pendulum
from flywheel.trace import NotReproducible, against_simulator, noise_of
from flywheel.trace.residuals import residuals
from tests.rooms import room
from tests.trace.test_fork import GOOD, SHORT, fork, played, policies, produced

CHANGES = {"cartpole": ("length", 0.6), "pendulum": ("l", 1.1)}


def changed(task: Task, seed: int, at: int) -> Episode:
    """Return an episode of production whose world changes at a step."""
    name, value = CHANGES[task.name]
    episode = fork(played(task, seed), at, task).edit_parameter(name, value).replay().fork
    return dataclasses.replace(episode, seed=None, parameters={}, origin="production")


@pytest.mark.parametrize("task", [cartpole, pendulum], ids=lambda task: task.name)
def test_a_world_that_is_the_simulators_never_leaves_it(task: Task) -> None:
    for seed in range(5):
        assert against_simulator(task, produced(task, seed), {}) is None


@pytest.mark.parametrize("task", [cartpole, dataclasses.replace(cartpole, vector=None), pendulum])
def test_a_change_is_found_at_its_step(task: Task) -> None:
    for seed, at in ((1, 0), (2, 57), (3, 150)):
        found = against_simulator(task, changed(task, seed, at), {})
        assert found is not None and found.kind == "observation" and at + 1 <= found.step <= at + 3
        assert "from what the simulator does" in found.note


def test_other_parameters_are_another_simulator() -> None:
    episode = produced(cartpole, 2, SHORT, length=2.0)
    assert against_simulator(cartpole, episode, {"length": 2.0}) is None
    assert against_simulator(cartpole, episode, {}) is not None


def noisy(episode: Episode, seed: int) -> Episode:
    """Return the episode as a noisy sensor shows it."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(0.0, 0.01, episode.observations.shape).astype(np.float32)
    return dataclasses.replace(episode, observations=episode.observations + noise)


def test_noise_is_learnt_from_other_episodes_even_if_some_of_them_are_changed_already() -> None:
    alike = [noisy(produced(cartpole, seed), seed) for seed in range(12)]
    other = [noisy(produced(cartpole, seed, SHORT, length=2.0), seed) for seed in range(12, 20)]
    noise = noise_of(cartpole, alike + other, {})
    fresh = [noisy(produced(cartpole, seed), seed) for seed in range(20, 40)]
    assert sum(against_simulator(cartpole, e, {}, noise=noise) is not None for e in fresh) == 0
    assert against_simulator(cartpole, fresh[0], {}) is not None, "without it the noise is a change"
    found = [against_simulator(cartpole, e, {}, noise=noise) for e in other]
    assert all(each is not None and each.step < 60 for each in found)


def test_a_world_that_draws_its_own_modes_is_noise_by_itself() -> None:
    episodes = [produced(room, seed) for seed in range(12)]
    noise = noise_of(room, episodes, {})
    assert noise[2] >= 1.0 and noise[0] < 1e-5, "the mode is drawn, the place follows from it"
    assert against_simulator(room, produced(room, 30), {}, noise=noise) is None
    found = against_simulator(room, produced(room, 31, wind=0.5), {}, noise=noise)
    assert found is not None and found.note.startswith("number ")


def test_angles_go_on_over_a_whole_turn() -> None:
    (episode,) = play(
        pendulum, policies("pendulum")[GOOD], seeds=[1], parameters=[{}], draw_keys=[1], states=[(0.0, 8.0)]
    )
    (rows,) = residuals(pendulum, [episode], {})
    angles = np.arctan2(episode.observations[:, 1], episode.observations[:, 0])
    assert np.abs(np.diff(angles)).max() > 5, "it turns over"
    assert np.abs(rows).max() < 1e-4


def test_without_a_state_the_seed_tells() -> None:
    episode = played(lunarlander, 3)
    assert against_simulator(lunarlander, episode, {}) is None
    windy = fork(episode, 40, lunarlander).edit_parameter("turbulence_power", 1.9).replay().fork
    windy = dataclasses.replace(windy, parameters=episode.parameters)
    found = against_simulator(lunarlander, windy, {})
    assert found is not None and 41 <= found.step <= 43
    with pytest.raises(NotReproducible, match="only an episode with a seed"):
        against_simulator(lunarlander, produced(lunarlander, 3), {})


def test_no_episodes_are_no_noise() -> None:
    assert noise_of(cartpole, [], {}).tolist() == [0.0]
