"""Which worlds a policy is tried in, and what is kept of each: every trial can be run again alone."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from flywheel.errors import FlywheelError, unknown
from flywheel.policy import Policy
from flywheel.records import Array, Episode, Parameters, Trial
from flywheel.simulate import play
from flywheel.simulate.play import Lead
from flywheel.simulate.stop import go_on_or_stop
from flywheel.tapes import NOMINAL, SUITE, Scenario, chain
from flywheel.task import EdgeCase, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """One simulated world to be: everything that decides it."""

    seed: int
    scenario: str
    parameters: Parameters
    state: tuple[float, ...] | None = None
    key: int | None = None
    """What draws the actions; None: the seed."""
    lead: Lead | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tried:
    """What became of situations, one Trial each in their order."""

    trials: tuple[Trial, ...]
    observations: Array
    """dtype[T + 1, *o] of the first one's episode: what a policy is timed on."""


class Crew(Protocol):
    """Whoever plays situations; how many there are of them changes nothing but the time."""

    def play(self, policy: Policy, situations: Sequence[Situation], now: float) -> Tried:
        """Return one Trial a situation; whatever a policy or a simulator raises comes out of here."""
        ...


class Alone:
    """Plays them in this process, `lockstep` at once."""

    def __init__(self, task: Task, lockstep: int) -> None:
        """Keep the task."""
        self._task, self._lockstep = task, lockstep

    def play(self, policy: Policy, situations: Sequence[Situation], now: float) -> Tried:
        """Return one Trial a situation."""
        trials: list[Trial] = []
        shown: Array | None = None
        for first in range(0, len(situations), self._lockstep):  # so that no more episodes are held at once
            some = situations[first : first + self._lockstep]
            played = play_situations(self._task, policy, some, lockstep=self._lockstep, now=now)
            shown = played[0].observations if shown is None else shown
            trials += [trial_of(self._task, each) for each in played]
        if shown is None:
            raise ValueError("There is nothing to play.")
        return Tried(trials=tuple(trials), observations=shown)


class Whole:
    """Lets nothing through but an answer to every situation, in numbers."""

    def __init__(self, task: Task, crew: Crew) -> None:
        """Watch a crew."""
        self._task, self._crew = task, crew
        self.num_played = 0

    def play(self, policy: Policy, situations: Sequence[Situation], now: float) -> Tried:
        """Return one Trial a situation. Raises FlywheelError where the crew brings back anything else."""
        go_on_or_stop()
        tried = self._crew.play(policy, situations, now)
        wanted = [_name(each.seed if each.key is None else each.key, each.scenario) for each in situations]
        if [_name(trial.seed, trial.scenario) for trial in tried.trials] != wanted:
            raise FlywheelError(
                f"{len(tried.trials)} results came back of {len(situations)} simulations, or others than were asked "
                "for, so they answer nothing: judge again."
            )
        for trial in tried.trials:
            if not math.isfinite(trial.total) or (self._task.margin is not None and math.isnan(trial.margin)):
                raise FlywheelError(
                    f"The world of {_name(trial.seed, trial.scenario)} has the return {trial.total} and the margin "
                    f"{trial.margin}, which compare with nothing: let the task's margin (and rewards) be numbers."
                )
        self.num_played += len(situations)
        return tried


def _name(seed: int, scenario: str) -> str:
    return f"seed {seed} ({scenario})"


def world_seed(root: int, stream: str, index: int) -> int:
    """Return a seed below 2**53 (exact in JSON everywhere), a hash of all three arguments."""
    text = f"{root}/{stream}/{index}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 11


def nominal_situations(root: int, stream: str, first: int, stop: int, parameters: Parameters) -> list[Situation]:
    """Return nominal worlds number `first` to `stop` - 1; a number's world doesn't depend on how many are asked for."""
    return [
        Situation(seed=world_seed(root, stream, index), scenario=NOMINAL, parameters=parameters)
        for index in range(first, stop)
    ]


def edge_situations(
    cases: Sequence[EdgeCase], root: int, stream: str, num_each: int, parameters: Parameters
) -> list[Situation]:
    """Return `num_each` worlds of each edge case, whose parameters replace those that were asked for."""
    return [
        Situation(
            seed=world_seed(root, f"{stream}/{case.name}", index),
            scenario=case.name,
            parameters={**parameters, **case.parameters},
            state=case.state,
        )
        for case in cases
        for index in range(num_each)
    ]


def suite_situations(
    suite: Sequence[Scenario], root: int, stream: str, num_each: int, parameters: Parameters
) -> list[Situation]:
    """Return `num_each` situations of each scenario that somebody saved, as of an edge case."""
    return [
        _of_scenario(scenario, world_seed(root, f"{stream}/{SUITE}{scenario.name}", index), parameters)
        for scenario in suite
        for index in range(num_each)
    ]


def _of_scenario(scenario: Scenario, key: int, parameters: Parameters) -> Situation:
    """Return a scenario's situation; `parameters` are what the world has where the scenario doesn't say otherwise."""
    led = scenario.state is None
    values = {**parameters, **scenario.parameters}
    return Situation(
        seed=scenario.seed if led else key,
        scenario=SUITE + scenario.name,
        parameters=values,
        state=scenario.state,
        key=key,
        lead=Lead(actions=np.array(scenario.actions), before=scenario.before or values) if scenario.actions else None,
    )


def situation_of(task: Task, trial: Trial, suite: Sequence[Scenario] = ()) -> Situation:
    """Return the world of a recorded trial. Raises UsageError when it is of a scenario that `suite` doesn't hold."""
    if trial.scenario.startswith(SUITE):
        named = {SUITE + scenario.name: scenario for scenario in suite}
        if trial.scenario not in named:
            raise unknown("scenario", trial.scenario, named)
        return _of_scenario(named[trial.scenario], trial.seed, trial.parameters)
    states = {case.name: case.state for case in task.edge_cases}
    return Situation(
        seed=trial.seed, scenario=trial.scenario, parameters=trial.parameters, state=states.get(trial.scenario)
    )


def play_situations(
    task: Task, policy: Policy, situations: Sequence[Situation], *, lockstep: int, now: float
) -> list[Episode]:
    """Return one Episode a situation; its draws come from its key, so two policies share them."""
    episodes: list[Episode] = []
    for _, group in itertools.groupby(situations, key=lambda situation: situation.scenario if situation.lead else ""):
        some = list(group)
        episodes += play(
            task,
            policy,
            seeds=[situation.seed for situation in some],
            parameters=[situation.parameters for situation in some],
            draw_keys=[situation.seed if situation.key is None else situation.key for situation in some],
            scenarios=[situation.scenario for situation in some],
            states=[situation.state for situation in some],
            lead=some[0].lead,
            lockstep=lockstep,
            now=now,
        )
    return episodes


def trial_of(task: Task, episode: Episode) -> Trial:
    """Return what a Verdict keeps of an episode of the gate."""
    if episode.seed is None:
        raise ValueError(f"Episode {episode.id} has no seed, so it can't be run again and is no trial.")
    return Trial(
        seed=episode.draw_key,  # its seed, too, but where a scenario says what the world's is
        parameters=episode.parameters,
        scenario=episode.scenario,
        total=episode.total,
        length=episode.num_steps,
        failed=episode.failed,
        margin=math.nan if task.margin is None else float(task.margin(episode)),
        episode=episode.id,
        chain=chain(episode),
    )
