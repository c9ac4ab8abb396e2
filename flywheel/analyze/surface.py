"""What a mean of statistics says of parameters: projections, the surface they lie on, and the posterior it gives.

Parameters are coordinates in [0, 1], the ends of their ranges; P of them, N simulated episodes, F statistics.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

PRIOR = 0.5
"""Deviation of a parameter from nominal before data are seen, as a share of its range."""
SAMPLES = 4000
"""Draws by which a posterior is summed."""
HEAVY = 5.0
"""Degrees of freedom of the t distribution they come from, which reaches further than the posterior."""
SYSTEMATIC = 0.05
"""Deviations by which a statistic's mean may lie off the surface for no reason but the surface's form: where worlds
have no randomness of their own, nothing else would count."""
PER_TERM = 3
"""Episodes that each term of the surface needs; with fewer it stays linear."""

REACH = 3.0
"""Squared distance from the draws' middle, in deviations and for each parameter, up to which the surface is asked: an
even spread's corners have it."""
BEYOND = 1.0
"""Deviations from the data that one deviation beyond that counts as."""
TINY = 1e-12
"""Least variance of draws."""
FLOOR = 0.3
"""Least deviation of a statistic, in nominal deviations: what hardly moved tells little, and one outlier too much."""

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Belief:
    """What is believed of P coordinates; those held at nominal have no spread."""

    mean: Floats
    covariance: Floats
    """float64[P, P]"""
    low: Floats
    """float64[P], 2.5 % of the posterior below it"""
    high: Floats
    cost: float
    """Half the squared distance, in deviations, between data and surface (and of the prior) at the best point."""

    @classmethod
    def flat(cls, nominal: Floats) -> Belief:
        """Return what is believed before data are seen."""
        return cls(
            mean=nominal, covariance=PRIOR**2 * np.eye(len(nominal)), low=0 * nominal, high=0 * nominal + 1, cost=0.0
        )

    @property
    def deviation(self) -> Floats:
        """float64[P]"""
        return np.sqrt(np.diag(self.covariance))


def projection(points: Floats, statistics: Floats) -> Floats:
    """Return float64[F, P]: the ridge regressions of float64[N, P] points on float64[N, F] statistics.

    Each one's penalty is that of the least leave-one-out error (Allen's PRESS, by the singular values).
    """
    scale = np.sqrt(statistics.var(axis=0) + FLOOR**2)
    left, singular, right = np.linalg.svd((statistics - statistics.mean(axis=0)) / scale, full_matrices=False)
    target = points - points.mean(axis=0)
    along = left.T @ target
    best, lowest = np.zeros((statistics.shape[1], points.shape[1])), np.full(points.shape[1], np.inf)
    for penalty in np.logspace(-2, 4, 19):
        kept = singular**2 / (singular**2 + penalty)
        leverage = 1 / len(points) + (left**2) @ kept
        errors = (target - left @ (kept[:, None] * along)) / np.maximum(1 - leverage, 1e-3)[:, None]
        press = (errors**2).sum(axis=0)
        better = press < lowest
        solved = right.T @ ((kept / np.maximum(singular, 1e-12))[:, None] * along) / scale[:, None]
        best[:, better], lowest[better] = solved[:, better], press[better]
    return best


class Surface:
    """Mean and spread of projected statistics as a polynomial of the parameters, quadratic where episodes suffice."""

    def __init__(self, points: Floats, statistics: Floats, to: Floats, num: float) -> None:
        """Fit to float64[N, P] points and float64[N, F] statistics of the episode at each.

        `to` projects them; the mean that the surface will be asked about is one over `num` episodes.
        """
        projected = statistics @ to
        self._num, self._to = num, to
        self._center = points.mean(axis=0)
        size = points.shape[1]
        self._draws = np.linalg.inv(np.linalg.cholesky(np.atleast_2d(np.cov(points.T)) + TINY * np.eye(size)))
        self._squared = len(points) >= PER_TERM * (1 + size + size * (size + 1) // 2)
        terms = self._terms(points)
        self._inverse = np.linalg.pinv(terms.T @ terms)
        self._weights = self._inverse @ terms.T @ projected
        left = projected - terms @ self._weights
        spread = left.T @ left / max(len(points) - terms.shape[1], 1)
        spread += num * SYSTEMATIC**2 * to.T @ to + 1e-18 * np.eye(len(spread))
        self._whiten = np.linalg.inv(np.linalg.cholesky(spread))

    def _terms(self, points: Floats) -> Floats:
        x = points - self._center
        parts = [np.ones((len(x), 1)), x]
        if self._squared:
            first, second = np.triu_indices(x.shape[1])
            parts.append(x[:, first] * x[:, second])
        return np.concatenate(parts, axis=1)

    def distances(self, points: Floats, mean: Floats) -> tuple[Floats, Floats]:
        """Return float64[M, P + 1] distances of a mean float64[F] in deviations, and float64[M] log deviations.

        The deviation holds both the mean's own spread and how well the surface is known there. The last distance is
        how far beyond the draws a point lies: a polynomial says nothing there, and would seem to explain anything.
        """
        terms = self._terms(points)
        spread = np.sqrt(1 / self._num + np.einsum("mi,ij,mj->m", terms, self._inverse, terms))
        far = (mean @ self._to - terms @ self._weights) @ self._whiten.T / spread[:, None]
        reach = np.linalg.norm((points - self._center) @ self._draws.T, axis=1) - np.sqrt(REACH * points.shape[1])
        return np.concatenate([far, BEYOND * np.maximum(reach, 0.0)[:, None]], axis=1), np.log(spread)


def believe(
    surface: Surface, mean: Floats, *, nominal: Floats, free: Mask, start: Floats, rng: np.random.Generator
) -> Belief:
    """Return the posterior of the `free` coordinates, the others at nominal, from a mean of statistics float64[F]."""
    best = nominal.copy()
    size = int(free.sum())
    if not size:
        far = surface.distances(nominal[None], mean)[0]
        return Belief(
            mean=best, covariance=np.zeros((len(best),) * 2), low=best, high=best, cost=float((far**2).sum() / 2)
        )

    def whole(some: Floats) -> Floats:
        points = np.tile(nominal, (len(some), 1))
        points[:, free] = some
        return points

    def residuals(some: Floats) -> Floats:
        points = whole(some[None])
        return np.concatenate([surface.distances(points, mean)[0][0], (some - nominal[free]) / PRIOR])

    starts = [np.clip(point[free], 1e-6, 1 - 1e-6) for point in (nominal, start, np.full(len(nominal), 0.5))]
    fits = [least_squares(residuals, point, bounds=(0.0, 1.0), max_nfev=100) for point in starts]
    fit = min(fits, key=lambda found: float(found.cost))
    precision = fit.jac.T @ fit.jac
    covariance = np.linalg.inv(precision)
    some, weights = _sampled(fit.x, covariance, rng, lambda x: _log_density(surface, whole(x), x, mean, nominal[free]))
    middle = weights @ some
    away = some - middle
    low, high = (np.array([_quantile(column, weights, q) for column in some.T]) for q in (0.025, 0.975))
    full = np.zeros((len(best), len(best)))
    full[np.ix_(free, free)] = (weights[:, None] * away).T @ away
    ends = [best.copy(), best.copy()]
    best[free], ends[0][free], ends[1][free] = middle, low, high
    return Belief(mean=best, covariance=full, low=ends[0], high=ends[1], cost=float(fit.cost))


def _log_density(surface: Surface, points: Floats, some: Floats, mean: Floats, nominal: Floats) -> Floats:
    far, log_spread = surface.distances(points, mean)
    prior = ((some - nominal) / PRIOR) ** 2
    logs: Floats = -0.5 * (far**2).sum(axis=1) - points.shape[1] * log_spread - 0.5 * prior.sum(axis=1)
    return logs


def _sampled(
    best: Floats, covariance: Floats, rng: np.random.Generator, log_density: Callable[[Floats], Floats]
) -> tuple[Floats, Floats]:
    """Return importance samples float64[S, P] within the ranges and their weights, which sum to 1."""
    size = len(best)
    root = np.linalg.cholesky(covariance + 1e-12 * np.eye(size))
    normal = rng.standard_normal((SAMPLES, size))
    stretch = np.sqrt(HEAVY / rng.chisquare(HEAVY, SAMPLES))[:, None]
    drawn = best + (normal * stretch) @ root.T
    inside = ((drawn >= 0) & (drawn <= 1)).all(axis=1)
    drawn = np.concatenate([drawn[inside], best[None]])
    distance = (((drawn - best) @ np.linalg.inv(root).T) ** 2).sum(axis=1)
    proposed = -0.5 * (HEAVY + size) * np.log1p(distance / HEAVY)
    logs = log_density(drawn) - proposed
    weights = np.exp(logs - logs.max())
    return drawn, weights / weights.sum()


def _quantile(values: Floats, weights: Floats, share: float) -> float:
    order = np.argsort(values)
    return float(np.interp(share, np.cumsum(weights[order]), values[order]))
