"""What outcomes of two arms say: is the challenger worse than the champion, as good, or are its episodes lost oftener?

All of them are e-processes: their expectation is at most 1, at any stopping time, while the answer is no; so by
Ville's inequality one ever reaches 1 / error with a probability of at most `error`. Each episode is the challenger's
with a known probability, its share, by a hash that nobody chose; what the world does meanwhile it does to both arms.

Worse: of a failure it is asked only whose it was. Where the challenger fails `ratio` times as often as the champion, it
is the challenger's with the odds share * ratio to 1 - share, so a bet on that gains ratio^x / (1 - share + share *
ratio); its expectation is at most 1 where the true ratio is at most 1, at whatever rate both fail now (the test of
Przyborowski and Wilenski 1940, made sequential). Mixed over ratios, most of the weight where it is hard to tell.

As good: a bet that the arms fail at expected rates, against the nearest pair of rates where the challenger fails
`margin` oftener (Turner, Ly and Grünwald 2024, "Generic E-variables for exact sequential k-sample tests"). That pair is
the constrained maximum likelihood of Farrington and Manning (1990), in the closed form of Miettinen and Nurminen
(1985). What is expected was learnt from the outcomes before, once as one rate of both arms, once as a rate of each.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

RATIOS = np.array([1.5, 2.2, 4.0, 15.0])
"""How many times as often as the champion the challenger may fail, and lose: what is betted on."""
WORSE = np.log(np.array([0.45, 0.35, 0.15, 0.05]))
"""Log weights of those bets."""
GOOD = np.log(np.array([0.7, 0.3]))
"""Log weights of one rate for both arms, and of a rate of each."""
APART = np.array([1 / 4.0, 1 / 2.0, 2.0, 4.0])
"""How many times as often episodes of the challenger may be lost."""
LOST = np.log(np.full(len(APART), 1 / len(APART)))
"""Log weights of those bets."""
_PRIOR = 0.5
"""Failures that each expected rate begins with, in as many episodes as make it the margin."""
_LEAST = 1e-6
"""Expected rates are so far from 0 and 1."""
_TINY = 1e-12


def whose(is_challengers: ArrayLike, share: ArrayLike, ratios: Array) -> Array:
    """Return what bets on ratios gain on whose event this was, as logs float64[..., J]."""
    mine = np.asarray(is_challengers, dtype=np.bool_)[..., None]
    given = np.asarray(share, dtype=np.float64)[..., None]
    return np.where(mine, np.log(ratios), 0.0) - np.log1p(given * (ratios - 1.0))


def worse(failed: ArrayLike, is_challengers: ArrayLike, share: ArrayLike) -> Array:
    """Return what the bets that the challenger is worse gain on an outcome, as logs float64[..., J]."""
    return np.where(np.asarray(failed)[..., None], whose(is_challengers, share, RATIOS), 0.0)


def good(
    failed: ArrayLike, is_challengers: ArrayLike, share: ArrayLike, margin: float, num: ArrayLike, num_failed: ArrayLike
) -> Array:
    """Return what the bets that the challenger is as good gain on an outcome, as logs float64[..., 2].

    `num` and `num_failed` [..., 2] are the outcomes before it and the failures among them, of champion and challenger.
    """
    champion, challenger = expected(num, num_failed, margin)
    given = np.asarray(share, dtype=np.float64)[..., None]
    nearest = nearest_worse(champion, challenger, given, margin)
    mine = np.asarray(is_challengers, dtype=np.bool_)[..., None]
    hoped = np.where(mine, challenger, champion)
    feared = np.where(mine, nearest + margin, nearest)
    gain = np.where(np.asarray(failed)[..., None], np.log(hoped / feared), np.log1p(-hoped) - np.log1p(-feared))
    return np.where(challenger < champion + margin, gain, 0.0)  # what is expected may be the very thing that is feared


def expected(num: ArrayLike, num_failed: ArrayLike, margin: float) -> tuple[Array, Array]:
    """Return the failure rates of champion and challenger that are expected, each float64[..., 2]: of both, of each."""
    n = np.asarray(num, dtype=np.float64) + _PRIOR / margin
    k = np.asarray(num_failed, dtype=np.float64) + _PRIOR
    both = (k.sum(axis=-1) / n.sum(axis=-1))[..., None]
    rates = np.clip(k / n, _LEAST, 1.0 - _LEAST)
    return (
        np.concatenate([both, rates[..., :1]], axis=-1),
        np.concatenate([both, rates[..., 1:]], axis=-1),
    )


def nearest_worse(champion: ArrayLike, challenger: ArrayLike, share: ArrayLike, margin: float) -> Array:
    """Return the champion's rate q that makes (q, q + margin) the likeliest such pair for these rates, elementwise.

    It minimizes share * KL(challenger | q + margin) + (1 - share) * KL(champion | q): the root of a cubic.
    """
    p0, p1 = np.asarray(champion, dtype=np.float64), np.asarray(challenger, dtype=np.float64)
    w1 = np.asarray(share, dtype=np.float64)
    w0 = 1.0 - w1
    sum_failed = w1 * p1 + w0 * p0
    square = (w1 + 2.0 * w0) * margin - 1.0 - sum_failed
    linear = (w0 * margin - 1.0 - 2.0 * w0 * p0) * margin + sum_failed
    constant = w0 * p0 * margin * (1.0 - margin)
    q = square**3 / 27.0 - square * linear / 6.0 + constant / 2.0
    p = np.copysign(np.sqrt(np.maximum(square**2 / 9.0 - linear / 3.0, 0.0)), q)
    angle = (np.pi + np.arccos(np.clip(q / p**3, -1.0, 1.0))) / 3.0
    return np.asarray(np.clip(2.0 * p * np.cos(angle) - square / 3.0, _TINY, 1.0 - margin - _TINY))


def is_above(num_failed: int, num: int, limit: float, error: float) -> bool:
    """Say whether so many failures of `num` show a rate above a limit, which is wrong with at most `error` (Chernoff).

    For one look: of a test that is looked at again and again the bets above are the better part.
    """
    rate = num_failed / num if num else 0.0
    if rate <= limit or limit <= 0.0:
        return rate > limit
    well = (1.0 - rate) * math.log((1.0 - rate) / (1.0 - limit)) if rate < 1.0 else 0.0
    return num * (rate * math.log(rate / limit) + well) >= -math.log(error)


def total(capital: ArrayLike, weights: Array) -> Array:
    """Return the log of an e-process whose bets have this capital, as logs float64[..., J], and these log weights."""
    return np.asarray(np.logaddexp.reduce(np.asarray(capital, dtype=np.float64) + weights, axis=-1))
