"""The gate's questions, one function each: trials in, a Check out that passed, was refused, or is still open (None)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from flywheel.draws import draws
from flywheel.gate.sequential import aim, bounds, log_evidence, log_mean_evidence, mean_bounds, worse
from flywheel.gate.stress import PILOT, Gauge, all_cells, cells_failed, cells_tried
from flywheel.policy import Policy, to_env
from flywheel.records import Array, Check, Trial
from flywheel.tapes import CELLS, STRESS
from flywheel.task import EdgeCase, Limits, Task

MANY = 64
"""Decisions at once whose cost is told beside that of one."""
LEAST = 0.4
"""Share of `max_regression` below which extra risk refuses nobody, however sure it is."""
_NEAR = 0.15  # share of all margins that count as near misses
_NEARLY = 0.5  # what the nearest of them counts, where a failure counts 1: so that no number of them hides failures
_WARM_UP = 20  # calls that don't count: the first ones load caches


def _settled(good: NDArray[np.float64], bad: float, error: float, refusal: float) -> tuple[bool | None, int]:
    """Return the answer, and after how many simulations it was there.

    `good` are logs of the evidence that passes, float64[N], after each simulation: enough of it at any time
    passes, with `error`. `bad` is the log of the evidence that refuses, after all N: it counts between batches only.
    """
    passed = good >= -np.log(error)
    if passed.any():
        return True, int(np.argmax(passed)) + 1
    return (False if bad >= -np.log(refusal) else None), len(good)


def failure_rate(trials: Sequence[Trial], limits: Limits, error: float, refusal: float) -> Check:
    """Ask whether the policy fails in less than `max_failure_rate` of its episodes.

    A policy at the limit passes with probability at most `error`, one that keeps its `aim` is refused with at most
    `refusal`, however often this is asked.
    """
    failed = np.cumsum([trial.failed for trial in trials])
    k, n, limit = int(failed[-1]), len(trials), limits.max_failure_rate
    good = log_evidence(failed, np.arange(1, n + 1), limit, "below")
    passed, at = _settled(good, float(log_evidence(k, n, aim(limit), "above")), error, refusal)
    note = f"{k} of {n:,} simulations failed"
    if at < n:
        note += f", settled after {at:,}"
    if passed is False:
        note += f": more than the {aim(limit):.1%} of a good policy"
    return Check(name="failure_rate", value=k / n, interval=bounds(k, n, error), bound=limit, passed=passed, note=note)


def loss(task: Task, trial: Trial) -> float:
    """Return a trial's loss in [0, 1]: 1 when it failed, else the share of the return's range that it missed."""
    if trial.failed:
        return 1.0
    if task.return_range is None:
        return 0.0
    low, high = task.return_range
    return float(np.clip((high - trial.total) / (high - low), 0.0, 1.0))


def regression(
    task: Task, trials: Sequence[Trial], baseline: Sequence[Trial] | None, error: float, refusal: float
) -> Check:
    """Ask whether the mean extra loss against the policy in service, on the same worlds and draws, stays in bounds."""
    limit = task.limits.max_regression
    if baseline is None:
        return Check(
            name="regression", value=0.0, interval=(0.0, 0.0), bound=limit, passed=True, note="no policy in service"
        )
    extra = np.array([loss(task, new) - loss(task, old) for new, old in zip(trials, baseline, strict=True)])
    good, bad = (log_mean_evidence(extra, limit, side) for side in ("below", "above"))
    passed, _ = _settled(good, float(bad[-1]), error, refusal)
    return Check(
        name="regression",
        value=float(extra.mean()),
        interval=mean_bounds(extra, error),
        bound=limit,
        passed=passed,
        note=f"the policy in service failed {sum(trial.failed for trial in baseline)} of the same {len(extra)} worlds",
    )


def risk(trial: Trial, near: float) -> float:
    """Return 1 for a failure, and for a near miss half the share by which its margin fell short of `near`."""
    if trial.failed or not near > 0:
        return float(trial.failed)
    return _NEARLY * float(np.clip(1.0 - trial.margin / near, 0.0, 1.0))


def _extra_risk(trials: Sequence[Trial], baseline: Sequence[Trial], near: float) -> NDArray[np.float64]:
    return np.array([risk(new, near) - risk(old, near) for new, old in zip(trials, baseline, strict=True)])


def safety(
    task: Task, trials: Sequence[Trial], baseline: Sequence[Trial] | None, num: int, error: float, refusal: float
) -> Check:
    """Ask whether the candidate is surely less safe than the policy in service, in at most `num` of the same worlds.

    Failures count, and near misses where the task has a margin: worlds below the lowest 15 % of the margins that both
    policies had, which favours neither. Its own limit is none at all: `regression` would let 5 % through for 2 %.
    """
    name, least = "safety", LEAST * task.limits.max_regression
    if baseline is None:
        note = "no policy in service"
        return Check(name=name, value=0.0, interval=(0.0, 0.0), bound=least, passed=True, note=note)
    some, rivals = trials[:num], baseline[:num]
    near = 0.0 if task.margin is None else float(np.quantile([t.margin for t in (*some, *rivals)], _NEAR))
    extra = _extra_risk(some, rivals, near)
    is_worse, z = worse(extra, num, refusal, least)
    fails = [sum(trial.failed for trial in each) for each in (some, rivals)]
    note = f"failed {fails[0]} of {len(some)} worlds, the policy in service {fails[1]}"
    note += f"; z {z:.2f} for its extra risk, near misses below a margin of {near:.2g} counted" if near > 0 else ""
    passed = None if is_worse is None else not is_worse
    return Check(
        name=name, value=float(extra.mean()), interval=mean_bounds(extra, error), bound=least, passed=passed, note=note
    )


def stress(
    task: Task, trials: Sequence[Trial], baseline: Sequence[Trial], gauge: Gauge | None, num: int, refusal: float
) -> Check:
    """Ask the same in worlds at the edge of what the policy in service masters, where some ways of being worse show.

    It is refused when its mean extra risk is surely more than none, with `refusal`, however often this is asked; it
    passes after `num` pairs, or when it is surely not worse by as much as `max_regression`.
    """
    name, bound = "stress", 0.0
    if gauge is None or not num:
        note = "no policy in service" if num else "left out: gate.stress_sims is 0"
        return Check(name=name, value=0.0, interval=(0.0, 0.0), bound=bound, passed=True, note=note)
    if not gauge.is_telling:
        why = f"the policy in service fails in {gauge.num_failed} of {PILOT} worlds" if gauge.num_failed else "no range"
        note = f"none: {why}, so that stressed worlds would say no more"
        return Check(name=name, value=0.0, interval=(0.0, 0.0), bound=bound, passed=True, note=note)
    extra = _extra_risk(trials, baseline, gauge.near)
    enough = np.log(1.0 / refusal)
    passed: bool | None = None
    if log_mean_evidence(extra, 0.0, "above").max(initial=0.0) >= enough:
        passed = False
    elif len(extra) >= num or log_mean_evidence(extra, task.limits.max_regression, "below").max(initial=0.0) >= enough:
        passed = True
    num_failed = [sum(trial.failed for trial in some) for some in (trials, baseline)]
    note = f"failed {num_failed[0]} of {len(extra)} worlds at {gauge.stretch:g} of the ranges, the policy in service "
    return Check(
        name=name,
        value=float(extra.mean()),
        interval=mean_bounds(extra, refusal),
        bound=bound,
        passed=passed,
        note=note + str(num_failed[1]),
    )


def coverage(task: Task, trials: Mapping[str, Sequence[Trial]], baseline: Mapping[str, Sequence[Trial]]) -> Check:
    """Ask whether every pair of levels of every two parameters was tried; `value` is the share that was.

    Trials are given by scenario. Cells in which the candidate failed are told, and refuse nobody: the ranges may hold
    worlds that no policy masters.
    """
    every = all_cells(task)
    some = [*trials[CELLS], *trials[STRESS]]
    tried = cells_tried(task, some)
    share = len(tried) / len(every) if every else 1.0
    note = "the task has no parameters that have a range"
    if every:
        failed, rivals = (sum(trial.failed for trial in each[CELLS]) for each in (trials, baseline))
        note = f"{len(tried)} of {len(every)} pairs of settings tried, {len(cells_failed(task, some))} never mastered; "
        note += f"{failed} of {len(trials[CELLS])} worlds across the ranges failed"
        note += f", {rivals} of the policy in service" if baseline[CELLS] else ""
    passed = True if share == 1.0 else None
    return Check(name="coverage", value=share, interval=(share, share), bound=1.0, passed=passed, note=note)


def edge_cases(trials: Sequence[Trial], cases: Sequence[EdgeCase], max_failed: int = 0) -> Check:
    """Ask whether every named edge case was tried and no more than `max_failed` of its trials failed.

    `value` is the share of cases of which that is true.
    """
    tried = {trial.scenario for trial in trials}
    failed = Counter(trial.scenario for trial in trials if trial.failed)
    short = [case.name for case in cases if failed[case.name] > max_failed or case.name not in tried]
    share = 1.0 - len(short) / len(cases) if cases else 1.0
    mastered = f"all {len(cases)} mastered" if cases else "the task names no edge cases"
    note = "not mastered: " + ", ".join(short) if short else mastered
    return Check(name="edge_cases", value=share, interval=(share, share), bound=1.0, passed=not short, note=note)


def time_decisions(
    policies: Sequence[Policy], observations: Array, num_calls: int, clock: Callable[[], float], batch: int = 1
) -> NDArray[np.float64]:
    """Return the seconds float64[P, num_calls] of calls: draws, network, acting rule, actions for the world.

    Each call decides on `batch` observations. The policies take turns, so that what else the machine does meets all.
    """
    seconds, keys = np.empty((len(policies), num_calls + _WARM_UP)), np.arange(batch)
    for call in range(num_calls + _WARM_UP):
        rows = observations.take(call * batch + keys, axis=0, mode="wrap")
        for seat, policy in enumerate(policies):
            spec = policy.spec
            begun = clock()
            raw, _ = policy.act(rows, draws(keys, call, spec.num_draws))
            to_env(spec, raw)
            seconds[seat, call] = clock() - begun
    return seconds[:, _WARM_UP:]


def cost(one: NDArray[np.float64], many: NDArray[np.float64], num_bytes: int, limits: Limits) -> Check:
    """Ask whether one decision's 99th percentile and the network's size stay in bounds; interval: median to maximum.

    `one` are seconds of single decisions and `many` those of MANY at once, float64[P, calls]: of the candidate first,
    and of the policy in service, where there is one, second; only the candidate's single ones are held to the limit.
    """
    median, p99, most = (float(v) for v in np.quantile(one[0], [0.5, 0.99, 1.0]))
    note = f"median {1e6 * median:.0f} µs, p99 {1e6 * p99:.0f} µs, {MANY} at once {1e6 * np.median(many[0]):.0f} µs"
    if len(one) > 1:
        note += f", {median / float(np.median(one[1])):.2f} times the policy in service"
    return Check(
        name="cost",
        value=p99,
        interval=(median, most),
        bound=limits.max_latency_s,
        passed=p99 <= limits.max_latency_s and num_bytes <= limits.max_bytes,
        note=f"{note}; {num_bytes:,} of {limits.max_bytes:,} bytes",
    )
