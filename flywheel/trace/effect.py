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
FEW = 10
"""So many pairs that are not like most others tell enough of themselves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """How many of some episodes failed, with the exact interval of Clopper and Pearson (1934)."""

    num_failed: int
    num: int
    interval: tuple[float, float]
    """A point where nothing is drawn."""


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
    differences: tuple[float, ...]
    """Of each pair."""
    is_drawn: bool = True
    """False: neither policies nor world draw anything, so that every run is this one pair and each interval a point."""


def effect_of(
    unedited: Sequence[Episode], edited: Sequence[Episode], span: float | None, by_chance: bool = True
) -> Effect:
    """Return the effect over pairs of episodes.

    `span` is the width of the range of returns, None where nobody knows it. `by_chance` is False where nothing is drawn
    in either run (a greedy policy): where all pairs are alike then, there is no doubt about them.
    """
    one, other = (np.array([e.total for e in some]) for some in (unedited, edited))
    differences = other - one
    if not by_chance and (differences == differences[0]).all():
        interval = (float(differences[0]), float(differences[0]))
    else:
        widest = float(np.ptp(np.concatenate([one, other]))) if span is None else span
        interval = mean_interval(differences, widest)
    return Effect(
        num_pairs=len(one),
        mean=float(differences.mean()),
        interval=interval,
        unedited=rate(sum(e.failed for e in unedited), len(unedited)),
        edited=rate(sum(e.failed for e in edited), len(edited)),
        means=(float(one.mean()), float(other.mean())),
        differences=tuple(differences.tolist()),
    )


def effect_of_one(unedited: Episode, edited: Episode) -> Effect:
    """Return the effect where nothing is drawn: every pair of runs is this one, which leaves no doubt."""
    difference, failed = edited.total - unedited.total, [float(each.failed) for each in (unedited, edited)]
    one, other = (Rate(num_failed=int(share), num=1, interval=(share, share)) for share in failed)
    return Effect(
        num_pairs=1,
        mean=difference,
        interval=(difference, difference),
        unedited=one,
        edited=other,
        means=(unedited.total, edited.total),
        differences=(difference,),
        is_drawn=False,
    )


def rate(num_failed: int, num: int) -> Rate:
    """Return a failure rate with its exact interval."""
    tail = (1.0 - LEVEL) / 2
    low = float(stats.beta.ppf(tail, num_failed, num - num_failed + 1)) if num_failed else 0.0
    return Rate(num_failed=num_failed, num=num, interval=(low, _at_most(num_failed, num)))


def _at_most(num_of: int, num: int) -> float:
    """Return the share that `num_of` of `num` leave room for: the upper end of the exact interval."""
    return float(stats.beta.ppf(0.5 + LEVEL / 2, num_of + 1, num - num_of)) if num_of < num else 1.0


def mean_interval(differences: ArrayLike, widest: float) -> tuple[float, float]:
    """Return the 95 % interval of the mean of at least two paired differences, none of which exceeds `widest`.

    At either end the wider one of Student's interval and of Hall's for skewed data (1992, "On the removal of skewness
    by transformation", equation 2.1). Where most pairs are alike and only a few are not, such as the rare ones in
    which one run fails and the other doesn't, both know too little of the rare ones. Then as many more of them are
    allowed for as the exact interval of their share does, each as large as the largest one seen (or as `widest`).
    """
    d = np.asarray(differences, dtype=np.float64)
    num, mean, deviation = len(d), float(d.mean()), float(d.std(ddof=1))
    values, counts = np.unique(d, return_counts=True)
    usual, num_others = values[counts.argmax()], num - int(counts.max())
    low = high = 0.0
    if deviation > 0:
        skew = float((((d - mean) / d.std()) ** 3).mean())
        student = float(stats.t.ppf(0.5 + LEVEL / 2, num - 1))
        ends = (_hall(-student, skew, num), _hall(student, skew, num))
        low, high = (deviation / num**0.5 * max(student, side) for side in (ends[1], -ends[0]))
    if num_others < min(FEW, num / 2):
        size = float(np.abs(d - usual).max()) if num_others else widest
        more = (_at_most(num_others, num) - num_others / num) * size
        low, high = max(low, more), max(high, more)
    return mean - low, mean + high


def _hall(quantile: float, skew: float, num: int) -> float:
    """Return Hall's quantile of Student's statistic of skewed data."""
    if abs(skew) < 1e-6:
        return quantile
    root = num**0.5
    return float(3 * root / skew * (np.cbrt(1 + skew * (quantile - skew / (6 * root)) / root) - 1))
