"""One verdict in the making: which worlds are played next, and what all of them say so far."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from flywheel.config import GateConfig
from flywheel.gate import checks
from flywheel.gate.interval import Ranges, open_ranges, try_interval
from flywheel.gate.search import search
from flywheel.gate.stress import Gauge, cell_situations, gauge, stress_situations
from flywheel.gate.suite import check_suite, try_suite
from flywheel.gate.trials import (
    Crew,
    Situation,
    Tried,
    edge_situations,
    nominal_situations,
)
from flywheel.policy import Policy
from flywheel.records import Array, Check, Outcome, Parameters, Trial
from flywheel.tapes import CELLS, NOMINAL, STRESS, Scenario
from flywheel.task import Task

_STREAM = "judge"  # of seeds: a probe's worlds are others
SAFETY = 0.9
"""Share of the error of refusals that the comparison in nominal worlds has; the other share is that under stress."""
_TIMINGS = 3  # rounds of timing: cold caches and a host's stolen time can make a round slow, nothing can make it fast


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is to be judged, and in which worlds."""

    policy: Policy
    baseline: Policy | None
    parameters: Parameters
    suite: Sequence[Scenario]
    seed: int
    now: float
    error: float
    """Error that a pass may have."""
    ranges: Ranges = field(default_factory=dict)
    """What is open of the parameters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What came out."""

    checks: tuple[Check, ...]
    trials: tuple[Trial, ...]
    rivals: tuple[Trial, ...] = ()
    """The baseline's, in worlds that both played."""


def outcome_of(found: Sequence[Check]) -> Outcome:
    """Return fail where any check failed, pass where all passed, else inconclusive."""
    if any(check.passed is False for check in found):
        return "fail"
    return "pass" if found and all(check.passed is True for check in found) else "inconclusive"


def look_after(num: int, config: GateConfig) -> int:
    """Return after how many simulations the next look comes: a batch later, or a tenth of those that there are.

    So many simulations cost no more each than few do: all of them are looked at each time.
    """
    return min(num + max(config.batch, num // 10), config.max_sims) if num else min(config.num_sims, config.max_sims)


class Hearing:
    """Plays a first look, then batches while a question is open, then searches for what would be overlooked."""

    def __init__(self, task: Task, config: GateConfig, crew: Crew, case: Case, cpu_clock: Callable[[], float]) -> None:
        """Keep what is to be judged; `cpu_clock` times decisions."""
        self._task, self._config, self._crew, self._case, self._cpu_clock = task, config, crew, case, cpu_clock
        self._new: dict[str, list[Trial]] = {NOMINAL: [], STRESS: [], CELLS: []}
        self._old: dict[str, list[Trial]] = {NOMINAL: [], STRESS: [], CELLS: []}
        self._gauge: Gauge | None = None
        self._settled: list[Check] = []

    def run(self) -> Heard:
        """Return the answers and the trials. Raises whatever a simulator, a policy or the crew does."""
        config, case = self._config, self._case
        fixed = self._fixed()
        if case.baseline is not None and config.stress_sims:
            self._gauge = gauge(self._task, self._crew, case.baseline, case.parameters, seed=case.seed, now=case.now)
        self._nominal()
        self._stressed(config.num_sims)
        found = self._ask()
        while outcome_of(found) == "inconclusive" and self._go_on(found):
            found = self._ask()
        worst: tuple[Trial, ...] = ()
        if outcome_of(found) == "pass":
            check, worst = search(
                self._task, self._crew, case.policy, case.parameters, num=config.search_sims, seed=case.seed,
                now=case.now,
            )  # fmt: skip
            found = (*found, check)
        new, old = (tuple(trial for some in each.values() for trial in some) for each in (self._new, self._old))
        return Heard(checks=found, trials=(*new, *fixed, *worst), rivals=old)

    def _fixed(self) -> tuple[Trial, ...]:
        """Play what is the same for every candidate: edge cases, saved scenarios, open ranges, cells."""
        task, config, case = self._task, self._config, self._case
        edges = edge_situations(task.edge_cases, case.seed, _STREAM, config.edge_trials, case.parameters)
        fixed = self._crew.play(case.policy, edges, case.now).trials if edges else ()
        fixed += try_suite(
            self._crew, case.policy, case.suite, case.seed, case.parameters, config, task.limits, case.now
        )
        self._settled = [checks.edge_cases(fixed, task.edge_cases, config.edge_max_failed)]
        self._settled += [check_suite(fixed, case.suite, task.limits, config.error)] if case.suite else []
        if open_ranges(case.ranges):
            check, trials = try_interval(
                self._crew, case.policy, case.ranges, case.parameters, task.limits, num=config.num_sims,
                error=config.error, seed=case.seed, now=case.now,
            )  # fmt: skip
            self._settled.append(check)
            fixed += trials
        self._both(CELLS, cell_situations(task, case.seed, _STREAM, case.parameters))
        return fixed

    def _both(self, scenario: str, worlds: Sequence[Situation]) -> Tried | None:
        """Let both policies play the same worlds; return what became of the candidate."""
        if not worlds:
            return None
        played = self._crew.play(self._case.policy, worlds, self._case.now)
        self._new[scenario] += played.trials
        if self._case.baseline is not None:
            self._old[scenario] += self._crew.play(self._case.baseline, worlds, self._case.now).trials
        return played

    def _nominal(self) -> None:
        """Play nominal worlds up to the next look; the first of them also times decisions."""
        begin, case = len(self._new[NOMINAL]), self._case
        stop = look_after(begin, self._config)
        played = self._both(NOMINAL, nominal_situations(case.seed, _STREAM, begin, stop, case.parameters))
        if played is not None and not begin:
            self._settled.append(self._cost(played.observations))

    def _stressed(self, num: int) -> None:
        """Play so many more pairs of stressed worlds, where those tell anything."""
        if self._gauge is None or not self._gauge.is_telling:
            return
        begin, case = len(self._new[STRESS]), self._case
        stop = min(begin + num, self._config.stress_sims)
        stretch = self._gauge.stretch
        self._both(STRESS, stress_situations(self._task, case.seed, _STREAM, begin, stop, case.parameters, stretch))

    def _go_on(self, found: Sequence[Check]) -> bool:
        """Play more of what is open; say whether there was any left."""
        still_open = {check.name for check in found if check.passed is None}
        before = self._num_played()
        if still_open & {"failure_rate", "regression", "safety"}:
            self._nominal()
        if "stress" in still_open:
            self._stressed(self._config.batch)
        return self._num_played() > before

    @property
    def _num_compared(self) -> int:
        return min(self._config.compare_sims, self._config.max_sims)

    def _num_played(self) -> int:
        return sum(len(some) for some in self._new.values())

    def _ask(self) -> tuple[Check, ...]:
        task, config, error = self._task, self._config, self._case.error
        stressed = (1.0 - SAFETY) * config.error
        new, old = self._new[NOMINAL], None if self._case.baseline is None else self._old[NOMINAL]
        return (
            checks.failure_rate(new, task.limits, error, config.error),
            checks.regression(task, new, old, error, config.error),
            checks.safety(task, new, old, self._num_compared, error, SAFETY * config.error),
            checks.stress(task, self._new[STRESS], self._old[STRESS], self._gauge, config.stress_sims, stressed),
            *self._settled,
            checks.coverage(task, self._new, self._old),
        )

    def _cost(self, observations: Array) -> Check:
        """Time the candidate (and the policy in service, in turns): single decisions, and many at once.

        Single ones are timed until a round keeps the limit, a few times.
        """
        case, num, clock = self._case, self._config.latency_calls, self._cpu_clock
        limits = self._task.limits
        policies = [case.policy] if case.baseline is None else [case.policy, case.baseline]
        for _ in range(_TIMINGS):
            one = checks.time_decisions(policies, observations, num, clock)
            if np.quantile(one[0], 0.99) <= limits.max_latency_s:
                break
        many = checks.time_decisions(policies, observations, max(1, num // 10), clock, batch=checks.MANY)
        return checks.cost(one, many, case.policy.num_bytes, limits)
