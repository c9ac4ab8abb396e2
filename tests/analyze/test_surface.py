"""A posterior from a mean of statistics is as wide as its errors, with few draws and parameters that look alike."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from flywheel.analyze.from_episodes import _Player, _rounds
from flywheel.analyze.surface import Floats

NUM, SHOWN, SIZE = 120, 40, 12
_RNG = np.random.default_rng(11)
ALONG, ASIDE, BENT = (_RNG.standard_normal(SIZE) for _ in range(3))
MIXED = 0.6 * np.eye(SIZE) + 0.15 * _RNG.standard_normal((SIZE, SIZE))
"""What makes statistics go together."""


class Alike(_Player):
    """Two parameters of which most statistics see only the sum, and a curved one; an "episode" is its statistics."""

    def __init__(self, seed: int) -> None:
        self.names, self.nominal, self.rng = ["one", "other"], np.array([0.5, 0.5]), np.random.default_rng(seed)

    def draws(self, points: Floats) -> Any:
        one, other = points.T[:, :, None]
        mean = (one + other) * ALONG + 0.3 * (one - other) * ASIDE + 0.5 * one**2 * BENT
        noise = self.rng.standard_normal((len(points), SIZE)) @ MIXED
        return SimpleNamespace(points=points, episodes=3.0 * mean + noise)


def test_intervals_are_as_wide_as_errors() -> None:
    scaled, inside = list[Floats](), list[Any]()
    for seed in range(40):
        player = Alike(seed)
        truth = player.rng.uniform(0.25, 0.75, 2)
        shown = player.draws(np.tile(truth, (SHOWN, 1))).episodes
        wide = player.draws(player.spread(2 * NUM))
        as_they_are: Any = SimpleNamespace(of=lambda episodes: episodes)
        belief, blurred = _rounds(player, as_they_are, shown, (wide.points, wide.episodes))
        assert not blurred.any()
        scaled.append((belief.mean - truth) / belief.deviation)
        inside.append((belief.low <= truth) & (truth <= belief.high))
    assert (np.std(scaled, axis=0) > 0.75).all() and (np.std(scaled, axis=0) < 1.25).all()
    assert 0.9 <= np.mean(inside) < 1.0
