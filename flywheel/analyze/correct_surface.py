"""What is added to a step, where no other action explains it: ridge regression on the state, and a box action.

Hoerl and Kennard 1970, "Ridge regression"; how much it is drawn to nothing is chosen by whole episodes that are left
out in turn.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from gymnasium.spaces import Discrete

from flywheel.analyze.missing import Floats, Ints, Mask, Missing
from flywheel.correction import Correction, Surface
from flywheel.simulate.arriving import added, box_of, groups_of, places, terms

RIDGES = (1e-6, 1e-4, 1e-2, 1.0)
"""How much weights are drawn to nothing, in units of the terms' mean square."""
FOLDS = 4
"""Parts of the episodes that are left out in turn."""


def surface(missing: Missing, train: Mask, form: Correction, missed: Floats) -> Surface:
    """Return what best adds `missed` float64[M, D] to the steps of bool[M] `train`, for actions that arrive by a form.

    Each of the D numbers counts in its own deviation.
    """
    data = missing.data
    fine = train & np.isfinite(missed).all(axis=1)
    now = missing.arriving(data, form)
    z, which = places(data.states, box_of(missing.space, now), missing.task.state_period), groups_of(missing.space, now)
    groups = int(missing.space.n) if isinstance(missing.space, Discrete) else 1
    unit = missed[fine].std(axis=0) if fine.any() else np.ones(missed.shape[1])
    unit = np.where(unit > 0, unit, 1.0)
    left = np.zeros(len(RIDGES))
    fold = data.episodes % FOLDS
    for number, ridge in enumerate(RIDGES):
        for part in np.unique(fold[fine]):
            asked, known = fine & (fold == part), fine & (fold != part)
            if known.any():
                found = _fitted(z[known], which[known], missed[known] / unit, ridge, groups)
                left[number] += float(((added(found, z[asked], which[asked]) - missed[asked] / unit) ** 2).sum())
    found = _fitted(z[fine], which[fine], missed[fine] / unit, RIDGES[int(left.argmin())], groups)
    weights = np.array(found.weights) * unit
    return dataclasses.replace(found, weights=_plain(weights))


def _plain(weights: Floats) -> tuple[tuple[tuple[float, ...], ...], ...]:
    return tuple(tuple(tuple(row) for row in group) for group in weights.tolist())


def _fitted(z: Floats, which: Ints, missed: Floats, ridge: float, groups: int) -> Surface:
    low, high, centre, scale = z.min(axis=0), z.max(axis=0), z.mean(axis=0), z.std(axis=0)
    scale = np.where(scale > 1e-12, scale, 1.0)
    rows = terms((z - centre) / scale)
    weights = np.zeros((groups, rows.shape[1], missed.shape[1]))
    for group in range(groups):
        some = rows[which == group]
        if len(some):
            moment = some.T @ some
            drawn = ridge * max(float(np.diag(moment).mean()), 1e-12) * np.eye(len(moment))
            weights[group] = np.linalg.solve(moment + drawn, some.T @ missed[which == group])
    edges = {"low": low, "high": high, "centre": centre, "scale": scale}
    return Surface(weights=_plain(weights), **{name: tuple(row.tolist()) for name, row in edges.items()})
