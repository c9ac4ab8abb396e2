"""Parameters through noise: those whose filter is surprised least by what was seen.

The innovations of an extended Kalman filter depend on the past alone, and so do their derivatives: where their product
sums to nothing is an estimate that noisy sensors don't bias, whatever policy acted on them. Noise and parameters take
turns; the filter of one turn gives the points at which the simulator is made linear in the next.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import lsq_linear
from scipy.stats import t as student

from flywheel.analyze.innovations import Innovations, Noise, innovations
from flywheel.analyze.noise import DAMPING, Told, guessed, scored, told, with_gusts
from flywheel.analyze.space import Floats, Space
from flywheel.analyze.tracks import Tracks, linear

PRIOR = 1.0
"""Deviation of a parameter's log change before data are seen: a factor of e."""
TURNS = 25
"""Most turns of noise and parameters."""
STILL = 0.1
"""Log-likelihood that parameters and noise together may still gain in the last turn: a move of a third of a deviation
gains half as much."""
NEARLY = 10.0
"""The same when it is first asked whether innovations last."""
FARTHEST = 0.7
"""Most that a coordinate moves at once."""
MANY = 30
"""Episodes that tell by how they differ how sure a fit is, without the model's word."""
LAGS = (1, 2, 4, 8)
"""Steps over which it is asked whether innovations go along with each other."""
LASTS = 5.0
"""Deviations of chance that say they do."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Filtered:
    """The likeliest parameters and noise, and how sure that is."""

    x: Floats
    """float64[P]: coordinates"""
    noise: Noise
    information: Floats
    """float64[P, P]: of the coordinates, by the model"""
    scores: Floats
    """float64[N, P]: each episode's own pull on the coordinates"""
    found: Innovations

    def deviations(self, ways: Floats, singular: Floats) -> Floats:
        """Return float64[P]: deviations of the coordinates along `ways` float64[D, P] that the data tell.

        They are what episodes say by how they differ (Huber 1967; White 1982), with Student's quantile for so many of
        them, and where there are few at least what the model says.
        """
        model = np.sqrt(((ways / singular[:, None]) ** 2).sum(axis=0))
        num, lost = len(self.scores), len(ways)
        if num <= 2 * lost:
            return np.asarray(2.0 * model)  # too few to say anything by how they differ
        pull = self.scores @ (ways.T / singular**2)
        pull = (pull - pull.mean(axis=0)) @ ways
        robust = np.sqrt((pull**2).sum(axis=0) * num / (num - lost)) * student.ppf(0.975, num - lost) / 1.96
        return np.asarray(robust if num >= MANY else np.maximum(model, robust))


def fitted(space: Space, tracks: Tracks, start: Floats) -> Filtered:
    """Return the fit, from coordinates to start at; gusts are part of the noise where innovations last."""
    x, noise, centres, gained = start, None, tracks.seen[:, :-1], np.inf
    for turn in range(TURNS):
        step = linear(space, tracks, centres, x)
        noise = guessed(tracks, step) if noise is None else noise
        noise, gain = scored(tracks, step, noise)
        found = innovations(tracks, step, noise, told=True)
        fit, centres = _fit(x, noise, found), found.means[:, :-1]
        move = _move(space, fit)
        gained = gain + float(move @ fit.information @ move)
        lasting = () if noise.gusts or gained > NEARLY else _lasting(found)
        if lasting:
            noise = with_gusts(noise, lasting)
        elif gained < STILL or turn == TURNS - 1:
            break
        x = x + (1.0 if turn < TURNS // 2 else 0.5) * np.clip(move, -FARTHEST, FARTHEST)
    return _unsure_of_noise(fit, told(tracks, step, fit.noise))


def _unsure_of_noise(fit: Filtered, noise: Told) -> Filtered:
    """Return the fit without what would have to be known of the noise: its efficient scores and their information.

    Where noise itself moves the state, as gusts do, the two are not told independently.
    """
    whole = fit.found.by / np.sqrt(fit.found.variances[:, :, :1])
    flat, other = (np.moveaxis(some, 2, 0).reshape(some.shape[2], -1) for some in (whole, noise.by))
    cross = flat @ other.T
    known = np.linalg.solve(noise.information + DAMPING * np.eye(len(other)), cross.T)
    return replace(fit, information=fit.information - cross @ known, scores=fit.scores - noise.scores @ known)


def _fit(x: Floats, noise: Noise, found: Innovations) -> Filtered:
    whole = found.by / found.variances[:, :, :1]
    flat = np.moveaxis(found.by, 2, 0).reshape(len(x), -1)
    information = flat @ np.moveaxis(whole, 2, 0).reshape(len(x), -1).T
    scores = -np.einsum("tipn,tin->np", whole, found.errors[:, :, 0])
    return Filtered(x=x, noise=noise, information=information, scores=scores, found=found)


def _move(space: Space, fit: Filtered) -> Floats:
    """Return the step to the least sum of squares that the ranges allow."""
    values, vectors = np.linalg.eigh(fit.information)
    root = np.sqrt(np.maximum(values, 0.0) + 1 / PRIOR**2)  # rounding may have made the least of them negative
    pull = fit.scores.sum(axis=0) - fit.x / PRIOR**2
    found = lsq_linear(
        root[:, None] * vectors.T, vectors.T @ pull / root, bounds=(space.low - fit.x - 1e-9, space.high - fit.x + 1e-9)
    )
    return np.asarray(found.x)


def _lasting(found: Innovations) -> tuple[int, ...]:
    """Return the numbers of the state whose innovations go along with what they were some steps before."""
    surprise = (found.errors / np.sqrt(found.variances))[1:, :, 0]
    lasting = []
    for i in range(surprise.shape[1]):
        for lag in LAGS:
            sums = (surprise[lag:, i] * surprise[:-lag, i]).sum(axis=0)  # of each episode
            if len(sums) > 1 and sums.mean() > LASTS * sums.std(ddof=1) / np.sqrt(len(sums)):
                lasting.append(i)
                break
    return tuple(lasting)
