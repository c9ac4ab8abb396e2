"""The gate's questions, one function each: trials in, a Check out that passed, was refused, or is still open (None)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from flywheel.draws import draws
from flywheel.gate.sequential import bounds, evidence, mean_bounds, mean_evidence
from flywheel.policy import Policy, to_env
from flywheel.records import Array, Check, Trial
from flywheel.task import EdgeCase, Limits, Task

_WARM_UP = 20  # calls before the clock runs: the first ones load caches


def _settled(below: float, above: float, error: float) -> bool | None:
    """Return True, False or None for the e-values that a quantity lies below, or above, its limit."""
    if below >= 1.0 / error:
        return True
    return False if above >= 1.0 / error else None


def failure_rate(trials: Sequence[Trial], limits: Limits, error: float) -> Check:
    """Ask whether the policy fails in less than `max_failure_rate` of its episodes.

    A policy at the limit passes with probability at most `error`, however often this is asked.
    """
    k, n, limit = sum(trial.failed for trial in trials), len(trials), limits.max_failure_rate
    return Check(
        name="failure_rate",
        value=k / n,
        interval=bounds(k, n, error),
        bound=limit,
        passed=_settled(evidence(k, n, limit, "below"), evidence(k, n, limit, "above"), error),
        note=f"{k} of {n} simulations failed",
    )


def loss(task: Task, trial: Trial) -> float:
    """Return a trial's loss in [0, 1]: 1 when it failed, else the share of the return's range that it missed."""
    if trial.failed:
        return 1.0
    if task.return_range is None:
        return 0.0
    low, high = task.return_range
    return float(np.clip((high - trial.total) / (high - low), 0.0, 1.0))


def regression(task: Task, trials: Sequence[Trial], baseline: Sequence[Trial] | None, error: float) -> Check:
    """Ask whether the mean extra loss against the policy in service, on the same worlds and draws, stays in bounds."""
    limit = task.limits.max_regression
    if baseline is None:
        return Check(
            name="regression", value=0.0, interval=(0.0, 0.0), bound=limit, passed=True, note="no policy in service"
        )
    extra = np.array([loss(task, new) - loss(task, old) for new, old in zip(trials, baseline, strict=True)])
    return Check(
        name="regression",
        value=float(extra.mean()),
        interval=mean_bounds(extra, error),
        bound=limit,
        passed=_settled(mean_evidence(extra, limit, "below"), mean_evidence(extra, limit, "above"), error),
        note=f"the policy in service failed {sum(trial.failed for trial in baseline)} of the same {len(extra)} worlds",
    )


def edge_cases(trials: Sequence[Trial], cases: Sequence[EdgeCase], max_failed: int = 0) -> Check:
    """Ask whether every named edge case was tried and no more than `max_failed` of its trials failed.

    `value` is the share of cases of which that is true.
    """
    tried = {trial.scenario for trial in trials}
    failed = Counter(trial.scenario for trial in trials if trial.failed)
    short = [case.name for case in cases if failed[case.name] > max_failed or case.name not in tried]
    share = 1.0 - len(short) / len(cases) if cases else 1.0
    if short:
        note = "not mastered: " + ", ".join(short)
    else:
        note = f"all {len(cases)} mastered" if cases else "the task names no edge cases"
    return Check(name="edge_cases", value=share, interval=(share, share), bound=1.0, passed=not short, note=note)


def time_decisions(
    policy: Policy, observations: Array, num_calls: int, clock: Callable[[], float]
) -> NDArray[np.float64]:
    """Return the seconds float64[num_calls] of single decisions: draws, network, acting rule, action for the world."""
    spec, seconds = policy.spec, np.empty(num_calls)
    for call in range(-_WARM_UP, num_calls):
        row = observations[call % len(observations)][None]
        begun = clock()
        raw, _ = policy.act(row, draws(0, call + _WARM_UP, spec.num_draws))
        to_env(spec, raw)
        seconds[max(call, 0)] = clock() - begun
    return seconds


def cost(seconds: NDArray[np.float64], num_bytes: int, limits: Limits) -> Check:
    """Ask whether one decision's 99th percentile and the network's size stay in bounds; interval: median to maximum."""
    median, p99, most = (float(v) for v in np.quantile(seconds, [0.5, 0.99, 1.0]))
    return Check(
        name="cost",
        value=p99,
        interval=(median, most),
        bound=limits.max_latency_s,
        passed=p99 <= limits.max_latency_s and num_bytes <= limits.max_bytes,
        note=f"median {1e6 * median:.0f} µs, p99 {1e6 * p99:.0f} µs, {num_bytes:,} of {limits.max_bytes:,} bytes",
    )
