"""Is the gate still predictive? What it foretold of a policy against what production shows of it, release by release.

The gate's trials in its nominal worlds are one sample, production's outcomes since the release the other. Both tests
may be looked at after every outcome.

Failures: a Bayes factor, which is an e-process (Grünwald, de Heide and Koolen 2024, "Safe testing"; Turner, Ly and
Grünwald 2024 on two samples). Under the hypothesis production's rate is p + gap, where p is not known but has the
posterior that the gate's trials leave (Jeffreys' prior); against it stand rates of 1.5 to 15 times its odds. By
Ville's inequality it ever reaches 1 / error with probability at most `error`, over all that p may be. One-sided:
production that fails less often than foretold contradicts nothing.

Return: the shortfall from the best return that the gate saw (or the task names), as a share of the range, is a number
in [0, 1]. Its mean in the gate has an upper confidence bound; betting on production's shortfalls (Waudby-Smith and
Ramdas 2024, "Estimating means of bounded random variables by betting") tests that theirs is at most `loss` above it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta

from flywheel.records import Check, End, Release, Verdict
from flywheel.tapes import NOMINAL

NAME = "predictive"
"""Name of the check that a verdict has from here."""
ERRORS = (0.04, 0.01)
"""Probability that a release ever contradicts the gate where the gate was right: by failures, by the return. Policies
that are served fail seldom, so that failures need more evidence."""
SHARES = np.array([1.5, 2.0, 2.5, 3.5, 6.0, 15.0])
WEIGHTS = np.array([0.1, 0.2, 0.3, 0.2, 0.15, 0.05])
"""How many times the odds of the hypothesis the alternatives have, and how much each counts."""
_LEVELS = (np.arange(100) + 0.5) / 100
_FRACTIONS = (np.arange(20) + 0.5) / 20
_CERTAIN = 1e-9

Numbers = NDArray[np.float64]
Span = tuple[float, float]


class Seen(Protocol):
    """What is looked at of an episode of production."""

    @property
    def end(self) -> End:
        """How it ended."""

    @property
    def failed(self) -> bool:
        """Whether it failed."""

    @property
    def total(self) -> float:
        """Its return."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One release: what was foretold of it, and what production shows."""

    digest: str
    simulator: str
    """Digest of the simulator's parameters that it was judged by."""
    num_foretold: int
    failed_foretold: int
    mean_foretold: float
    num: int
    num_failed: int
    mean: float
    failures: float
    """Most evidence there was, as a log, that it fails oftener than foretold."""
    shortfall: float
    """Most evidence there was, as a log, that it brings less than foretold."""

    @property
    def is_contradicted(self) -> bool:
        """Whether production contradicts the gate."""
        return bool(self.failures >= -np.log(ERRORS[0]) or self.shortfall >= -np.log(ERRORS[1]))

    def __str__(self) -> str:
        """Return both, as a clause."""
        foretold, seen = self.failed_foretold / max(self.num_foretold, 1), self.num_failed / max(self.num, 1)
        return (
            f"of policy {self.digest[:8]} the gate foretold that {foretold:.1%} fail and a return of "
            f"{self.mean_foretold:.4g}; in production {seen:.1%} of {self.num:,} failed, with {self.mean:.4g}"
        )


def compare(
    verdict: Verdict, outcomes: Sequence[Seen], *, gap: float, loss: float, span: Span | None = None
) -> Compared | None:
    """Return a release's verdict beside production's outcomes in order of start; None where either is silent.

    Args:
        verdict: by which it was released; its trials in the nominal worlds are what is compared.
        outcomes: of the release's own episodes; lost ones that had not failed say nothing.
        gap: by how much oftener production may fail (a probability).
        loss: by how much the return may be less, as a share of the range of returns.
        span: least and most return; None takes the range of what the gate saw, and what is beyond counts as its end.
    """
    trials = [trial for trial in verdict.trials if trial.scenario == NOMINAL]
    known = [outcome for outcome in outcomes if outcome.failed or outcome.end != "lost"]
    if not trials or not known:
        return None
    foretold, totals = np.array([t.total for t in trials]), np.array([o.total for o in known])
    failed = np.array([o.failed for o in known])
    num_failed = sum(trial.failed for trial in trials)
    low, high = (float(foretold.min()), float(foretold.max())) if span is None else span
    width = max(high - low, 0.01 * max(abs(high), 1.0))
    short = [np.clip((high - each) / width, 0.0, 1.0) for each in (foretold, totals)]
    whole = [each for each, o in zip(short[1], known, strict=True) if o.end != "lost"]
    return Compared(
        digest=verdict.digest,
        simulator=verdict.simulator,
        num_foretold=len(trials),
        failed_foretold=num_failed,
        mean_foretold=float(foretold.mean()),
        num=len(known),
        num_failed=int(failed.sum()),
        mean=float(totals.mean()),
        failures=float(failure_evidence(failed, num_failed, len(trials), gap).max()),
        shortfall=max(0.0, float(shortfall_evidence(whole, short[0], loss).max(initial=0.0))),
    )


def failure_evidence(failed: ArrayLike, num_failed: int, num: int, gap: float) -> Numbers:
    """Return the log of the e-process on production's outcomes bool[N], float64[N], after each.

    Of the gate's `num` trials `num_failed` failed; `gap` is by how much oftener production may fail.
    """
    hits = np.cumsum(np.asarray(failed, dtype=np.float64))
    n = np.arange(1, len(hits) + 1, dtype=np.float64)
    p = beta.ppf(_LEVELS, num_failed + 0.5, num - num_failed + 0.5)  # equally likely ones
    feared = np.clip(p + gap, _CERTAIN, 1.0 - _CERTAIN)
    odds = float(feared.mean() / (1.0 - feared.mean())) * SHARES
    return _likelihood(hits, n, odds / (1.0 + odds), WEIGHTS) - _likelihood(hits, n, feared, 1.0 / len(p))


def _likelihood(hits: Numbers, n: Numbers, rates: Numbers, weights: ArrayLike) -> Numbers:
    """Return the log likelihood float64[N] of so many hits of n where each rate has its weight."""
    each = hits[:, None] * np.log(rates) + (n - hits)[:, None] * np.log1p(-rates)
    return np.asarray(np.logaddexp.reduce(np.log(weights) + each, axis=1))


def shortfall_evidence(seen: ArrayLike, foretold: ArrayLike, loss: float) -> Numbers:
    """Return the log of the e-process on production's shortfalls float64[N] in [0, 1], float64[N], after each.

    The gate's own mean is at most Maurer and Pontil's (2009) empirical Bernstein bound above what `foretold` shows; a
    fifth of the error is for that, and the evidence is less by as much.
    """
    gate, y = np.asarray(foretold, dtype=np.float64), np.asarray(seen, dtype=np.float64)
    if len(gate) < 2:
        return np.zeros(0)
    enough = np.log(2.0 / (ERRORS[1] / 5.0))
    above = np.sqrt(2.0 * gate.var(ddof=1) * enough / len(gate)) + 7.0 * enough / (3.0 * (len(gate) - 1))
    limit = float(gate.mean() + above) + loss
    if limit >= 1.0:
        return np.zeros(0)
    capital = np.cumsum(np.log1p((y[:, None] - limit) / limit * _FRACTIONS), axis=0)
    return np.asarray(np.logaddexp.reduce(capital, axis=1) - np.log(len(_FRACTIONS)) + np.log(0.8))


def judged_by(release: Release, verdicts: Sequence[Verdict]) -> Verdict | None:
    """Return the verdict that let a release pass: the last one on its policy from before it; None where none is."""
    passed = [v for v in verdicts if v.digest == release.digest and v.outcome == "pass"]
    before = [v for v in passed if v.judged_at <= release.released_at]
    return max(before, key=lambda v: v.judged_at, default=None)


def doubt(compared: Iterable[Compared], simulator: str, has_parameters: bool) -> Check | None:
    """Return what the releases so far, newest first, say of verdicts by this simulator; None where they say nothing.

    The value is the evidence that production contradicts the gate, as a share of what settles it. Those count that were
    judged by it since it was last another one; none before that is asked for. One that production contradicts leaves
    the question open, so that no verdict passes: until the simulator has other parameters.
    """
    counts = list(itertools.takewhile(lambda each: each.simulator == simulator, compared))
    if not counts:
        return None
    worst = next((each for each in counts if each.is_contradicted), counts[0])
    value = max(worst.failures + np.log(ERRORS[0]), worst.shortfall + np.log(ERRORS[1]))
    cure = (
        "until it is calibrated again its verdicts are inconclusive: what production shows after an alarm does that, "
        "or allow more by analyze.sim_gap or analyze.sim_loss"
        if has_parameters
        else "the task names no parameters that could be calibrated: put the simulator right, which makes it another "
        "task with a run directory of its own, or allow more by analyze.sim_gap or analyze.sim_loss"
    )
    return Check(
        name=NAME,
        value=float(np.exp(min(value, 100.0))),
        interval=(math.nan, math.nan),
        bound=1.0,
        passed=None if worst.is_contradicted else True,
        note=f"production contradicts the simulator: {worst}; {cure}" if worst.is_contradicted else str(worst),
    )
