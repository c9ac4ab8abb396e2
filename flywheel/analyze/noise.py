"""How noisy production's world and its sensors are, from the episodes themselves.

A first guess comes from the one-step residuals' own covariance and that of neighbours (a sensor's error is seen twice:
Mehra 1970); Fisher's scoring over the innovations then makes it the likeliest (Harvey 1989, section 3.4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flywheel.analyze.innovations import Noise, innovations
from flywheel.analyze.space import Floats
from flywheel.analyze.tracks import Linear, Tracks

LOWEST, HIGHEST = np.log(1e-14), np.log(1e6)
"""Logarithms of the least and the greatest variance, in squared deviations of the state: rounding, and nonsense."""
DIFFERENCE = 1e-3
"""Width of the differences by the logarithm of a variance."""
FARTHEST = 1.5
"""Most that the logarithm of a variance moves at once."""
DAMPING = 1.0
"""Information (of a normal prior on each move) that keeps what the data don't tell where it is."""
FIRST_KEEPS = 2.2
"""Logit of what a gust keeps a step later, before data are seen: 0.9."""
KEEPS = 6.0
"""Greatest logit of that: 0.9975, a gust that lasts some 400 steps; what lasts longer is a wind."""


def guessed(tracks: Tracks, step: Linear) -> Noise:
    """Return a first guess; `step` is made linear at what was seen."""
    seen = np.moveaxis(tracks.seen, 0, -1)  # [T + 1, S, N]
    left = seen[1:] - step.value
    going = tracks.going.T
    pairs = (going[1:] & going[:-1])[:, None]
    num = max(1, int(pairs.sum()))
    both = np.einsum("tin,tjn->ij", np.where(pairs, left[1:], 0.0), np.where(pairs, left[:-1], 0.0)) / num
    slope = np.einsum("tijn->ij", np.where(going[:, None, None], step.slope, 0.0)) / max(1, int(going.sum()))
    variance = np.where(going[:, None], left**2, 0.0).sum(axis=(0, 2)) / max(1, int(going.sum())) + np.exp(LOWEST)
    # neighbours' covariance is minus the slope times the sensor's
    sensor = np.clip(-np.diag(np.linalg.lstsq(slope, both, rcond=None)[0]), 0.01 * variance, 0.49 * variance)
    process = np.maximum(variance - 2 * sensor, 0.02 * variance)
    none = np.zeros((0, 1))
    return Noise(sensor=np.log(sensor)[:, None], process=np.log(process)[:, None], gust=none, keeps=np.zeros(1))


def with_gusts(noise: Noise, gusts: Sequence[int]) -> Noise:
    """Return the same noise, with a tenth of the process noise of some numbers of the state as gusts."""
    some = list(gusts)
    return Noise(
        sensor=noise.sensor,
        process=noise.process,
        gusts=tuple(some),
        gust=noise.process[some] - np.log(10.0),
        keeps=np.full(1, FIRST_KEEPS),
    )


def scored(tracks: Tracks, step: Linear, noise: Noise) -> tuple[Noise, float]:
    """Return likelier noise, one step of Fisher's scoring on, and about how much this adds to the log-likelihood."""
    at, found = _vector(noise), told(tracks, step, noise)
    num, gradient = len(at), found.scores.sum(axis=0)
    held = ((at <= LOWEST) & (gradient < 0)) | ((at >= HIGHEST) & (gradient > 0))
    gradient = np.where(held, 0.0, gradient)
    move = np.linalg.solve(found.information + DAMPING * np.eye(num), gradient)
    move = np.clip(move, -FARTHEST, FARTHEST)
    most = np.full(num, HIGHEST)
    if noise.gusts:
        most[-1] = KEEPS
    after = np.clip(at + move, LOWEST, most)
    return _noise(noise, after[:, None]), float(gradient @ (after - at))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Told:
    """What the innovations tell of V numbers that make up the noise."""

    scores: Floats
    """float64[N, V]: each episode's part of the log-likelihood's gradient"""
    information: Floats
    """float64[V, V]: Fisher's"""
    by: Floats
    """float64[T + 1, S, V, N]: derivatives of the errors, in their deviations"""


def told(tracks: Tracks, step: Linear, noise: Noise) -> Told:
    """Return what is told of this noise, by differences between cases in which one number after the other is moved."""
    at = _vector(noise)
    cases = at[:, None] + DIFFERENCE * np.eye(len(at), len(at) + 1, k=1)
    found = innovations(tracks, step, _noise(noise, cases))
    errors, variances = found.errors[:, :, 0], found.variances[:, :, 0]
    by_error = (found.errors[:, :, 1:] - errors[:, :, None]) / DIFFERENCE
    by_log = (np.log(found.variances[:, :, 1:]) - np.log(variances)[:, :, None]) / DIFFERENCE
    whole = errors / variances
    scores = -0.5 * np.einsum("tikn,tin->nk", by_log, 1.0 - errors * whole) - np.einsum("tikn,tin->nk", by_error, whole)
    by = by_error / np.sqrt(variances)[:, :, None]
    flat_log, flat = (np.moveaxis(some, 2, 0).reshape(len(at), -1) for some in (by_log, by))
    return Told(scores=scores, information=0.5 * flat_log @ flat_log.T + flat @ flat.T, by=by)


def _vector(noise: Noise) -> Floats:
    gust = [noise.gust[:, 0], noise.keeps] if noise.gusts else []
    return np.concatenate([noise.sensor[:, 0], noise.process[:, 0], *gust])


def _noise(like: Noise, vectors: Floats) -> Noise:
    """Return float64[V, K] as K cases of noise."""
    size, num = len(like.sensor), len(like.gusts)
    sensor, process, gust, keeps = np.split(vectors, [size, 2 * size, 2 * size + num])
    return Noise(
        sensor=sensor,
        process=process,
        gusts=like.gusts,
        gust=gust,
        keeps=keeps[0] if num else np.zeros(vectors.shape[1]),
    )
