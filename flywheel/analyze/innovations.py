"""What each observation adds to what those before it told: an extended Kalman filter over many episodes at once.

A state is moved by the simulator's own step and by process noise, and seen through sensor noise (Kalman 1960; Jazwinski
1970, chapter 8). A prediction is made from what is known of the state, not from the noisy observation itself, so that
errors in variables don't pull a parameter towards nothing. The numbers of one observation are taken up one after the
other, which needs no inverse. Worlds come last in every array.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flywheel.analyze.space import Floats
from flywheel.analyze.tracks import Linear, Tracks

UNSEEN = 1e12
"""Variance of a sensor that shows nothing."""
LEAST_START = 0.01
"""Share of a first observation's variance that is the state's at least, however noisy the sensor is."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Noise:
    """Variances in squared deviations of the state, as logarithms, for K cases side by side.

    A gust is a push on one number of the state that keeps a share of itself from step to step.
    """

    sensor: Floats
    """float64[S, K]"""
    process: Floats
    """float64[S, K]"""
    gusts: tuple[int, ...] = ()
    """numbers of the state that gusts push"""
    gust: Floats
    """float64[G, K]: of the gust itself (not of its shocks)"""
    keeps: Floats
    """float64[K]: logit of the share that is left a step later"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Innovations:
    """What a pass of the filter found, in K cases."""

    errors: Floats
    """float64[T + 1, S, K, N]: each number minus its prediction; 0 where nothing was seen"""
    variances: Floats
    """float64[T + 1, S, K, N]: of the errors; 1 where nothing was seen"""
    by: Floats
    """float64[T + 1, S, P, N]: derivatives of the errors by the coordinates, in the first case"""
    means: Floats
    """float64[N, T + 1, S]: the state as the observations up to each step tell it, in the first case"""

    @property
    def costs(self) -> Floats:
        """float64[K]: twice the negative log-likelihood, up to a constant."""
        return np.asarray((np.log(self.variances) + self.errors**2 / self.variances).sum(axis=(0, 1, 3)))


def innovations(tracks: Tracks, step: Linear, noise: Noise, *, told: bool = False) -> Innovations:
    """Run the filter over all tracks in all cases; `told` adds derivatives by the coordinates, with one case only."""
    seen = np.ascontiguousarray(np.moveaxis(tracks.seen, 0, -1))  # [T + 1, S, N]
    num_steps, size, num = seen.shape
    sensor, process, gust = (np.exp(some)[:, :, None] for some in (noise.sensor, noise.process, noise.gust))
    keeps = (1 / (1 + np.exp(-noise.keeps)))[:, None]
    num_cases, pushed = sensor.shape[1], list(noise.gusts)
    whole = size + len(pushed)
    mean, spread = _start(seen[0], sensor, gust, pushed)
    columns = np.zeros((whole, step.by.shape[2] if told else 0, num))
    shape = (num_steps, size, num_cases, num)
    errors, variances = np.zeros(shape), np.ones(shape)
    derived, means = np.zeros((num_steps, size, columns.shape[1], num)), np.zeros((num_steps, size, num))
    for t in range(num_steps):
        there = t <= tracks.lengths
        for i in range(size):
            variance = spread[i, i] + np.where(there, sensor[i], UNSEEN)
            error = np.where(there, seen[t, i] - mean[i], 0.0)
            gain = spread[:, i] / variance
            errors[t, i], variances[t, i] = error, np.where(there, variance, 1.0)
            if told:
                derived[t, i] = np.where(there, -columns[i], 0.0)
                columns = columns + gain[:, 0, None] * derived[t, i]
            mean = mean + gain * error
            spread = spread - gain[:, None] * spread[i][None]
        means[t] = mean[:size, 0]
        if t + 1 < num_steps:
            mean, columns = _moved(step, t, mean, columns, pushed, keeps)
            spread = _spread(step.slope[t], spread, pushed, keeps)
            for i in range(size):
                spread[i, i] += process[i]
            for g in range(len(pushed)):
                spread[size + g, size + g] += gust[g] * (1 - keeps**2)
    return Innovations(errors=errors, variances=variances, by=derived, means=np.moveaxis(means, -1, 0))


def _start(first: Floats, sensor: Floats, gust: Floats, pushed: list[int]) -> tuple[Floats, Floats]:
    """Return the state's mean float64[Z, K, N] and covariance float64[Z, Z, K, N] before anything is seen."""
    (size, num), num_cases = first.shape, sensor.shape[1]
    whole = size + len(pushed)
    mean, spread = np.zeros((whole, num_cases, num)), np.zeros((whole, whole, num_cases, num))
    mean[:size] = first.mean(axis=1)[:, None, None]
    variance = first.var(axis=1)[:, None, None] + 1e-12
    for i in range(size):
        spread[i, i] = np.maximum(variance[i] - sensor[i], LEAST_START * variance[i])
    for g in range(len(pushed)):
        spread[size + g, size + g] = gust[g]
    return mean, spread


def _moved(
    step: Linear, t: int, mean: Floats, columns: Floats, pushed: list[int], keeps: Floats
) -> tuple[Floats, Floats]:
    """Return the mean and its derivatives a step later."""
    size, slope = step.value.shape[1], step.slope[t]
    away = mean[:size] - step.centres[t][:, None]
    new = np.empty_like(mean)
    new[:size] = np.einsum("ijn,jkn->ikn", slope, away) + step.value[t][:, None]
    told = np.empty_like(columns)
    if columns.shape[1]:
        told[:size] = np.einsum("ijn,jpn->ipn", slope, columns[:size]) + step.by[t]
    for g, i in enumerate(pushed):
        new[i] += mean[size + g]
        told[i] += columns[size + g]
    new[size:], told[size:] = keeps * mean[size:], keeps[0] * columns[size:]
    return new, told


def _spread(slope: Floats, spread: Floats, pushed: list[int], keeps: Floats) -> Floats:
    """Return the covariance a step later, but for the noise that comes in."""
    size = len(slope)
    half = np.empty_like(spread)  # the transition times the covariance
    half[:size] = np.einsum("ijn,jlkn->ilkn", slope, spread[:size])
    for g, i in enumerate(pushed):
        half[i] += spread[size + g]
    half[size:] = keeps * spread[size:]
    new = np.empty_like(spread)
    new[:, :size] = np.einsum("ijkn,mjn->imkn", half[:, :size], slope)
    for g, i in enumerate(pushed):
        new[:, i] += half[:, size + g]
    new[:, size:] = keeps * half[:, size:]
    return new
