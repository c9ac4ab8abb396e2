"""Return and failure rate of episodes before they are known: still open, or closed with rewards that are late.

A critic says of a moment of an episode (its observation, the time, the margin to failing so far) what return is still
to come, and how likely it fails: ridge and logistic regressions on moments of closed episodes of the same policy, each
half predicted by the other one's fit. What an open episode will come to is drawn from what became of the closed
moments that were predicted the nearest, so that the critic need not be right, only sort: an analog forecast (Delle
Monache and others 2013, "Probabilistic weather prediction with an analog ensemble"). Closed episodes are drawn with
their own weights (Rubin 1981, "The Bayesian bootstrap"), which is what few of them leave open. Moments are equally
spaced in an episode, as those are at which an open one is found.

It is an estimate, and no outcome: no monitor reads it, and nothing is rolled back for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flywheel.records import Episode
from flywheel.task import Task

LEAST = 30
"""Closed episodes below which there is no estimate."""
MOMENTS = 3000
"""Moments of closed episodes that the critic learns from."""
_NEAR = 100
"""Closed moments that stand for an open one; more where few closed episodes failed, which can't be sorted well."""
_SURE = 20.0
"""Failed episodes from which it is so few."""
_DRAWS = 400
_RIDGE = 1e-3
_PRIOR = 8.0
"""Of the log odds' coefficients, the inverse variance before anything is seen, of half the episodes each: 4 is a
deviation of a half."""
_PRODUCTS = 8
"""Most numbers of an observation whose products are features, too."""
_ROUNDS = 12

Numbers = NDArray[np.float64]
Margin = Callable[[Episode], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Early:
    """What open episodes are likely to come to: an estimate, never a reason to roll back by itself."""

    digest: str
    """The policy that began them."""
    num: int
    """Episodes that it is about."""
    num_over: int
    """Those of them that are over, and lack a reward."""
    num_closed: int
    """Closed episodes that it was learnt from."""
    mean_return: float
    """Of all of them when they will be known, float64[2] its 95 % interval."""
    return_interval: tuple[float, float]
    failure_rate: float
    failure_interval: tuple[float, float]
    at: float = 0.0
    """When they were as open as that."""

    def __str__(self) -> str:
        """Return it as a sentence that says what it is."""
        low, high = self.return_interval
        least, most = self.failure_interval
        late = f", {self.num_over} of them waiting for rewards" if self.num_over else ""
        return (
            f"estimated: return {self.mean_return:.4g} ({low:.4g} to {high:.4g}), failure rate {self.failure_rate:.1%} "
            f"({least:.1%} to {most:.1%}) from {self.num} open episodes{late}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """Closed moments in order of what was predicted of them, M of them."""

    predicted: Numbers
    """float64[M], ascending"""
    off: Numbers
    """float64[M]: what came out, less what was predicted; or whether it failed."""
    whose: NDArray[np.int64]
    """int64[M]: the number of the closed episode."""
    near: int
    """How many of them stand for an open moment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Critic:
    """What closed episodes of a policy teach."""

    center: Numbers
    spread: Numbers
    to_come: Numbers
    """Coefficients of the return to come."""
    risk: Numbers
    """Coefficients of the log odds of failing."""
    returns: Known
    failures: Known
    num: int
    margin: Margin | None


def estimate(task: Task, closed: Sequence[Episode], begun: Sequence[Episode], now: float) -> Early | None:
    """Return what episodes of a policy will come to that have begun; None where there are none, or too few closed."""
    critic = learn(closed, task.margin) if begun else None
    return None if critic is None else foresee(critic, begun, int(now), now, task.return_range)


def learn(closed: Sequence[Episode], margin: Margin | None = None) -> Critic | None:
    """Return the critic of closed episodes of one policy; None where fewer than LEAST of them are known whole.

    `margin` is the task's, if it has one.
    """
    whole = [e for e in closed if e.end != "lost" and e.num_steps and np.isfinite(e.rewards).all()]
    if len(whole) < LEAST:
        return None
    every = max(1.0, sum(e.num_steps for e in whole) / MOMENTS)
    times = [np.arange((i * 0.618 % 1.0) * every, e.num_steps, every).astype(np.int64) for i, e in enumerate(whole)]
    whose = np.repeat(np.arange(len(whole)), [len(t) for t in times])
    raw = np.concatenate([_raw(e, t, margin) for e, t in zip(whole, times, strict=True)])
    to_go = np.concatenate([np.cumsum(e.rewards[::-1])[::-1][t] for e, t in zip(whole, times, strict=True)])
    failed = np.repeat([float(e.failed) for e in whole], [len(t) for t in times])
    center, spread = raw.mean(axis=0), raw.std(axis=0) + 1e-9
    features = _features((raw - center) / spread)
    halves = [whose % 2 == 0, whose % 2 == 1]
    to_come = [_ridge(features[half], to_go[half]) for half in halves]
    risk = [_logistic(features[half], failed[half], _PRIOR / len(whole)) for half in halves]
    guess, odds = np.zeros(len(raw)), np.zeros(len(raw))
    for half, value, log_odds in zip(halves, reversed(to_come), reversed(risk), strict=True):
        guess[half], odds[half] = features[half] @ value, features[half] @ log_odds
    return Critic(
        center=center,
        spread=spread,
        to_come=(to_come[0] + to_come[1]) / 2,
        risk=(risk[0] + risk[1]) / 2,
        returns=_known(guess, to_go - guess, whose, _NEAR),
        failures=_known(odds, failed, whose, int(_NEAR * max(1.0, _SURE / max(sum(e.failed for e in whole), 0.1)))),
        num=len(whole),
        margin=margin,
    )


def foresee(
    critic: Critic,
    begun: Sequence[Episode],
    seed: int,
    at: float = 0.0,
    possible: tuple[float, float] | None = None,
) -> Early | None:
    """Return what episodes will come to that have begun and aren't known whole; None where there are none.

    No return beyond the `possible` ones (the task's return_range) is told. An open one is given as far as it came, with
    the end "lost". Where a reward is not known yet, the return is estimated from there on; whether an episode that is
    over failed is known.
    """
    if not begun:
        return None
    rng = np.random.default_rng(seed)
    weights = rng.standard_exponential((_DRAWS, critic.num))
    late = [int(np.isnan(e.rewards).argmax()) if np.isnan(e.rewards).any() else e.num_steps for e in begun]
    seen = np.array([e.rewards[:t].sum() for e, t in zip(begun, late, strict=True)])
    come = _come(critic, begun, late) @ critic.to_come
    to_come = come + _drawn(critic.returns, come, weights, rng)
    odds = _come(critic, begun, [e.num_steps for e in begun]) @ critic.risk
    over = np.array([e.end != "lost" for e in begun])
    known = np.array([float(e.failed) for e in begun])
    fails = _drawn(critic.failures, odds, weights, rng)
    # what no closed episode showed may be all the same: it fails, somewhere on the way
    unheard_of = ~over & (rng.random(fails.shape) < rng.beta(0.5, critic.num, (_DRAWS, 1)))
    fails = np.where(over | (known > 0.0), known, np.maximum(fails, unheard_of))
    total = seen + to_come * np.where(unheard_of, rng.random(fails.shape), 1.0)
    unsure = float(np.sqrt(1.0 + len(critic.to_come) / critic.num))  # coefficients were fitted to few episodes, too
    (rate, (least, most)) = _summed(fails.mean(axis=1), unsure)
    mean, span = _summed(total.mean(axis=1), unsure)
    mean, *ends = np.clip([mean, *span], *(possible or (-np.inf, np.inf))).tolist()
    return Early(
        digest=begun[0].digests[0],
        num=len(begun),
        num_over=int(over.sum()),
        num_closed=critic.num,
        mean_return=mean,
        return_interval=(ends[0], ends[1]),
        failure_rate=rate,
        failure_interval=(max(0.0, least), min(1.0, most)),
        at=at,
    )


def _come(critic: Critic, begun: Sequence[Episode], times: Sequence[int]) -> Numbers:
    raw = np.concatenate([_raw(e, np.array([t]), critic.margin) for e, t in zip(begun, times, strict=True)])
    return _features((raw - critic.center) / critic.spread)


def _summed(means: Numbers, unsure: float) -> tuple[float, tuple[float, float]]:
    """Return the mean of draws and their 95 % interval, wider by a factor.

    Of n that F numbers are fitted to, a forecast's error has 1 + F / n times the variance (Draper and Smith 1998,
    section 5.1).
    """
    mean = float(means.mean())
    low, high = mean + unsure * (np.quantile(means, [0.025, 0.975]) - mean)
    return mean, (float(low), float(high))


def _raw(episode: Episode, times: NDArray[np.int64], margin: Margin | None) -> Numbers:
    """Return what is known at some times of an episode: the observation, the time, and the margin so far."""
    seen = episode.observations[times].reshape(len(times), -1).astype(np.float64)
    columns = [seen, times[:, None].astype(np.float64)]
    if margin is not None:
        columns.append(np.array([[_margin(episode, int(t), margin)] for t in times]))
    return np.concatenate(columns, axis=1)


def _margin(episode: Episode, t: int, margin: Margin) -> float:
    t = max(t, 1)
    so_far = dataclasses.replace(
        episode, digests=episode.digests[:t], observations=episode.observations[: t + 1],
        raw_actions=episode.raw_actions[:t], rewards=episode.rewards[:t], logps=episode.logps[:t], end="lost",
        failed=False,
    )  # fmt: skip
    found = float(margin(so_far))
    return found if np.isfinite(found) else 0.0


def _features(rows: Numbers) -> Numbers:
    """Return 1, the numbers, and their products (or squares, if many) float64[N, F]; far ones count as 5 deviations."""
    rows = np.clip(rows, -5.0, 5.0)
    if rows.shape[1] <= _PRODUCTS:
        upper = np.triu_indices(rows.shape[1])
        return np.column_stack([np.ones(len(rows)), rows, rows[:, upper[0]] * rows[:, upper[1]]])
    return np.column_stack([np.ones(len(rows)), rows, np.square(rows)])


def _ridge(features: Numbers, values: Numbers, weights: Numbers | None = None, strength: float = _RIDGE) -> Numbers:
    weighted = features if weights is None else features * weights[:, None]
    penalty = strength * len(features) * np.eye(features.shape[1])
    penalty[0, 0] = 0.0
    return np.asarray(np.linalg.solve(weighted.T @ features + penalty, weighted.T @ values))


def _logistic(features: Numbers, failed: Numbers, strength: float) -> Numbers:
    """Return the coefficients of a logistic regression by reweighted least squares, held back by a ridge.

    The ridge counts episodes: three of them that failed have many moments, and still are three. Half a moment more of
    either kind keeps the odds of what was never seen finite.
    """
    target = (failed * len(failed) + 0.5) / (len(failed) + 1.0)
    found = np.zeros(features.shape[1])
    found[0] = np.log(target.mean() / (1.0 - target.mean()))
    for _ in range(_ROUNDS):
        odds = np.clip(features @ found, -12.0, 12.0)
        p = 1.0 / (1.0 + np.exp(-odds))
        slope = np.maximum(p * (1.0 - p), 1e-6)
        found = _ridge(features, odds + (target - p) / slope, slope, strength)
    return found


def _known(predicted: Numbers, off: Numbers, whose: NDArray[np.int64], near: int) -> Known:
    order = np.argsort(predicted, kind="stable")
    return Known(predicted=predicted[order], off=off[order], whose=whose[order], near=min(near, len(order)))


def _drawn(known: Known, predicted: Numbers, weights: Numbers, rng: np.random.Generator) -> Numbers:
    """Return for each prediction float64[N] draws float64[B, N] of what the nearest closed moments came to.

    `weights` float64[B, E] are the closed episodes' in each draw.
    """
    size = known.near
    first = np.clip(np.searchsorted(known.predicted, predicted) - size // 2, 0, len(known.predicted) - size)
    drawn = np.zeros((len(weights), len(predicted)))
    for i, begin in enumerate(first):
        mass = np.cumsum(weights[:, known.whose[begin : begin + size]], axis=1)
        chosen = (mass < rng.random((len(weights), 1)) * mass[:, -1:]).sum(axis=1)
        drawn[:, i] = known.off[begin + np.minimum(chosen, size - 1)]
    return drawn
