"""What a candidate would have brought in production, from the episodes that another policy was seen in.

With the ratio rho_t of the candidate's and the acting policy's probability of the action at t, and w_t the product of
rho_0 to rho_t, an episode of return G and rewards r_t is worth (Precup, Sutton and Singh 2000, "Eligibility traces for
off-policy policy evaluation"; Jiang and Li 2016, "Doubly robust off-policy value evaluation")

    IS    w_T G                 WIS   the same, divided by the mean w_T of all episodes instead of by 1
    PDIS  sum of w_t r_t        DR    PDIS less sum of (w_t - w_(t-1)) V(o_t, t), with w_(-1) = 1

V, a ridge regression on observation and time, is fitted to the other half of the episodes. Any V leaves DR's mean where
it is, since w_t has the conditional mean w_(t-1); a good one takes the noise of the ratios away. It is the doubly
robust estimator whose model of an action's value is that of its state, so that a policy which is compared with itself
has the logged mean exactly: every ratio is 1.

Intervals are studentized bootstraps over episodes (Efron and Tibshirani 1993, chapter 12): weights are skew, and
symmetric intervals are wrong where it matters. Nothing here is a verdict: production's own episodes say nothing about
what the acting policy never did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from flywheel.analyze.likelihood import logps
from flywheel.errors import Refused
from flywheel.policy import Policy
from flywheel.records import Episode

LEAST = 50.0
"""Least effective sample size: with fewer, a handful of episodes would speak for all (measured: at 9, a policy of 486
was said to be worth 570)."""
DRAWS = 1000
"""Resamples of a bootstrap."""
_TAIL = 0.02
"""Of resamples, on each side: where weights are skew 2.5 % leave intervals a little short (94.5 % in eight trials of
700 logs, with 300 to 320 effective episodes)."""
_FEW = 20.0
"""Effective number of returns below which those that aren't the usual one are few."""
_RIDGE = 1e-3
_QUADRATIC = 12
"""Most numbers of an observation whose products are features of the value, too."""
_NUMBERS = 2e7
"""Most numbers of padded observations: 160 MB; the oldest episodes go first."""
_STEPS = 20_000
"""Most steps that the value is fitted to: further ones change nothing."""

Numbers = NDArray[np.float64]
Span = tuple[float, float]
Method = Literal["IS", "WIS", "PDIS", "DR"]
METHODS: tuple[Method, ...] = ("IS", "WIS", "PDIS", "DR")


@dataclass(frozen=True, slots=True, kw_only=True)
class Logged:
    """Logged episodes as arrays, padded with zeros to the longest, N episodes of at most T steps."""

    observations: Numbers
    """float64[N, T, D]"""
    rewards: Numbers
    """float64[N, T]"""
    ratios: Numbers
    """float64[N, T]: log of the target's probability of each action over that with which it was taken."""
    acted: NDArray[np.bool_]
    """bool[N, T]: which are steps."""
    failed: NDArray[np.bool_]
    """bool[N]"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Worth:
    """A mean over episodes, estimated, with its 95 % interval."""

    method: str
    value: float
    interval: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class OffPolicy:
    """What logged episodes say of a policy that did not act in them; plain values only."""

    digest: str
    num: int
    """Episodes that were read."""
    num_left_out: int
    """Others: lost, with a reward that isn't known yet or an observation that is no number, with an action of which
    nobody knows how likely it was, or too old for memory."""
    effective: float
    """Effective sample size, (sum of w)^2 / sum of w^2 (Kish 1965)."""
    logged: Worth | None = None
    """Mean return of the policy that acted."""
    returns: tuple[Worth, ...] = ()
    """Mean return of the target, by method; () where it is refused."""
    failed: Worth | None = None
    """The target's failure rate, by WIS."""
    logged_failed: Worth | None = None
    """That of the policy that acted."""
    refusal: str = ""
    """Why there is no estimate, as a sentence."""

    @property
    def best(self) -> Worth | None:
        """The estimate with the least noise."""
        return next((worth for worth in self.returns if worth.method == "DR"), None)

    @property
    def is_screened(self) -> bool:
        """True where the target is surely worse than what acted: no overlap of the returns' intervals, or of failures'.

        Both stand on the same episodes, which makes this the more cautious.
        """
        best, logged, failed, before = self.best, self.logged, self.failed, self.logged_failed
        if best is None or logged is None or failed is None or before is None:
            return False
        return best.interval[1] < logged.interval[0] or failed.interval[0] > before.interval[1]

    def __str__(self) -> str:
        """Return it as a sentence."""
        best, logged, failed, before = self.best, self.logged, self.failed, self.logged_failed
        if best is None or logged is None or failed is None or before is None:
            return f"no off-policy estimate of policy {self.digest[:8]}: {self.refusal}"
        return (
            f"{'screened: ' if self.is_screened else ''}off-policy estimate of policy {self.digest[:8]} from "
            f"{self.num:,} episodes of production, which count as {self.effective:,.0f}: return {number(best)} where "
            f"{number(logged)} was seen, failure rate {rate(failed)} where {rate(before)} was seen"
        )


def number(worth: Worth) -> str:
    """Return an estimate with its interval."""
    return f"{worth.value:.4g} ({worth.interval[0]:.4g} to {worth.interval[1]:.4g})"


def rate(worth: Worth) -> str:
    """Return an estimated share with its interval."""
    return f"{worth.value:.1%} ({worth.interval[0]:.1%} to {worth.interval[1]:.1%})"


def evaluate(episodes: Sequence[Episode], target: Policy, seed: int, span: Span | None = None) -> OffPolicy:
    """Return what production's episodes say of a policy; `seed` is the root of the resamples.

    `span` is as for `estimate`. Raises nothing for what can't be said: `refusal` says it then.
    """
    usable = [episode for episode in episodes if _is_usable(episode)]
    usable = usable[-_fitting(usable) :]
    left_out = len(episodes) - len(usable)
    try:
        logged = read(usable, target)
    except Refused as error:
        return _refused(target.digest, len(usable), left_out, 0.0, str(error))
    if (obstacle := _obstacle(usable, logged)) is not None:
        return _refused(target.digest, len(usable), left_out, 0.0, obstacle)
    return estimate(logged, target.digest, left_out, seed, span)


def estimate(logged: Logged, digest: str, num_left_out: int, seed: int, span: Span | None = None) -> OffPolicy:
    """Return what logged episodes say of a policy by their ratios; refused below an effective sample size of LEAST.

    `span` is the least and the most that a return can be, None where the task gives no range: then what was seen.
    """
    num, weights = len(logged.failed), _weights(logged)
    last = weights[:, -1] if weights.size else np.zeros(num)
    effective = _effective(last)
    if not effective >= LEAST:
        few = num < LEAST
        why = "there are too few of them" if few else "it acts too differently from the policy that was seen"
        return _refused(digest, num, num_left_out, effective, f"{num:,} episodes of production count as "
                        f"{effective:.0f}, and {LEAST:.0f} are needed: {why}")  # fmt: skip
    counts = np.random.default_rng(seed).multinomial(num, np.full(num, 1.0 / num), DRAWS).astype(np.float64)
    returns, one = logged.rewards.sum(axis=1), np.ones(num)
    each = {
        "IS": (last * returns, one),
        "WIS": (last * returns, last),
        "PDIS": ((weights * logged.rewards).sum(axis=1), one),
    }
    each["DR"] = (each["PDIS"][0] - _controls(logged, weights), one)
    worths = [_worth(method, *each[method], counts) for method in METHODS]
    rare = METHODS if (weights == 1.0).all() else ("WIS", "DR")  # of itself a policy's estimates are all the logged one
    return OffPolicy(
        digest=digest,
        num=num,
        num_left_out=num_left_out,
        effective=effective,
        logged=_rare(_worth("logged", returns, one, counts), returns, one, span),
        returns=tuple(_rare(each, returns, last, span) if each.method in rare else each for each in worths),
        failed=_share(logged.failed, last),
        logged_failed=_share(logged.failed, one),
    )


def _refused(digest: str, num: int, num_left_out: int, effective: float, why: str) -> OffPolicy:
    return OffPolicy(digest=digest, num=num, num_left_out=num_left_out, effective=effective, refusal=why)


def _fitting(episodes: Sequence[Episode]) -> int:
    """Return how many of the last episodes fit into memory, padded to the longest; at least one."""
    each = max((episode.observations.size for episode in episodes), default=1)
    return max(1, int(_NUMBERS // max(each, 1)))


def _is_usable(episode: Episode) -> bool:
    known = all(np.isfinite(each).all() for each in (episode.logps, episode.rewards, episode.observations[:-1]))
    return episode.end != "lost" and episode.num_steps > 0 and known


def _obstacle(episodes: Sequence[Episode], logged: Logged) -> str | None:
    """Return why nothing can be said whatever the weights are: the policy that acted drew no actions."""
    if any(not episode.logps.any() for episode in episodes) and logged.ratios.any():
        return (
            "the policy in service was greedy, so that production never shows what another action would bring: serve "
            "with a temperature or an exploration rate, or leave it to gate and canary"
        )
    return None


def read(episodes: Sequence[Episode], target: Policy) -> Logged:
    """Return episodes as arrays, with the ratios for a target. Raises Refused where that has no probabilities.

    What the target itself did has the ratio 1, whatever the last bit of an arithmetic says.
    """
    num, length = len(episodes), max((episode.num_steps for episode in episodes), default=0)
    size = int(np.prod(target.spec.observation_shape))
    acted = np.arange(length) < np.array([episode.num_steps for episode in episodes], np.int64)[:, None]
    observations = np.zeros((num, length, size))
    rewards, ratios = np.zeros((num, length)), np.zeros((num, length))
    if num:
        seen = np.concatenate([episode.observations[:-1] for episode in episodes])
        actions = np.concatenate([episode.raw_actions for episode in episodes])
        taken = np.concatenate([episode.logps for episode in episodes])
        own = np.concatenate([np.array([d == target.digest and d != "" for d in e.digests]) for e in episodes])
        observations[acted] = seen.reshape(len(seen), -1)
        rewards[acted] = np.concatenate([episode.rewards for episode in episodes])
        if not own.all():
            ratios[acted] = np.where(own, 0.0, logps(target, seen, actions) - taken)
    failed = np.array([episode.failed for episode in episodes], np.bool_)
    return Logged(observations=observations, rewards=rewards, ratios=ratios, acted=acted, failed=failed)


def _weights(logged: Logged) -> Numbers:
    """Return w_t float64[N, T]; behind an episode's end that of its last step."""
    return np.asarray(np.exp(np.clip(np.cumsum(logged.ratios, axis=1), -700.0, 300.0)))


def _controls(logged: Logged, weights: Numbers) -> Numbers:
    """Return sum over t of (w_t - w_(t-1)) V(o_t, t) float64[N], V fitted to the half that the episode isn't in."""
    num, length = logged.rewards.shape
    before = np.concatenate([np.ones((num, 1)), weights[:, :-1]], axis=1)
    change = np.where(logged.acted, weights - before, 0.0)
    if not change.any():
        return np.zeros(num)
    to_go = np.cumsum(logged.rewards[:, ::-1], axis=1)[:, ::-1]
    even = np.arange(num) % 2 == 0
    found = np.zeros(num)
    for half in (even, ~even):
        learns, t = logged.acted & ~half[:, None], np.broadcast_to(np.arange(length), (num, length))
        seen, at, value = logged.observations[learns], t[learns], to_go[learns]
        every = max(1, len(seen) // _STEPS)
        center, spread = seen.mean(axis=0), seen.std(axis=0) + 1e-9
        known = _features((seen[::every] - center) / spread, at[::every] / length)
        ridge = _RIDGE * len(known) * np.eye(known.shape[1])
        solved = np.linalg.solve(known.T @ known + ridge, known.T @ (value[::every] - value.mean()))
        asked = logged.acted & half[:, None]
        values = np.zeros((num, length))
        features = _features((logged.observations[asked] - center) / spread, t[asked] / length)
        values[asked] = features @ solved + value.mean()
        found += (change * values).sum(axis=1)
    return found


def _features(seen: Numbers, t: Numbers) -> Numbers:
    """Return 1, time and its square, the numbers of the observation, and their products (or squares, if many)."""
    size, columns = seen.shape[1], [np.ones(len(seen)), t, np.square(t)]
    if size <= _QUADRATIC:
        upper = np.triu_indices(size)
        return np.column_stack([*columns, seen, seen * t[:, None], seen[:, upper[0]] * seen[:, upper[1]]])
    return np.column_stack([*columns, seen, np.square(seen)])


def _worth(method: str, sums: Numbers, weights: Numbers, counts: Numbers) -> Worth:
    """Return sum(sums) / sum(weights) with its studentized bootstrap interval over resamples `counts` [B, N]."""
    num, whole = len(sums), float(weights.sum())
    value = float(sums.sum()) / whole
    shifted = sums - value * weights  # without the mean, squares keep their digits
    spread = float(np.sqrt(np.square(shifted).sum())) / whole
    if spread <= 1e-12 * max(1.0, abs(value)):
        return Worth(method=method, value=value, interval=(value, value))
    mass = counts @ weights
    moved = (counts @ shifted) / mass
    square = counts @ np.square(shifted) - 2 * moved * (counts @ (shifted * weights)) + moved**2 * (counts @ weights**2)
    with np.errstate(divide="ignore", invalid="ignore"):
        pivots = moved / (np.sqrt(np.maximum(square, 0.0)) / mass)
    low, high = np.quantile(pivots[np.isfinite(pivots)], [_TAIL, 1.0 - _TAIL])
    spread *= float(np.sqrt(num / (num - 1)))
    return Worth(method=method, value=value, interval=(value - float(high) * spread, value - float(low) * spread))


def _rare(worth: Worth, returns: Numbers, weights: Numbers, span: Span | None) -> Worth:
    """Return the estimate with an interval for the worst, where nearly all returns are one and the same.

    Of a policy that nearly always has the highest return there is, a handful of others make the mean, and no resample
    shows what might have been. What is known then is how many there may be, and how far a return can be from the usual.
    """
    values, num = np.unique(returns, return_counts=True)
    usual = float(values[num.argmax()])
    differs = _share(returns != usual, weights)
    if num.max() < len(returns) / 2 or differs.value * _effective(weights) >= _FEW:
        return worth
    least, most = (float(returns.min()), float(returns.max())) if span is None else span
    many = differs.interval[1]
    low, high = usual - many * (usual - least), usual + many * (most - usual)
    return Worth(method=worth.method, value=worth.value, interval=(min(low, worth.value), max(high, worth.value)))


def _share(hits: NDArray[np.bool_], weights: Numbers) -> Worth:
    """Return a weighted share with Clopper and Pearson's interval for the number of episodes that the weights leave.

    As Korn and Graubard (1998, "Confidence intervals for proportions with small expected number of positive counts")
    do it for weighted samples: as many as would have the variance that is seen, at most the effective sample size.
    """
    share, num = float((weights * hits).sum() / weights.sum()), _effective(weights)
    variance = float(np.square(weights * (hits - share)).sum() / weights.sum() ** 2)
    if variance > 0.0:
        num = min(num, share * (1.0 - share) / variance)
    k = share * num
    low = float(beta.ppf(0.025, k, num - k + 1.0)) if k > 0.0 else 0.0
    high = float(beta.ppf(0.975, k + 1.0, num - k)) if k < num else 1.0
    return Worth(method="WIS", value=share, interval=(low, high))


def _effective(weights: Numbers) -> float:
    total, squares = float(weights.sum()), float(np.square(weights).sum())
    return total / squares * total if squares > 0.0 else 0.0
