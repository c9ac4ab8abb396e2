"""Transitions of a task whose observations are nested: states are read from flat rows, and predicted from them."""

from __future__ import annotations

import numpy as np

from flywheel.simulate import play
from flywheel.simulate.transitions import Simulator, gather
from flywheel.testing import load_linear
from tests.rooms import room


def test_the_simulator_predicts_what_nested_observations_show() -> None:
    policy = load_linear(room, np.zeros((5, 5)))
    episodes = play(room, policy, seeds=range(4), parameters=[{"wind": 0.7}] * 4, draw_keys=range(4))
    data = gather(room, episodes, most=5)
    assert data.states.shape[1] == 3 and set(data.states[:, 2]) <= {1, 2, 3}
    assert data.actions.min(axis=0).tolist() == [-1, 0], "as the environment takes them"
    with Simulator(room) as simulator:
        right, wrong = simulator.successors(data, [{"wind": 0.7}, {"wind": 0.1}])
    blows = data.states[:, 2] != 2
    assert np.allclose(right[:, :2], data.successors[:, :2], atol=1e-6)
    assert np.allclose(np.abs(wrong - data.successors)[blows, :2], 0.6, atol=1e-6)
