"""What is kept for ever of a tail that is too long: every failure, a share of the rest, and means that stay unbiased.

An episode that did not fail is kept while the hash of its id is below a share; that share is its inclusion probability.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from flywheel.errors import UsageError

_SALT = b"flywheel: kept for ever"
"""Tells this draw from others that are made of an episode's id: which of them has spans, which arm it goes to."""


def place(id_: str) -> float:
    """Return an episode's place in [0, 1): the same on every machine, spread evenly over ids."""
    hashed = hashlib.blake2b(id_.encode(), digest_size=8, key=_SALT).digest()
    return (int.from_bytes(hashed) >> 11) / 2**53


def is_kept(id_: str, failed: bool, share: float) -> bool:
    """Say whether an episode outlives a thinning to a share; a smaller share keeps some of what a larger one keeps."""
    return failed or place(id_) < share


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over all episodes, by those that were kept."""

    value: float
    interval: tuple[float, float]
    """95 %, of the mean over all episodes that there were, or of what they came from, as was asked."""
    effective: float
    """Episodes of equal weight that would say as much (Kish 1965): (sum w)^2 / sum w^2."""


def weighted_mean(values: ArrayLike, inclusion: ArrayLike, *, of_process: bool = False) -> Mean:
    """Return the mean of float[N] `values`, each episode standing for 1 / inclusion of those that there were.

    It is Hájek's (Särndal, Swensson and Wretman 1992, equation 5.7.4), with the variance of Poisson sampling by
    linearization (5.7.6). The interval covers the mean of all the episodes that there were; with `of_process`, the mean
    of what they are a sample of. UsageError without an episode, or with an inclusion outside (0, 1].
    """
    from scipy.special import stdtrit  # which nobody needs who only keeps episodes

    x, share = np.asarray(values, np.float64), np.asarray(inclusion, np.float64)
    if not len(x) or x.shape != share.shape or not ((share > 0.0) & (share <= 1.0)).all():
        raise UsageError(
            f"A weighted mean takes as many values ({len(x)}) as inclusion probabilities ({len(share)}), at least one, "
            "and those are more than 0 and at most 1: give each episode's own."
        )
    weights = 1.0 / share
    total = weights.sum()
    value = float((weights * x).sum() / total)
    variance = float(((1.0 - share) * weights**2 * (x - value) ** 2).sum()) / total**2
    if of_process:
        variance += float((weights * (x - value) ** 2).sum()) / total**2
    effective = float(total**2 / (weights**2).sum())
    # those that were kept for sure say nothing of the variance
    free = max(1.0, float((share < 1.0).sum()) - 1.0 if not of_process else len(x) - 1.0)
    half = float(stdtrit(free, 0.975)) * variance**0.5
    return Mean(value, (value - half, value + half), effective)
