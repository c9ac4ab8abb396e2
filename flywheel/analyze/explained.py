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
LEANS = 4.5
"""The same of the innovations' mean, of which there are as many as numbers of the state."""
FEWEST = 8
"""Episodes below which nothing is said of what foretells innovations."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Misfit:
    """What is wrong with a model, by episode."""

    size: Floats
    """float64[N]: mean square of the innovations in their deviations; 1 for the right model"""
    foretold: Floats
    """float64[N]: what the past tells of that, as other episodes show it; 0 for the right model"""
    lean: Floats
    """float64[N, S]: mean of each number's innovations in their deviations; about 0 for the right model"""


def misfit(space: Space, tracks: Tracks, x: Floats, noise: Noise) -> Misfit:
    """Return the misfit of parameters at x under this noise."""
    centres = tracks.seen[:, :-1]
    for _ in range(PASSES):
        found = innovations(tracks, linear(space, tracks, centres, x, told=False), noise)
        centres = found.means[:, :-1]
    surprise = np.moveaxis((found.errors / np.sqrt(found.variances))[:, :, 0], -1, 0)  # [N, T + 1, S]
    num = tracks.lengths[:, None]
    return Misfit(
        size=(surprise[:, 1:] ** 2).sum(axis=1).mean(axis=1) / tracks.lengths,
        foretold=_foretold(tracks, found.means, surprise),
        lean=surprise[:, 1:].sum(axis=1) / num,
    )


def explained(nominal: Misfit, fit: Misfit, before: Misfit | None) -> float:
    """Return the share in [0, 1] of the excess at nominal parameters that is gone at the fit.

    Without episodes from `before` the change the noise can't be held against anything, and only what is foretold
    counts. Nothing to explain is wholly explained.
    """
    if before is None:
        before = Misfit(size=np.ones(1), foretold=np.zeros(1), lean=np.zeros((1, nominal.lean.shape[1])))
        parts = [_foretelling]
    else:
        parts = [_foretelling, _size]
    shares = []
    for excess in parts:
        (was, at_least), (left, chance) = excess(nominal, before), excess(fit, before)
        shares.append(1.0 if was <= at_least else float(np.clip(1.0 - max(left - chance, 0.0) / was, 0.0, 1.0)))
    return min(shares)


def _size(of: Misfit, before: Misfit) -> tuple[float, float]:
    """Return the excess of the innovations' size over that before the change, and what chance makes of it."""
    return _excess(of.size, before.size)


def _foretelling(of: Misfit, before: Misfit) -> tuple[float, float]:
    """Return the same of what is foretold: by the past, or by nothing but that all episodes lean to one side."""
    lean = of.lean.mean(axis=0) - before.lean.mean(axis=0)
    chance = _variance(of.lean) + _variance(before.lean)
    leaning = float(np.where(lean**2 > LEANS**2 * chance, lean**2, 0.0).mean())
    excess, by_chance = _excess(of.foretold, before.foretold)
    return (leaning, 0.0) if leaning > excess - by_chance else (excess, by_chance)


def _excess(of: Floats, before: Floats) -> tuple[float, float]:
    floor = max(float(before.mean()), 0.0)
    return float(of.mean()) - floor, CHANCE * float(np.sqrt(_variance(of) + _variance(before)))


def _variance(some: Floats) -> Floats:
    """Return the variance of a mean over episodes."""
    return np.asarray(some.var(axis=0, ddof=1) / len(some) if len(some) > 1 else 0.0 * some.sum(axis=0))


def _foretold(tracks: Tracks, means: Floats, surprise: Floats) -> Floats:
    """Return float64[N]: the mean square of the innovations less what a linear model of the past leaves of it.

    The model of one half of the episodes is tried on the other one, so that chance foretells nothing.
    """
    num, longest, _ = surprise.shape
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
