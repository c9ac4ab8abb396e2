"""When the evidence is enough: tests that may be looked at after every simulation without losing their guarantee.

All of them are e-processes: under the hypothesis to be rejected their expectation is at most 1 at any stopping time,
so by Ville's inequality the probability that one of them ever reaches 1 / error is at most `error`.

Failure rate: mixture likelihood ratios (Robbins 1970, "Statistical methods related to the law of the iterated
logarithm"; Ramdas, Grünwald, Vovk and Shafer 2023, "Game-theoretic statistics and safe anytime-valid inference",
section 3). Each ratio (q/p0)^x ((1-q)/(1-p0))^(1-x) with q < p0 has expectation at most 1 for all p >= p0, so a
mixture of them tests p >= p0; with q > p0 they test p <= p0. Here q has a few multiples of p0's odds, most of the
weight where decisions are made: a policy at the aim is to pass the limit, one at the limit to be refused at the aim.

Mean of bounded differences: capital of a bettor on 1 + lambda (m - d), mixed over lambda (Waudby-Smith and Ramdas
2024, "Estimating means of bounded random variables by betting", section 4 and appendix on grid-Kelly).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Side = Literal["below", "above"]
"""What the evidence is for: that the truth lies below the limit, or above it."""

_AIM = 0.4
_MIXTURES = {
    "below": (np.array([0.2, _AIM, 0.6]), np.array([0.1, 0.8, 0.1])),
    "above": (np.array([1.25, 1.5, 1.0 / _AIM, 5.0, 15.0]), np.array([0.05, 0.1, 0.55, 0.15, 0.15])),
}
"""Shares of the limit's odds where the alternatives lie, and how much each counts."""
_FRACTIONS = (np.arange(20) + 0.5) / 20  # bets as shares of the largest that can't ruin: uniform on (0, 1)
_LARGEST = 700.0  # exp(710) overflows
_HALVINGS = 50


def aim(limit: float) -> float:
    """Return the failure rate that a good policy keeps, 0.4 of the limit's odds: 2 % for 5 %.

    The gate passes such a policy with a probability of at least 1 - error, and refuses what is surely worse: what lies
    between aim and limit may go either way. It is what makes a refusal as quick as an approval.
    """
    odds = _AIM * limit / (1.0 - limit)
    return odds / (1.0 + odds)


def log_evidence(num_failed: ArrayLike, num: ArrayLike, limit: float, side: Side) -> NDArray[np.float64]:
    """Return the log of the e-process on a failure rate after `num_failed` of `num`, elementwise; 0 < limit < 1."""
    k = np.asarray(num_failed, dtype=np.float64)
    n = np.asarray(num, dtype=np.float64)
    shares, weights = _MIXTURES[side]
    odds = limit / (1.0 - limit)
    each = np.log1p(odds) - np.log1p(shares * odds)
    ratios = np.log(weights) + k[..., None] * np.log(shares) + n[..., None] * each
    return np.asarray(np.logaddexp.reduce(ratios, axis=-1))


def evidence(num_failed: int, num: int, limit: float, side: Side) -> float:
    """Return the e-value that the failure rate lies on `side` of `limit`: 20 settles it with an error of 5 %."""
    return float(np.exp(min(float(log_evidence(num_failed, num, limit, side)), _LARGEST)))


def bounds(num_failed: int, num: int, error: float) -> tuple[float, float]:
    """Return the lower and upper bound of a failure rate; each is wrong, ever, with probability at most `error`.

    A limit lies above the upper bound exactly when `evidence(..., limit, "below")` has reached 1 / error, and so
    for the lower one: the evidence is monotone in the limit.
    """
    rate = num_failed / num if num else 0.5
    enough = -np.log(error)
    lower = upper = rate
    if num_failed > 0:
        lower = _crossing(lambda limit: float(log_evidence(num_failed, num, limit, "above")) < enough, rate, 0.0)
    if num_failed < num:
        upper = _crossing(lambda limit: float(log_evidence(num_failed, num, limit, "below")) < enough, rate, 1.0)
    return (lower, upper) if num else (0.0, 1.0)


def log_mean_evidence(differences: ArrayLike, limit: float, side: Side) -> NDArray[np.float64]:
    """Return the log of the e-process on the mean of differences float64[N] in [-1, 1], after each; -1 < limit < 1."""
    return _log_wealth(_bets(differences, limit, side).cumsum(axis=0))


def mean_evidence(differences: ArrayLike, limit: float, side: Side) -> float:
    """Return the e-value that the mean of differences in [-1, 1] lies on `side` of `limit`."""
    return float(np.exp(min(float(_log_wealth(_bets(differences, limit, side).sum(axis=0))), _LARGEST)))


def _bets(differences: ArrayLike, limit: float, side: Side) -> NDArray[np.float64]:
    """Return what each bet gains on each difference, as logs float64[N, bets]."""
    d = np.asarray(differences, dtype=np.float64)
    gain = (limit - d) / (1.0 - limit) if side == "below" else (d - limit) / (1.0 + limit)
    return np.log1p(gain[:, None] * _FRACTIONS)


def _log_wealth(capital: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.logaddexp.reduce(capital, axis=-1) - np.log(len(_FRACTIONS)))


def mean_bounds(differences: ArrayLike, error: float) -> tuple[float, float]:
    """Return the lower and upper bound of the mean of differences in [-1, 1]; each is wrong, ever, at most `error`."""
    d = np.asarray(differences, dtype=np.float64)
    if not len(d):
        return -1.0, 1.0
    mean, enough = float(d.mean()), 1.0 / error
    return (
        _crossing(lambda limit: mean_evidence(d, limit, "above") < enough, mean, -1.0),
        _crossing(lambda limit: mean_evidence(d, limit, "below") < enough, mean, 1.0),
    )


LOOKS = 3
"""Times that a candidate's extra risk is looked at, equally far apart."""
_FUTILE = (-1.0, -0.5)  # z at the looks before the last, at or below which nobody will be found worse any more


@functools.cache
def boundaries(error: float) -> tuple[float, ...]:
    """Return what z has to reach at each look (O'Brien and Fleming 1979), where chance alone does so with `error`.

    The sum of what each look adds has to reach the same at all of them, so that z has to reach less the later it is.
    """
    most = _crossing(lambda limit: _reached(limit) > error, 0.0, 20.0)
    return tuple(most / look**0.5 for look in range(1, LOOKS + 1))


def _reached(limit: float) -> float:
    """Return how probably a sum of LOOKS standard normal numbers reaches `limit` on its way (Armitage et al. 1969)."""
    sums, step = np.linspace(-12.0, limit, 401, retstep=True)
    weights = np.full(len(sums), float(step))
    weights[[0, -1]] /= 2
    density = _normal(sums)
    for _ in range(LOOKS - 1):
        density = _normal(sums[:, None] - sums) @ (weights * density)
    return 1.0 - float(weights @ density)


def _normal(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.exp(-0.5 * np.square(x)) / np.sqrt(2 * np.pi))


def worse(differences: ArrayLike, num: int, error: float, least: float) -> tuple[bool | None, float]:
    """Say whether the mean of paired differences float64[N] is surely more than none, and z where that was answered.

    A group-sequential sign test by size: z is the sum of differences over the root of the sum of their squares (for
    differences of -1, 0 and 1 that is McNemar's test 1947, whose error Fagerland, Lydersen and Laake 2013 found to
    keep what it promises without a correction). It needs a tenth more pairs than a test with one look, an e-process
    half as many again. It is looked at after each third of `num` pairs; True at a boundary where the mean is `least`
    at least; False at the last look, or where z is so low that it will hardly be True later; None while a look is to
    come.
    """
    d = np.asarray(differences, dtype=np.float64)
    z = 0.0
    for look, boundary in enumerate(boundaries(error), 1):
        size = max(1, num * look // LOOKS)
        if len(d) < size:
            return None, z
        some = d[:size]
        squares = float(np.square(some).sum())
        if not squares:
            return False, 0.0
        z = float(some.sum()) / squares**0.5
        if z >= boundary and float(some.mean()) >= least:
            return True, z
        if look < LOOKS and z <= _FUTILE[look - 1]:
            return False, z
    return False, z


def _crossing(open_at: Callable[[float], bool], inside: float, outside: float) -> float:
    """Return the limit between `inside` (open) and `outside` (settled, or the end) where the question closes."""
    for _ in range(_HALVINGS):
        middle = 0.5 * (inside + outside)
        if middle in (inside, outside):
            break
        if open_at(middle):
            inside = middle
        else:
            outside = middle
    return outside
