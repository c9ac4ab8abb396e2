"""Which worlds a policy is tried in, and what is kept of each: every trial can be run again alone."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

from flywheel.policy import Policy
from flywheel.records import Episode, Parameters, Trial
from flywheel.simulate import play
from flywheel.tapes import chain
from flywheel.task import EdgeCase, Task

NOMINAL = "nominal"
"""Scenario of the worlds that begin as the task does, at the parameters that were asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """One simulated world to be: everything that decides it."""

    seed: int
    scenario: str
    parameters: Parameters
    state: tuple[float, ...] | None = None


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


def situation_of(task: Task, trial: Trial) -> Situation:
    """Return the world of a recorded trial."""
    states = {case.name: case.state for case in task.edge_cases}
    return Situation(
        seed=trial.seed, scenario=trial.scenario, parameters=trial.parameters, state=states.get(trial.scenario)
    )


def play_situations(
    task: Task, policy: Policy, situations: Sequence[Situation], *, lockstep: int, now: float
) -> list[Episode]:
    """Return one Episode a situation; its draws come from its seed, so two policies share them."""
    seeds = [situation.seed for situation in situations]
    return play(
        task,
        policy,
        seeds=seeds,
        parameters=[situation.parameters for situation in situations],
        draw_keys=seeds,
        scenarios=[situation.scenario for situation in situations],
        states=[situation.state for situation in situations],
        lockstep=lockstep,
        now=now,
    )


def trial_of(task: Task, episode: Episode) -> Trial:
    """Return what a Verdict keeps of an episode of the gate."""
    if episode.seed is None:
        raise ValueError(f"Episode {episode.id} has no seed, so it can't be run again and is no trial.")
    return Trial(
        seed=episode.seed,
        parameters=episode.parameters,
        scenario=episode.scenario,
        total=episode.total,
        length=episode.num_steps,
        failed=episode.failed,
        margin=math.nan if task.margin is None else float(task.margin(episode)),
        episode=episode.id,
        chain=chain(episode),
    )
