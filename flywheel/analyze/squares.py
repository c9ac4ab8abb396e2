"""One-step predictions from observed states, made to meet production by nonlinear least squares.

Exact where observations are: a fit to the last digits. Noisy sensors pull it towards nothing (errors in variables),
which is what `filtered` is for; it begins where this ends, with the episodes that this finds to be of one world.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from flywheel.analyze.filtered import PRIOR
from flywheel.analyze.space import Floats, Mask, Space
from flywheel.simulate.transitions import Transitions

ROUNDING = 1e-6
"""Deviations: a residual below this is the rounding of float32 observations, not the world."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fit:
    """A point, and how well it predicts."""

    x: Floats
    """float64[P]: coordinates of the best point"""
    jacobian: Floats
    """float64[N·S, P], in deviations of the noise"""
    nominal: float
    """mean square of the residual at nominal parameters, in deviations of the state"""
    left: float
    """the same at the best point"""
    noise: Floats
    """float64[S]: deviation of what is left, by its median, in deviations of the state"""
    data: Transitions
    """what was read: transitions of one world, without jumps"""


def fit(space: Space, data: Transitions) -> Fit:
    """Fit twice: robustly on the later half of the episodes, then exactly on everything that agrees with it."""
    later = data.only(data.episodes >= (data.episodes.max() + 1) // 2)
    x = _least_squares(space, later, np.zeros(len(space.names)), _noise(space, later, None), robust=True)
    data = data.only(_same_world(space, data, later, x))
    for _ in range(2):
        noise = _noise(space, data, x)
        x = _least_squares(space, data, x, noise, robust=False)
    data = data.only(~_jumps(space, data, x, noise))
    noise = _noise(space, data, x)
    x = _least_squares(space, data, x, noise, robust=False)
    nominal, left = (float((r**2).mean()) for r in space.residuals(data, [np.zeros_like(x), x]))
    jacobian = (space.jacobian(data, x) / noise[:, None]).reshape(-1, len(x))
    return Fit(x=x, jacobian=jacobian, nominal=nominal, left=left, noise=noise, data=data)


def _noise(space: Space, data: Transitions, x: Floats | None) -> Floats:
    """Return float64[S]: the deviation of the residual, by its median so that a few strange rows don't count."""
    at = np.zeros(len(space.names)) if x is None else x
    spread = 1.4826 * np.median(np.abs(space.residuals(data, [at])[0]), axis=0)
    return np.asarray(np.maximum(spread, ROUNDING))


def _least_squares(space: Space, data: Transitions, start: Floats, noise: Floats, *, robust: bool) -> Floats:
    prior = np.eye(len(start)) / PRIOR

    def residuals(x: Floats) -> Floats:
        return np.concatenate([(space.residuals(data, [x])[0] / noise).ravel(), x / PRIOR])

    def jacobian(x: Floats) -> Floats:
        return np.concatenate([(space.jacobian(data, x) / noise[:, None]).reshape(-1, len(x)), prior])

    found = least_squares(
        residuals,
        np.clip(start, space.low + 1e-9, space.high - 1e-9),
        jacobian,
        bounds=(space.low, space.high),
        loss="soft_l1" if robust else "linear",
        f_scale=0.1,
        xtol=1e-6 if robust else 1e-8,  # the first one only has to tell which episodes belong together
        max_nfev=50,
    )
    return np.asarray(found.x, dtype=np.float64)


def _same_world(space: Space, data: Transitions, later: Transitions, x: Floats) -> Mask:
    """Say which transitions belong to episodes that fit about as well as the later half's typical one does."""

    def by_episode(some: Transitions) -> dict[int, float]:
        size = (space.residuals(some, [x])[0] ** 2).mean(axis=1)
        return {int(e): float(np.sqrt(np.median(size[some.episodes == e]))) for e in np.unique(some.episodes)}

    typical = float(np.median(list(by_episode(later).values())))
    kept = [e for e, size in by_episode(data).items() if size <= 3.0 * typical + 10 * ROUNDING]
    return np.isin(data.episodes, kept)


def jumps(space: Space, data: Transitions, found: Fit) -> Mask:
    """Return the transitions that no step of the fitted world makes, as a reset inside an episode; see `_jumps`."""
    return _jumps(space, data, found.x, found.noise)


def _jumps(space: Space, data: Transitions, x: Floats, noise: Floats) -> Mask:
    """Return jumps that no step of the world makes (a reset inside an episode), as long as they are accidents."""
    jumps = (np.abs(space.residuals(data, [x])[0]) > np.maximum(20.0 * noise, 0.01)).any(axis=1)
    return jumps if jumps.mean() <= 0.05 else np.zeros(len(data), dtype=bool)


def explained(found: Fit, noise: float) -> float:
    """Return the share of the residual at nominal parameters, beyond the noise's mean square, that the fit removed."""
    nothing = max(1.1 * noise, (10 * ROUNDING) ** 2)
    if found.nominal <= nothing:
        return 1.0  # nominal parameters leave nothing to explain
    return float(np.clip(1.0 - (found.left - noise) / (found.nominal - noise), 0.0, 1.0))
