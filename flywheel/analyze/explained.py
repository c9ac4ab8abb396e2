"""How much of the change the fitted parameters explain, where world and sensors are noisy.

Under the noise of the episodes before the change, innovations of the right model are as large as they were, and nothing
that was known before foretells them. Both are asked at nominal parameters and at the fit: what is left of the excess is
what no parameter explains. An excess within what chance makes of so many episodes is none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flywheel.analyze.innovations import Noise, innovations
from flywheel.analyze.space import Floats, Space
from flywheel.analyze.tracks import Tracks, linear
from flywheel.records import Array

PASSES = 3
"""Passes of the filter, each made linear where the one before it was."""
CHANCE = 3.0
"""Deviations of chance that an excess must exceed."""
FEWEST = 8
"""Episodes below which nothing is said of what foretells innovations."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Misfit:
    """What is wrong with a model, by episode."""

    size: Floats
    """float64[N]: mean square of the innovations in their deviations; 1 for the right model"""
    foretold: Floats
    """float64[N]: what the past tells of that, as other episodes show it; 0 for the right model"""


def misfit(space: Space, tracks: Tracks, x: Floats, noise: Noise) -> Misfit:
    """Return the misfit of parameters at x under this noise."""
    centres = tracks.seen[:, :-1]
    for _ in range(PASSES):
        found = innovations(tracks, linear(space, tracks, centres, x, told=False), noise)
        centres = found.means[:, :-1]
    surprise = np.moveaxis((found.errors / np.sqrt(found.variances))[:, :, 0], -1, 0)  # [N, T + 1, S]
    whole = (surprise[:, 1:] ** 2).sum(axis=(1, 2)) / (tracks.lengths * surprise.shape[2])
    return Misfit(size=whole, foretold=_foretold(tracks, found.means, surprise))


def explained(nominal: Misfit, fit: Misfit, before: Misfit | None) -> float:
    """Return the share in [0, 1] of the excess at nominal parameters that is gone at the fit.

    Without episodes from `before` the change the noise can't be held against anything, and only what is foretold
    counts. Nothing to explain is wholly explained.
    """
    foretold = _share(nominal.foretold, fit.foretold, np.zeros(1) if before is None else before.foretold)
    return foretold if before is None else min(foretold, _share(nominal.size, fit.size, before.size))


def _share(nominal: Floats, fit: Floats, before: Floats) -> float:
    floor = max(float(before.mean()), 0.0)
    chance = CHANCE * np.sqrt(_variance(fit) + _variance(before))
    was, left = float(nominal.mean()) - floor, float(fit.mean()) - floor
    if was <= CHANCE * np.sqrt(_variance(nominal) + _variance(before)):
        return 1.0
    return float(np.clip(1.0 - max(left - chance, 0.0) / was, 0.0, 1.0))


def _variance(some: Floats) -> float:
    """Return the variance of a mean over episodes."""
    return float(some.var(ddof=1) / len(some)) if len(some) > 1 else 0.0


def _foretold(tracks: Tracks, means: Floats, surprise: Floats) -> Floats:
    """Return float64[N]: the mean square of the innovations less what a linear model of the past leaves of it.

    The model of one half of the episodes is tried on the other one, so that chance foretells nothing.
    """
    num, longest, size = surprise.shape
    if num < FEWEST or longest < 3:
        return np.zeros(num)
    done = _numbers(tracks.actions)
    past = np.concatenate([means[:, 1:-1], done[:, 1:], done[:, :-1], surprise[:, 1:-1]], axis=2)
    going = tracks.going[:, 1:]
    rows, targets = past[going], surprise[:, 2:][going]
    place = np.repeat(np.arange(num), going.sum(axis=1))
    spread = rows.std(axis=0)
    rows = (rows - rows.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    rows = np.concatenate([np.ones((len(rows), 1)), rows], axis=1)
    gained = np.zeros(len(rows))
    for half in (0, 1):
        known, asked = place % 2 == half, place % 2 != half
        gram = rows[known].T @ rows[known] + 1e-3 * np.eye(rows.shape[1]) * known.sum()
        weights = np.linalg.solve(gram, rows[known].T @ targets[known])
        gained[asked] = (targets[asked] ** 2 - (targets[asked] - rows[asked] @ weights) ** 2).mean(axis=1)
    return np.asarray(np.bincount(place, gained, num) / np.maximum(np.bincount(place, minlength=num), 1))


def _numbers(actions: Array) -> Floats:
    """Return actions as float64[N, T, A]: a discrete one as which of them it is."""
    if actions.ndim == 2 and np.issubdtype(actions.dtype, np.integer):
        return np.asarray(actions[:, :, None] == np.unique(actions)[1:], dtype=np.float64)
    return np.asarray(actions, dtype=np.float64).reshape(*actions.shape[:2], -1)
