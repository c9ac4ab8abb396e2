"""The gate's suite: what production failed in becomes a scenario by itself, and every candidate must master it.

Growing. A failure is simulated again by the policy that failed, from the state that one of its observations shows. The
earliest of a few such states from where at least half of the draws fail is the scenario: there is the most time to do
better. At the beginning of the episode that is enough, since the world chose it. A later state must be one that can be
survived, too: a quarter of the draws do under that policy, or as it explores, or under one that was in service before
it. Shortly before its end every failure fails again, by bad luck or not, and nobody could be asked to save it. What
fails again from none of these states was chance, or has a cause that the simulator doesn't know.

One failure is one scenario, however often it came: an episode that passes near the state of a scenario, in which its
policy fails, too, is a copy of it. Of new ones the scenario that stands for most failures is made first.

Judging. A policy that fails now and then anywhere would be refused for that if one failed trial were enough: 2 % of
all episodes are a failed trial among 8 scenarios of 4 trials in half of all verdicts. So a scenario is tried in looks,
and is not mastered when its failures are evidence that more of them fail there than the task's limit allows. The
error of that evidence is shared by all scenarios: a candidate that keeps the limit in each of them is refused for the
suite with a probability of at most `gate.error`, however large it is.

How each scenario stands is a view on the recorded verdicts, whose trials say what failed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flywheel.config import GateConfig
from flywheel.gate.sequential import log_evidence
from flywheel.gate.trials import Alone, Crew, Situation, suite_situations, world_seed
from flywheel.policy import Policy
from flywheel.records import Check, Episode, Parameters, Trial, Verdict
from flywheel.simulate.transitions import going_on
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
MOST = 32
"""Failures, the most recent ones, that are looked at together: with DRAWS worlds each one lockstep of 256."""
DRAWS = 8
"""Simulations from each state."""
SURVIVED = 2
"""Of those, how many show that a state can be survived."""
BEFORE = (128, 64, 32, 16, 8)
"""Steps before the end where a scenario may begin, if it can't at the beginning."""
NEAR = 0.5
"""States are near each other whose numbers all differ by less than so many of production's deviations."""
EXPLORING = 0.2
"""Share of uniform actions with which it is tried whether a state can be survived at all."""
_USUAL = GateConfig()

Floats = NDArray[np.float64]
State = tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """What became of failures of production."""

    scenarios: tuple[Scenario, ...] = ()
    """New ones, that which stands for most failures first."""
    fates: Mapping[str, str] = field(default_factory=dict)
    """By id of each episode that was looked at the scenario that stands for it, "" where none does: it did not fail
    again. One that isn't named waits for the next look."""
    notes: tuple[str, ...] = ()
    """What the simulator or the policy raised where they broke."""


@dataclass(frozen=True, slots=True, eq=False)
class _Failure:
    """An episode that failed, and its states float64[T + 1, S]."""

    episode: Episode
    states: Floats


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """From where a failure failed again."""

    id: str
    t: int
    state: State
    survived: bool


def obstacle(task: Task) -> str:
    """Return why failures of production make no scenarios of this task, "" where they do."""
    missing = [name for name in ("set_state", "observed_state") if getattr(task, name) is None]
    return f"task {task.name} gives no {' and no '.join(missing)}" if missing else ""


def grow(
    task: Task,
    policy: Policy,
    episodes: Sequence[Episode],
    *,
    suite: Sequence[Scenario] = (),
    dropped: Sequence[Scenario] = (),
    rivals: Sequence[Policy] = (),
    parameters: Parameters | None = None,
    most: int = _USUAL.suite_open,
    crew: Crew | None = None,
    now: float = 0.0,
) -> Growth:
    """Return what became of those of production's episodes that failed: the same arguments give the same scenarios.

    Args:
        task: whose simulator is put into the states that observations show; nothing grows where it can't be.
        policy: the one that acted in these episodes.
        episodes: failed ones, of which the MOST that began last and are no copies are simulated, and others: all of
            them tell how far production's states are spread.
        suite: the scenarios that there are.
        dropped: scenarios that were taken out of it: what fails near one of them makes no other.
        rivals: other policies, which may show that a state can be survived.
        parameters: the simulator's, as production shows them (None or missing ones: nominal).
        most: new scenarios at most.
        crew: who plays the simulations (None: this process does).
        now: when the scenarios are made.
    """
    failed = sorted((e for e in episodes if e.failed), key=lambda e: (e.started_at, e.id), reverse=True)
    if obstacle(task) or not failed:
        return Growth()
    failures = {episode.id: _Failure(episode, _states(task, episode)) for episode in failed}
    values = {**task.nominal, **(parameters or {})}
    search = _Search(task, [policy, *rivals], values, crew or Alone(task, _USUAL.lockstep), _spread(task, episodes))
    fates = search.copies(failures, suite, dropped)
    rest = [failure for id_, failure in failures.items() if id_ not in fates][:MOST]
    found = search.found(rest) if most > 0 else {}
    if most > 0:
        fates |= {each.episode.id: "" for each in rest if each.episode.id not in found}
    alike = {
        id_: {
            other for other, failure in failures.items() if not fates.get(other) and search.passes(failure, one.state)
        }
        for id_, one in found.items()
    }
    made: list[Scenario] = []
    while alike and len(made) < most:
        first = max(alike, key=lambda id_: len(alike[id_]))  # of equals the one that began last
        made.append(_scenario(found[first], {scenario.name for scenario in (*suite, *dropped, *made)}, now))
        gone = alike[first]
        fates |= dict.fromkeys(gone, made[-1].name)
        alike = {id_: others - gone for id_, others in alike.items() if id_ not in gone}
    return Growth(scenarios=tuple(made), fates=fates, notes=tuple(search.notes))


def _states(task: Task, episode: Episode) -> Floats:
    assert task.observed_state is not None
    return np.array([np.ravel(task.observed_state(row)) for row in episode.observations], dtype=np.float64)


def _spread(task: Task, episodes: Sequence[Episode]) -> Floats:
    """Return the deviation of each number of the states that production showed, 1 where it never differs."""
    rows = np.concatenate([_states(task, episode) for episode in episodes])
    deviation = rows[np.isfinite(rows).all(axis=1)].std(axis=0)
    return np.where(deviation > 0, deviation, 1.0)


def _scenario(found: _Found, named: set[str], now: float) -> Scenario:
    name = "failure-" + re.sub(r"[^A-Za-z0-9_.-]", "-", short(found.id))
    if name in named:
        name = f"failure-{hashlib.sha256(found.id.encode()).hexdigest()[:16]}"
    return Scenario(
        name=name, parameters={}, fork=(found.id, found.t), saved_at=now, state=found.state,
        origin="production", survived=found.survived,
    )  # fmt: skip


class _Search:
    """Simulates failures again."""

    def __init__(self, task: Task, policies: Sequence[Policy], values: Parameters, crew: Crew, spread: Floats) -> None:
        self._policy, self._others = policies[0], [_exploring(policies[0]), *policies[1:]]
        self._task, self._values, self._crew, self._spread = task, values, crew, spread
        self.notes: list[str] = []

    def passes(self, failure: _Failure, state: State) -> bool:
        """Say whether an episode passes near a state."""
        if len(state) != failure.states.shape[1]:
            return False
        steps = going_on(self._task, np.array(state), failure.states) - np.array(state)
        return bool((np.abs(steps) < NEAR * self._spread).all(axis=1).any())

    def copies(
        self, failures: Mapping[str, _Failure], suite: Sequence[Scenario], dropped: Sequence[Scenario]
    ) -> dict[str, str]:
        """Return by id which failures are copies, and of which scenario; "" for those that nobody is to be asked."""
        starts = [(s.name, s.state) for s in suite if s.state is not None and not s.actions and not s.parameters]
        num_failed = self._play(self._policy, starts)
        caught = [start for start, num in zip(starts, num_failed, strict=True) if 2 * num >= DRAWS]
        known = [("", scenario.state) for scenario in dropped if scenario.state is not None] + caught
        return {id_: name for id_, failure in failures.items() for name, state in known if self.passes(failure, state)}

    def found(self, failures: Sequence[_Failure]) -> dict[str, _Found]:
        """Return by id from where failures fail again, in their order, of those that do."""
        found: dict[str, _Found] = {}
        for back in (None, *BEFORE):
            steps = [(each, 0 if back is None else each.episode.num_steps - back) for each in failures]
            starts = {
                each.episode.id: (t, tuple(each.states[t].tolist()))
                for each, t in steps
                if each.episode.id not in found and (t > 0 or back is None) and np.isfinite(each.states[t]).all()
            }
            num_failed = self._play(self._policy, [(id_, state) for id_, (_, state) in starts.items()])
            again = {id_: num for id_, num in zip(starts, num_failed, strict=True) if 2 * num >= DRAWS}
            saved = {id_ for id_, num in again.items() if num <= DRAWS - SURVIVED}
            for other in self._others:
                doubtful = [(id_, starts[id_][1]) for id_ in again if id_ not in saved]
                num_failed = self._play(other, doubtful)
                saved |= {
                    id_ for (id_, _), num in zip(doubtful, num_failed, strict=True) if 0 <= num <= DRAWS - SURVIVED
                }
            found |= {id_: _Found(id_, *starts[id_], id_ in saved) for id_ in again if back is None or id_ in saved}
        return {each.episode.id: found[each.episode.id] for each in failures if each.episode.id in found}

    def _play(self, policy: Policy, starts: Sequence[tuple[str, State]]) -> list[int]:
        """Return how many of DRAWS simulations from each (name, state) failed, -1 where they broke."""
        if not starts:
            return []
        situations = [
            Situation(seed=world_seed(0, f"grow/{name}", draw), scenario=name, parameters=self._values, state=state)
            for name, state in starts
            for draw in range(DRAWS)
        ]
        try:
            trials = self._crew.play(policy, situations, 0.0).trials
        except Exception as error:  # a simulator is anybody's code, and no state of production's may end a run
            if len(starts) == 1:
                self.notes.append(f"{starts[0][0]}: {error}")
                return [-1]
            return [num for start in starts for num in self._play(policy, [start])]
        return [sum(trial.failed for trial in trials[i : i + DRAWS]) for i in range(0, len(trials), DRAWS)]


def _exploring(policy: Policy) -> Policy:
    """Return a policy as it would act if it explored."""
    spec = policy.spec
    changes: dict[str, Any] = {"greedy": False} if spec.rule.kind == "gaussian" else {"exploration_rate": EXPLORING}
    rule = dataclasses.replace(spec.rule, **changes)
    return Policy(policy.network, dataclasses.replace(spec, rule=rule), policy.digest)


# Judging


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
        num_failed = Counter(trial.scenario for trial in trials if trial.failed)

        def is_settled(
            scenario: Scenario, num: int = stop, look: int = look, failed: Counter[str] = num_failed
        ) -> bool:
            k = failed[SUITE + scenario.name]
            enough = scenario.origin == "fork" or look > 1
            fine = enough and k <= look * config.edge_max_failed
            return fine or _is_failed(k, num, len(suite), limits.max_failure_rate, config.error)

        begin, going = stop, [scenario for scenario in going if not is_settled(scenario)]
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


def told(scenario: Scenario) -> str:
    """Return a scenario's name, with the episode of production that it was made of."""
    return scenario.name + (f" (episode {short(scenario.fork[0])})" if scenario.origin == "production" else "")


def most_failed(name: str, config: GateConfig, limits: Limits) -> int:
    """Return how many trials of a probe may fail in an edge case, or in a scenario: there as many as the limit says."""
    usual = config.probe_edge_max_failed
    share = int(limits.max_failure_rate * config.probe_edge_trials)
    return max(usual, share) if name.startswith(SUITE) else usual


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
