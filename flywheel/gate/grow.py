"""What production failed in becomes a scenario of the gate's suite by itself, with nobody's help.

A failure is simulated again by the policy that failed, from the state that one of its observations shows. The
earliest of a few such states from where at least half of the draws fail is the scenario: there is the most time to do
better. At the beginning of the episode that is enough, since the world chose it. From a later state on the simulator
must make what production showed, or it is another world's state; and it must be one that can be survived: half of the
draws do under that policy as it is or explores, or under one that was in service before it. Shortly before its end
every failure fails again, by bad luck or not, and nobody could be asked to save it. What fails again from none of these
states was chance, or has a cause that the simulator doesn't know.

One failure is one scenario, however often it came: an episode that passes near the state of a scenario, in which its
policy fails, too, is a copy of it. Of new ones the scenario that stands for most failures is made first.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flywheel.config import GateConfig
from flywheel.gate.trials import Alone, Crew, Situation, world_seed
from flywheel.policy import Policy
from flywheel.records import Episode, Parameters
from flywheel.simulate.stop import Stopped
from flywheel.simulate.transitions import going_on
from flywheel.tapes import Scenario, short
from flywheel.task import Task
from flywheel.trace.residuals import explained_from, noise_of

MOST = 32
"""Failures, the most recent ones, that are looked at together: with DRAWS worlds each one lockstep of 256."""
DRAWS = 8
"""Simulations from each state."""
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
        episodes: failed ones, of which the MOST that began last and are no copies are simulated, and others, best the
            first ones: all tell how far production's states are spread, the others what is noise in its transitions.
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
    crew = crew or Alone(task, _USUAL.lockstep)
    search = _Search(task, [policy, *rivals], parameters or {}, crew, _spread(task, episodes))
    fates = search.copies(failures, suite, dropped)
    rest = [failure for id_, failure in failures.items() if id_ not in fates][:MOST]
    found = search.found(rest, [episode for episode in episodes if not episode.failed]) if most > 0 else {}
    if most > 0:
        fates |= {each.episode.id: "" for each in rest if each.episode.id not in found}
    left = {id_: failure for id_, failure in failures.items() if not fates.get(id_)}
    alike = {id_: {other for other in left if search.passes(left[other], one.state)} for id_, one in found.items()}
    named = {scenario.name for scenario in (*suite, *dropped)}
    made: list[Scenario] = []
    for id_, gone in _covering(alike, most):
        made.append(_scenario(found[id_], named | {scenario.name for scenario in made}, now))
        fates |= dict.fromkeys(gone, made[-1].name)
    return Growth(scenarios=tuple(made), fates=fates, notes=tuple(search.notes))


def _covering(alike: Mapping[str, set[str]], most: int) -> Iterator[tuple[str, set[str]]]:
    """Yield who stands for others, and for whom: for most of those that are left first, of equals the first one."""
    for _ in range(most):
        if not alike:
            break
        first = max(alike, key=lambda id_: len(alike[id_]))
        gone = alike[first]
        yield first, gone
        alike = {id_: others - gone for id_, others in alike.items() if id_ not in gone}


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

    def __init__(
        self, task: Task, policies: Sequence[Policy], parameters: Parameters, crew: Crew, spread: Floats
    ) -> None:
        self._policy, self._others = policies[0], [_exploring(policies[0]), *policies[1:]]
        self._task, self._crew, self._spread = task, crew, spread
        self._values = {**task.nominal, **parameters}
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

    def found(self, failures: Sequence[_Failure], others: Sequence[Episode]) -> dict[str, _Found]:
        """Return by id from where failures fail again, in their order, of those that do."""
        found: dict[str, _Found] = {}
        explained: dict[str, int] = {}
        for back in (None, *BEFORE):
            if back == BEFORE[0]:
                explained = self._explained([each.episode for each in failures if each.episode.id not in found], others)
            steps = [(each, 0 if back is None else each.episode.num_steps - back) for each in failures]
            starts = {
                each.episode.id: (t, tuple(each.states[t].tolist()))
                for each, t in steps
                if each.episode.id not in found
                and (back is None or t >= max(1, explained[each.episode.id]))
                and np.isfinite(each.states[t]).all()
            }
            num_failed = self._play(self._policy, [(id_, state) for id_, (_, state) in starts.items()])
            again = {id_: num for id_, num in zip(starts, num_failed, strict=True) if 2 * num >= DRAWS}
            saved = {id_ for id_, num in again.items() if 2 * num == DRAWS}
            for other in self._others:
                doubtful = [(id_, starts[id_][1]) for id_ in again if id_ not in saved]
                num_failed = self._play(other, doubtful)
                saved |= {id_ for (id_, _), num in zip(doubtful, num_failed, strict=True) if 0 <= 2 * num <= DRAWS}
            found |= {id_: _Found(id_, *starts[id_], id_ in saved) for id_ in again if back is None or id_ in saved}
        return {each.episode.id: found[each.episode.id] for each in failures if each.episode.id in found}

    def _explained(self, failures: Sequence[Episode], others: Sequence[Episode]) -> dict[str, int]:
        """Return by id the first step of failures from which on the simulator makes what production showed."""
        if not failures:
            return {}
        noise = noise_of(self._task, others, self._values)
        steps = explained_from(self._task, failures, self._values, noise)
        return {episode.id: step for episode, step in zip(failures, steps, strict=True)}

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
        except Stopped:
            raise
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
