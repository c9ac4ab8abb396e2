"""Whose doing is an alarm about the champion: the release's, or the world's? The control beside it knows. Pure.

Both answers are the ends of e-processes, whose expectation is at most 1 while the answer is wrong, at whatever moment
one looks: by Ville's inequality each is wrong with a probability of at most `error`, however often it is asked.

The release did it: each episode is the control's with a known probability, by a hash that nobody chose, and what the
world does meanwhile it does to both. So of a failure it is asked only whose it was: where the champion fails no oftener
than the control, it is the champion's with a probability of at most 1 - share (the test of Przyborowski and Wilenski
1940, made sequential), at whatever rate both fail. All failures since the release count, not those since the alarm's
evidence begins: that place was chosen by the champion's own failures.

The world did it: the control fails oftener than before. The champion's alarm chose the place from which on it is
counted, and nothing of the control's did, so that this is a test of a place that was given. What it failed before is
not known exactly: the upper end of its exact interval is taken for it.

A loss x in [0, 1] is betted on as a failure is: log(1 + x(f - 1)) >= x log f, as the logarithm is concave, so that the
sums of losses are enough, and the bets lose a little by it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import brentq
from scipy.stats import beta, binomtest

from flywheel.arms import Arms, Count

Whose = Literal["policy", "world", "unknown"]
ERROR = 0.01
"""Probability that the release is blamed for what the world did, and that the world is for what the release did: both
together are wrong about at most one alarm in fifty, whatever is behind them."""
RATIOS = np.array([2.5, 6.0, 20.0])
"""How many times as often something fails that an alarm came of: what is betted on, with equal weights. Twice as often
takes some thousand episodes to see in any case."""
MEASURES = {"failed": 0.75, "loss": 0.25}
"""Weights of the two bets of each kind: a mean of e-processes is one."""
BASELINE = 0.25
"""Part of `error` that is spent on what the control failed before."""
SPLIT_ERROR = 1e-4
"""Probability that a control's share is said to be another than it was given, where it is not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Blame:
    """Whose doing an alarm is."""

    whose: Whose
    """`policy`: the champion is worse than the control at the same time, so that a rollback helps; `world`: the control
    is worse than before, too, so that it is no cure; `unknown`: nothing is certain, or both are."""
    policy: float
    """How many times better it explains what was seen that the champion is worse than the control, as a log."""
    world: float
    """The same of the control's being worse than before."""
    acts_at: float
    """The log from which on either is believed."""
    reason: str
    """It in words, as a clause."""


def blame(arms: Arms, error: float = ERROR) -> Blame:
    """Return whose doing an alarm about the champion is; the same arms always give the same answer."""
    champion, control = arms.beside
    acts_at = -math.log(error)
    if _is_skewed(champion.num_all, control.num_all, arms.share):
        why = (
            f"nobody can say whose doing it is: {control.num_all:,} of {champion.num_all + control.num_all:,} episodes "
            f"began on the policy before it, which is not the {arms.share:.0%} that it was given"
        )
        return Blame(whose="unknown", policy=0.0, world=0.0, acts_at=acts_at, reason=why)
    policy = _mixed([_apart(_of(champion, name), _of(control, name), arms.share) for name in MEASURES])
    spent = BASELINE * error / len(MEASURES)
    limits = {"failed": _upper(arms.usual, spent), "loss": _upper_mean(arms.usual.loss, arms.usual.num, spent)}
    since = arms.after[1]
    world = _mixed([_above(_of(since, name), since.num, limits[name]) for name in MEASURES])
    world += math.log1p(-BASELINE)  # what is left of the error
    is_policy, is_world = policy >= acts_at, world >= acts_at
    whose: Whose = "unknown" if is_policy == is_world else "policy" if is_policy else "world"
    reason = _told(arms, whose, is_policy and is_world)
    return Blame(whose=whose, policy=policy, world=world, acts_at=acts_at, reason=reason)


def _of(count: Count, measure: str) -> float:
    return float(count.num_failed if measure == "failed" else count.loss)


def _mixed(logs: list[float]) -> float:
    return float(np.logaddexp.reduce(np.array(logs) + np.log(list(MEASURES.values()))))


def _is_skewed(num_champion: int, num_control: int, share: float) -> bool:
    """Say whether the control's episodes are not as many as its share says: then failures say nothing of whose."""
    num = num_champion + num_control
    return num > 0 and float(binomtest(num_control, num, share).pvalue) < SPLIT_ERROR


def _apart(champion: float, control: float, share: float) -> float:
    """Return the log of the bets that a failure is the champion's oftener than by its share."""
    gain = champion * np.log(RATIOS) - (champion + control) * np.log1p((1.0 - share) * (RATIOS - 1.0))
    return float(np.logaddexp.reduce(gain) - math.log(len(RATIOS)))


def _above(failed: float, num: int, limit: float) -> float:
    """Return the log of the bets that the mean of `num` numbers in [0, 1], which sum up to `failed`, is above a limit.

    A bet is on odds that are so many times those of the limit.
    """
    if limit >= 1.0 or not num:
        return 0.0
    odds = RATIOS * limit / (1.0 - limit)
    gain = failed * np.log(odds / (1.0 + odds) / limit) - (num - failed) * (np.log1p(odds) + math.log1p(-limit))
    return float(np.logaddexp.reduce(gain) - math.log(len(RATIOS)))


def _upper(count: Count, error: float) -> float:
    """Return what a failure rate is below, but for a probability of `error` (Clopper and Pearson 1934)."""
    if count.num_failed >= count.num:
        return 1.0
    return float(beta.ppf(1.0 - error, count.num_failed + 1, count.num - count.num_failed))


def _upper_mean(total: float, num: int, error: float) -> float:
    """Return what the mean of numbers in [0, 1] is below, but for `error` (Chernoff, as Hoeffding 1963, theorem 1)."""
    mean = total / num if num else 1.0
    if mean >= 1.0:
        return 1.0

    def short(limit: float) -> float:
        apart = (1.0 - mean) * math.log((1.0 - mean) / (1.0 - limit))
        return num * (apart + (mean * math.log(mean / limit) if mean else 0.0)) + math.log(error)

    most = 1.0 - 1e-12
    return float(brentq(short, max(mean, 1e-12), most)) if short(most) > 0.0 else 1.0


def _told(arms: Arms, whose: Whose, are_both: bool) -> str:
    champion, control = arms.beside
    now, usual = arms.after[1], arms.usual
    beside = f"({_some(control)} failed against {_some(champion)})"
    since = f"({_some(now)} failed since then, {_some(usual)} before)"
    if whose == "policy":
        return f"the policy before it does as well as ever beside it {beside}: the release did it"
    if whose == "world":
        return f"the policy before it got worse, too {since}: the world did it, and going back is no cure"
    if are_both:
        return f"the policy before it got worse, too {since}, and still does better beside it {beside}: both did it"
    return f"the policy before it was seen too little beside it to tell whose doing it is {beside}"


def _some(count: Count) -> str:
    return f"{count.num_failed:,} of {count.num:,}"
