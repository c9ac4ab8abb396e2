"""What an edit changed: the mean of paired differences, and how sure that is. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from flywheel.records import Episode

LEVEL = 0.95
"""Coverage of every interval here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """How many of some episodes failed, with the exact interval of Clopper and Pearson (1934)."""

    num_failed: int
    num: int
    interval: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What an edit changed in the rest of an episode, over pairs of runs that share their draws."""

    num_pairs: int
    mean: float
    """Mean of return with the edit minus return without it."""
    interval: tuple[float, float]
    """Of that mean, 95 %."""
    unedited: Rate
    edited: Rate
    means: tuple[float, float]
    """Mean returns without and with the edit."""


def effect_of(unedited: Sequence[Episode], edited: Sequence[Episode]) -> Effect:
    """Return the effect over pairs of episodes."""
    one, other = (np.array([e.total for e in some]) for some in (unedited, edited))
    return Effect(
        num_pairs=len(one),
        mean=float((other - one).mean()),
        interval=mean_interval(other - one),
        unedited=rate(sum(e.failed for e in unedited), len(unedited)),
        edited=rate(sum(e.failed for e in edited), len(edited)),
        means=(float(one.mean()), float(other.mean())),
    )


def rate(num_failed: int, num: int) -> Rate:
    """Return a failure rate with its exact interval."""
    tail = (1.0 - LEVEL) / 2
    low = float(stats.beta.ppf(tail, num_failed, num - num_failed + 1)) if num_failed else 0.0
    high = float(stats.beta.ppf(1.0 - tail, num_failed + 1, num - num_failed)) if num_failed < num else 1.0
    return Rate(num_failed=num_failed, num=num, interval=(low, high))


def mean_interval(differences: ArrayLike) -> tuple[float, float]:
    """Return Student's interval of the mean of differences float64[N]."""
    d = np.asarray(differences, dtype=np.float64)
    half = float(stats.t.ppf(0.5 + LEVEL / 2, len(d) - 1) * d.std(ddof=1) / np.sqrt(len(d)))
    return float(d.mean()) - half, float(d.mean()) + half
