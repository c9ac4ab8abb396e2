"""SafetyGate: simulations until every question about a policy has an answer, and the Verdict on it."""

from __future__ import annotations

import dataclasses
import math
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from flywheel import foreign
from flywheel.config import GateConfig, digest
from flywheel.errors import FlywheelError, UsageError
from flywheel.gate.crew import local_crew
from flywheel.gate.grow import Growth, grow
from flywheel.gate.hearing import Case, Heard, Hearing, outcome_of
from flywheel.gate.interval import Ranges, open_ranges, try_interval
from flywheel.gate.sequential import aim, bounds, evidence
from flywheel.gate.suite import most_failed
from flywheel.gate.trials import (
    Alone,
    Crew,
    Situation,
    Whole,
    edge_situations,
    nominal_situations,
    situation_of,
    suite_situations,
    world_seed,
)
from flywheel.policy import Bundle, Policy, load
from flywheel.records import Artifact, Check, Episode, Parameters, Probe, Trial, Verdict
from flywheel.simulate.stop import Stopped, stopped_by
from flywheel.tapes import INTERVAL, Scenario
from flywheel.task import Task, spec_of, task_digest

LOOKS = 4
"""Episodes of a probe's next look are so many times those before: hopeless candidates cost little, good ones too."""


class SafetyGate:
    """Judges policies of one task; useful alone: `SafetyGate(task).judge("policy.onnx")`."""

    def __init__(
        self,
        task: Task,
        config: GateConfig | None = None,
        *,
        crew: Crew | None = None,
        clock: Callable[[], float] = time.perf_counter,
        cpu_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        """Keep the task and its limits; `crew` plays the simulations (None: as `gate.workers` says).

        The clocks give seconds and are read for costs only.

        A verdict's cost is read from `clock`. A decision's is read from `cpu_clock`, which stands still while the
        machine does something else: a gate beside six busy processes found a p99 of 12.4 ms instead of 0.3 ms by the
        wall, and refused for it.

        Raises UsageError when a limit is one that no policy keeps, or that `max_sims` simulations can't prove.
        """
        self._task = task
        self._config = config or GateConfig()
        self._crew = Whole(task, crew or local_crew(task, self._config))
        self._clock, self._cpu_clock = clock, cpu_clock
        _check_limits(task, self._config)

    def judge(
        self,
        policy: Policy | Artifact | Bundle | str | Path | bytes,
        *,
        baseline: Policy | Artifact | Bundle | str | Path | bytes | None = None,
        spec: Mapping[str, Any] | None = None,
        parameters: Parameters | None = None,
        suite: Sequence[Scenario] = (),
        seed: int | None = None,
        now: float | None = None,
        tries: int = 0,
        doubt: Check | None = None,
        ranges: Ranges | None = None,
    ) -> Verdict:
        """Return the Verdict on a policy in worlds at `parameters` (None or missing ones: nominal), not signed yet.

        Any failing check fails it; it passes when all pass, that on the saved scenarios of `suite` (if any) too; a
        question that `max_sims` leaves open, a policy or simulator that breaks, an artifact that can't be loaded make
        it inconclusive.

        A policy (or baseline) trained elsewhere is given as the path of an ONNX file or its bytes; `spec` says what is
        otherwise for it than the task says, as `foreign.load` takes it. Only for these something is raised, before
        anything is simulated: UsageError or Refused, with shapes found and expected. The seed is a fresh one and `now`
        the present time unless they are given.

        `tries` other candidates were judged since production last confirmed a release. What is left of the error
        budget is all that this one can have; where that is too little, nothing is simulated. While `doubt`, a check of
        the gate itself by what production shows, is open, nothing passes. `ranges` are what is open of the parameters:
        a policy that surely fails in more of those worlds than it may does not pass.
        """
        begun, played = self._clock(), self._crew.num_played
        policy, baseline = self._opened(policy, spec), None if baseline is None else self._opened(baseline, spec)
        seed = secrets.randbelow(2**31) if seed is None else seed
        now, values = time.time() if now is None else now, {**self._task.nominal, **(parameters or {})}
        config, simulator = terms(self._task, self._config, values)
        heard = self._heard(policy, baseline, values, suite, seed, now, tries, ranges or {})
        checks = (*heard.checks, *filter(None, [doubt]))
        return Verdict(
            digest=policy.digest, baseline=None if baseline is None else baseline.digest,
            task=task_digest(self._task), config=config, simulator=simulator,
            outcome=outcome_of(checks),
            checks=checks,
            trials=heard.trials,
            rivals=heard.rivals,
            num_played=self._crew.num_played - played,
            seed=seed,
            cost_s=self._clock() - begun,
            judged_at=now, valid_until=now + self._config.valid_s,
            tries=tries, correction=self._task.correction,
        )  # fmt: skip

    def _heard(
        self,
        policy: Policy | Artifact | Bundle,
        baseline: Policy | Artifact | Bundle | None,
        values: Parameters,
        suite: Sequence[Scenario],
        seed: int,
        now: float,
        tries: int,
        ranges: Ranges,
    ) -> Heard:
        """Return what comes out, whatever breaks; with a spent budget nothing is asked."""
        if self.is_spent(tries):
            return Heard(checks=(self._spent(tries),), trials=())
        try:
            case = Case(
                policy=_ready(policy),
                baseline=None if baseline is None else _ready(baseline),
                parameters=values,
                suite=suite,
                seed=seed,
                now=now,
                error=self.allowance(tries),
                ranges=ranges,
            )
            with _at_most(self._config.timeout_s):
                return Hearing(self._task, self._config, self._crew, case, self._cpu_clock).run()
        except Exception as error:  # a simulator is anybody's code: whatever it raises, nothing passes and all is told
            note = str(error) if isinstance(error, FlywheelError) else f"broke with {type(error).__name__}: {error}"
            nan = math.nan
            broke = Check(name="simulation", value=nan, interval=(nan, nan), bound=nan, passed=None, note=note)
            return Heard(checks=(broke,), trials=())

    def allowance(self, tries: int) -> float:
        """Return the error that a candidate may be passed with, after so many others: it sums to the whole budget."""
        return self._config.budget / ((tries + 1) * (tries + 2))

    def is_spent(self, tries: int) -> bool:
        """Say whether so little is left that `max_sims` simulations can't tell a good policy from one at the limit.

        A whole budget is never spent: it allows a first candidate whatever it can prove.
        """
        limit = self._task.limits.max_failure_rate
        good = aim(limit)
        per_sim = good * math.log(good / limit) + (1 - good) * math.log((1 - good) / (1 - limit))
        return tries > 0 and -math.log(self.allowance(tries)) > per_sim * self._config.max_sims

    def _spent(self, tries: int) -> Check:
        left = self.allowance(tries)
        note = (
            f"the gate's error budget is spent: {tries} candidates were judged since production last confirmed a "
            f"release, and with an error of {left:.2g} gate.max_sims = {self._config.max_sims:,} simulations can't "
            "tell a good policy from a bad one. Fill it for a reason (flywheel budget --refill), or allow more of them"
        )
        return Check(name="budget", value=left, interval=(left, left), bound=left, passed=None, note=note)

    def _opened(
        self, policy: Policy | Artifact | Bundle | str | Path | bytes, spec: Mapping[str, Any] | None
    ) -> Policy | Artifact | Bundle:
        if isinstance(policy, Policy | Artifact | Bundle):
            return policy
        return foreign.load(policy, spec_of(self._task), spec)

    def probe(
        self,
        policy: Policy,
        *,
        seed: int,
        parameters: Parameters | None = None,
        suite: Sequence[Scenario] = (),
        episodes: int = 200,
        max_failed: int | None = None,
        ranges: Ranges | None = None,
    ) -> Probe:
        """Return how a candidate does in `episodes` fresh nominal worlds, in the edge cases and in the suite.

        Its worlds are never those of `judge`, so training can't end on the gate's own seeds. With `max_failed` it
        looks at a few of them first and goes on only while no more than so many failed and every edge case holds. One
        that holds so far is also asked, as a verdict would, whether it surely fails in worlds of the open `ranges`. A
        simulator or policy that breaks counts as failing everywhere, with its sentence in `note`: a probe ends no run.
        """
        values, config = {**self._task.nominal, **(parameters or {})}, self._config
        edges = edge_situations(self._task.edge_cases, seed, "probe", config.probe_edge_trials, values)
        edges += suite_situations(suite, seed, "probe", config.probe_edge_trials, values)
        every = nominal_situations(seed, "probe", 0, episodes, values)
        try:
            found = self._probed(policy, every, edges, max_failed)
            is_good = not found.edge_failed and (max_failed is None or found.num_failed <= max_failed)
            return self._in_ranges(found, policy, ranges, values, seed) if ranges and is_good else found
        except Exception as error:
            return Probe(
                num_failed=episodes,
                num_episodes=episodes,
                mean_return=math.nan,
                edge_failed=tuple(dict.fromkeys(edge.scenario for edge in edges)),
                note=str(error) if isinstance(error, FlywheelError) else f"{type(error).__name__}: {error}",
            )

    def _probed(
        self, policy: Policy, every: Sequence[Situation], edges: Sequence[Situation], max_failed: int | None
    ) -> Probe:
        """Return a look at nominal worlds and edge cases, as many of each as are due at once."""
        config, episodes = self._config, len(every)
        names = dict.fromkeys(edge.scenario for edge in edges)
        played: list[Trial] = []
        failed: Counter[str] = Counter()
        for first, stop in _looks(episodes, episodes if max_failed is None else config.probe_first):
            shares = [number % config.probe_edge_trials * episodes for number in range(len(edges))]
            begin, end = (config.probe_edge_trials * number for number in (first, stop))
            some = [edge for edge, share in zip(edges, shares, strict=True) if begin <= share < end]
            found = self._crew.play(policy, [*every[first:stop], *some], 0.0).trials
            played += found[: stop - first]
            failed.update(trial.scenario for trial in found[stop - first :] if trial.failed)
            edge_failed = {name for name, num in failed.items() if num > most_failed(name, config, self._task.limits)}
            num_failed = sum(trial.failed for trial in played)
            if edge_failed or (max_failed is not None and num_failed > max_failed):
                break
        return Probe(
            num_failed=num_failed,
            num_episodes=len(played),
            mean_return=float(np.mean([trial.total for trial in played])),
            edge_failed=tuple(name for name in names if name in edge_failed),
        )

    def _in_ranges(self, probe: Probe, policy: Policy, ranges: Ranges, values: Parameters, seed: int) -> Probe:
        """Return a probe that also tells whether a policy surely fails in worlds that calibration leaves open."""
        if not open_ranges(ranges):
            return probe
        config = self._config
        check, _ = try_interval(
            self._crew, policy, ranges, values, self._task.limits, num=config.num_sims, error=config.error,
            seed=world_seed(seed, "probe", 0), now=0.0,
        )  # fmt: skip
        return probe if check.passed else dataclasses.replace(probe, edge_failed=(INTERVAL,), note=check.note)

    def grow(
        self,
        policy: Policy | Artifact | Bundle | str | Path | bytes,
        episodes: Sequence[Episode],
        *,
        suite: Sequence[Scenario] = (),
        dropped: Sequence[Scenario] = (),
        rivals: Sequence[Policy | Artifact | Bundle] = (),
        parameters: Parameters | None = None,
        most: int | None = None,
        now: float | None = None,
    ) -> Growth:
        """Return what production's failures by a policy add to the suite, as `grow.grow`; `most`: `gate.suite_open`.

        The policy is given as to `judge`.
        """
        opened = self._opened(policy, None)
        return grow(
            self._task,
            _ready(opened),
            episodes,
            suite=suite,
            dropped=dropped,
            rivals=[_ready(rival) for rival in rivals],
            parameters=parameters,
            most=self._config.suite_open if most is None else most,
            crew=self._crew,
            now=time.time() if now is None else now,
        )

    def rerun(self, trial: Trial, policy: Policy, suite: Sequence[Scenario] = ()) -> Trial:
        """Return a recorded trial run again, alone: equal to the record when the policy is the one it was made with."""
        return Alone(self._task, 1).play(policy, [situation_of(self._task, trial, suite)], 0.0).trials[0]


def terms(task: Task, config: GateConfig, parameters: Parameters) -> tuple[str, str]:
    """Return what a verdict is made by, as digests: the gate's configuration, and the simulator at `parameters`.

    Who plays is no part of it; what a corrected form of the task corrects is.
    """
    worlds: dict[str, Any] = {**task.nominal, **parameters}
    if task.correction is not None:
        worlds = {"parameters": worlds, "correction": dataclasses.asdict(task.correction)}
    return digest(dataclasses.replace(config, workers=0)), digest(worlds)


def _check_limits(task: Task, config: GateConfig) -> None:
    limits = task.limits
    for name in ("max_failure_rate", "max_regression"):
        limit = getattr(limits, name)
        if not 0.0 < limit < 1.0:
            raise UsageError(
                f"Task {task.name} has {name} {limit:g}, which no number of simulations can prove: give a limit "
                "between 0 and 1, such as 0.01."
            )
    enough, limit = config.max_sims, limits.max_failure_rate
    while evidence(0, enough, limit, "below") < 2.0 / config.budget:
        enough = math.ceil(1.1 * enough)
    if enough > config.max_sims:
        least = bounds(0, config.max_sims, config.budget / 2.0)[1]
        raise UsageError(
            f"Task {task.name} has max_failure_rate {limit:g}, which gate.max_sims = {config.max_sims:,} simulations "
            f"can't prove even if none fails: give more than {least:.3g}, or set gate.max_sims to {enough:,}."
        )
    for name in ("max_latency_s", "max_bytes"):
        limit = getattr(limits, name)
        if not limit > 0:
            raise UsageError(f"Task {task.name} has {name} {limit:g}, which no policy keeps: give more than 0.")


def _looks(num: int, first: int) -> Iterator[tuple[int, int]]:
    """Yield (begin, end) of looks that cover 0 to `num`: after the first, each one ends LOOKS times as far."""
    begin, end = 0, min(first, num)
    while begin < num:
        yield begin, end
        begin, end = end, min(LOOKS * end, num)


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Let whatever is simulated in the block end after so many seconds. Raises FlywheelError then."""
    over = threading.Event()
    timer = threading.Timer(seconds, over.set)
    timer.daemon = True
    timer.start()
    try:
        with stopped_by(over):
            yield
    except Stopped as error:
        if not over.is_set():
            raise
        raise FlywheelError(
            f"there was no answer after gate.timeout_s = {seconds:g} s, so there is none: allow more seconds, or fewer "
            "simulations (gate.max_sims, gate.stress_sims, gate.search_sims)"
        ) from error
    finally:
        timer.cancel()


def _ready(policy: Policy | Artifact | Bundle) -> Policy:
    return policy if isinstance(policy, Policy) else load(policy)
