"""LunarLander as a task: its worlds are functions of their seed, wind too; what failing is; what the drift does."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from flywheel.records import Array, Episode
from flywheel.simulate import play
from flywheel.task import Parameter, spec_of
from flywheel.tasks.lunarlander import lunarlander, set_parameters
from flywheel.testing import check_worlds, load_linear


class Pilot:
    """Gymnasium's own heuristic, as a policy."""

    def __init__(self) -> None:
        self.spec, self.digest = spec_of(lunarlander), "pilot"
        self._env = lunarlander.make_env()  # the heuristic asks it whether its engines are continuous

    def act(self, observations: Array, draws: Array, rule: Any = None) -> tuple[Array, Array]:
        """Return one of: 0 nothing, 1 left, 2 main, 3 right engine."""
        from gymnasium.envs.box2d.lunar_lander import heuristic

        actions = [heuristic(self._env, row) for row in observations.astype(np.float64)]
        return np.array(actions), np.zeros(len(actions))


def played(num: int = 12, **parameters: float) -> list[Episode]:
    pilot: Any = Pilot()
    return play(lunarlander, pilot, seeds=range(num), parameters=[parameters] * num, draw_keys=range(num))


@pytest.mark.parametrize("values", [lunarlander.nominal, {**lunarlander.nominal, **lunarlander.drift}])
def test_worlds_are_functions_of_their_seed(values: dict[str, float]) -> None:
    parameters = tuple(Parameter(p.name, values[p.name], p.low, p.high) for p in lunarlander.parameters)
    check_worlds(dataclasses.replace(lunarlander, parameters=parameters))


def test_a_world_does_not_remember_the_parameters_of_the_one_before() -> None:
    env = lunarlander.make_env()
    tracks = []
    for values in (lunarlander.nominal, {**lunarlander.nominal, **lunarlander.drift}, lunarlander.nominal):
        set_parameters(env, values)
        env.reset(seed=5)
        tracks.append(np.stack([env.step(2)[0] for _ in range(30)]))
    assert (tracks[0] == tracks[2]).all() and (tracks[0] != tracks[1]).any()


def test_nominal_parameters_are_gymnasiums_own() -> None:
    world: Any = lunarlander.make_env().unwrapped
    assert not world.enable_wind
    set_parameters(world, lunarlander.nominal)
    assert not world.enable_wind
    set_parameters(world, {"turbulence_power": 0.5})
    assert world.enable_wind and world.turbulence_power == 0.5


def test_failed_is_not_coming_to_rest() -> None:
    landed = played()
    assert sum(episode.failed for episode in landed) <= 3
    assert all(e.rewards[-1] == 100 for e in landed if not e.failed)
    falling = play(
        lunarlander,
        load_linear(lunarlander, np.zeros((4, 8)), bias=[50.0, 0.0, 0.0, 0.0]),
        seeds=range(5),
        parameters=[{}] * 5,
        draw_keys=range(5),
    )
    assert all(episode.failed and episode.end == "terminated" for episode in falling)
    assert lunarlander.failed(dataclasses.replace(landed[0], end="truncated")), "hovering for ever is failing"
    assert not lunarlander.failed(dataclasses.replace(falling[0], end="lost"))


def test_drift_makes_the_pilot_worse() -> None:
    before, after = played(), played(**lunarlander.drift)
    assert np.mean([e.total for e in after]) < np.mean([e.total for e in before])
    assert sum(e.failed for e in after) > sum(e.failed for e in before)
