"""The gate's suite: scenarios that every candidate must master, how they are tried, and how they stand.

A policy that fails now and then anywhere would be refused for that if one failed trial were enough: 2 % of
all episodes are a failed trial among 8 scenarios of 4 trials in half of all verdicts. So a scenario is tried in looks,
and is not mastered when its failures are evidence that more of them fail there than the task's limit allows. The
error of that evidence is shared by all scenarios: a candidate that keeps the limit in each of them is refused for the
suite with a probability of at most `gate.error`, however large it is.

How scenarios stand is a view on the recorded verdicts, whose trials say what failed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from flywheel.config import GateConfig
from flywheel.gate.sequential import log_evidence
from flywheel.gate.trials import Crew, suite_situations
from flywheel.policy import Policy
from flywheel.records import Check, Parameters, Trial, Verdict
from flywheel.tapes import SUITE, Scenario, Standing, short
from flywheel.task import Limits, Task

LOOKS = (1, 4, 16)
"""Trials of a scenario after each look, in units of `gate.edge_trials`."""
CLOSED = 3
"""A scenario is closed when the candidates of so many verdicts, one after another, mastered it."""
GIVEN_UP = 5
"""Verdicts in which nobody survived one that nobody is known to have survived, after which none is asked to."""
WINDOW = 20
"""Most recent verdicts that say how scenarios stand."""


def try_suite(
    crew: Crew,
    policy: Policy,
    suite: Sequence[Scenario],
    seed: int,
    parameters: Parameters,
    config: GateConfig,
    limits: Limits,
    now: float,
) -> tuple[Trial, ...]:
    """Return the trials of every scenario: more of those that aren't settled, up to the last of LOOKS.

    One of production takes two looks at least: its policy may fail there in half of all draws only.
    """
    trials: tuple[Trial, ...] = ()
    begin, going = 0, list(suite)
    for look in LOOKS:
        stop = look * config.edge_trials
        every = [suite_situations([scenario], seed, "judge", stop, parameters)[begin:] for scenario in going]
        if going:
            trials += crew.play(policy, [situation for some in every for situation in some], now).trials
        failed, begin = Counter(trial.scenario for trial in trials if trial.failed), stop
        going = [
            scenario
            for scenario in going
            if (num := failed[SUITE + scenario.name]) > look * config.edge_max_failed
            or (scenario.origin == "production" and look == LOOKS[0])
            if not _is_failed(num, stop, len(suite), limits.max_failure_rate, config.error)
        ]
    return trials


def _is_failed(num_failed: int, num: int, num_scenarios: int, limit: float, error: float) -> bool:
    """Say whether failures are evidence that more fail than may, with a share of the error for each scenario."""
    return float(log_evidence(num_failed, num, limit, "above")) >= math.log(num_scenarios / error)


def _not_mastered(trials: Sequence[Trial], limit: float, error: float) -> dict[str, bool]:
    """Return of each scenario of the suite that was tried whether it was not mastered."""
    tried = Counter(trial.scenario for trial in trials if trial.scenario.startswith(SUITE))
    failed = Counter(trial.scenario for trial in trials if trial.failed)
    return {
        each.removeprefix(SUITE): _is_failed(failed[each], num, len(tried), limit, error) for each, num in tried.items()
    }


def check_suite(trials: Sequence[Trial], suite: Sequence[Scenario], limits: Limits, error: float) -> Check:
    """Ask whether every scenario was tried and none failed surely more often than `limits` allow.

    `value` is the share of scenarios of which that is true.
    """
    failed = _not_mastered(trials, limits.max_failure_rate, error)
    short_of = [scenario for scenario in suite if failed.get(scenario.name, True)]
    share = 1.0 - len(short_of) / len(suite) if suite else 1.0
    note = f"all {len(suite)} mastered" if suite else "none is saved"
    if short_of:
        note = "not mastered: " + ", ".join(map(told, short_of))
    return Check(name="scenarios", value=share, interval=(share, share), bound=1.0, passed=not short_of, note=note)


def unmastered(verdict: Verdict | None, task: Task, config: GateConfig) -> tuple[str, ...]:
    """Name the edge cases and the scenarios, as trials bear them, that a verdict's candidate did not master."""
    if verdict is None:
        return ()
    failed = Counter(trial.scenario for trial in verdict.trials if trial.failed)
    edges = [case.name for case in task.edge_cases if failed[case.name] > config.edge_max_failed]
    saved = _not_mastered(verdict.trials, task.limits.max_failure_rate, config.error)
    return (*edges, *(SUITE + name for name, is_failed in saved.items() if is_failed))


def told(scenario: Scenario) -> str:
    """Return a scenario's name, with the episode of production that it was made of."""
    return scenario.name + (f" (episode {short(scenario.fork[0])})" if scenario.origin == "production" else "")


def most_failed(name: str, config: GateConfig, limits: Limits) -> int:
    """Return how many trials of a probe may fail in an edge case, or in a scenario: there as many as the limit says."""
    share = int(limits.max_failure_rate * config.probe_edge_trials) if name.startswith(SUITE) else 0
    return max(config.probe_edge_max_failed, share)


# How they stand


def standings(suite: Sequence[Scenario], verdicts: Sequence[Verdict], error: float) -> dict[str, Standing]:
    """Return by name how scenarios stand by the verdicts, given oldest first, whose checks say what the limit was.

    One is closed when the last CLOSED of those that tried it found it mastered, and open again with the next that
    doesn't.
    """
    history = [
        (verdict.judged_at, _not_mastered(verdict.trials, check.bound, error))
        for verdict in reversed(verdicts)
        for check in verdict.checks
        if check.name == "failure_rate"
    ]
    found = {}
    for scenario in suite:
        tries = [
            (at, failed[scenario.name])
            for at, failed in history
            if scenario.name in failed and at >= scenario.saved_at  # not an earlier one of that name
        ]
        last = [has_failed for _, has_failed in tries[:CLOSED]]
        found[scenario.name] = Standing(
            is_open=len(last) < CLOSED or any(last),
            last=("not mastered" if last[0] else "mastered") if last else "",
            judged_at=tries[0][0] if tries else None,
        )
    return found


def hopeless(suite: Sequence[Scenario], verdicts: Sequence[Verdict]) -> tuple[Scenario, ...]:
    """Return the scenarios of production that nobody survived, neither when they were made nor in GIVEN_UP verdicts.

    Such a state may be one that nobody can master, and the gate would let nothing through for ever.
    """
    return tuple(
        scenario
        for scenario in suite
        if scenario.origin == "production"
        and not scenario.survived
        and (trials := _trials(scenario, verdicts))
        and len(trials) >= GIVEN_UP
        and all(trial.failed for some in trials for trial in some)
    )


def _trials(scenario: Scenario, verdicts: Sequence[Verdict]) -> list[list[Trial]]:
    """Return the trials of a scenario in each of the verdicts that tried it."""
    every = (
        [trial for trial in verdict.trials if trial.scenario == SUITE + scenario.name]
        for verdict in verdicts
        if verdict.judged_at >= scenario.saved_at
    )
    return [some for some in every if some]
