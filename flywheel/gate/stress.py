"""Worlds beside the nominal ones: random ones around them, and a design that holds every pair of settings."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from allpairspy import AllPairs
from numpy.typing import NDArray

from flywheel.draws import draws
from flywheel.gate.trials import Crew, Situation, world_seed
from flywheel.policy import Policy
from flywheel.records import Parameters, Trial
from flywheel.tapes import CELLS, STRESS
from flywheel.task import Parameter, Task

STRETCHES = (1.0, 0.5, 0.25, 0.125, 0.0)
"""How far stress worlds may go from the parameters that were asked for, as shares of the way to the ends of ranges."""
PILOT = 20
"""Worlds at each stretch in which the policy in service shows how far it may be stressed."""
_MOST_FAILED = 0.3  # where more of them fail, two policies' failures say less about which one is better
_NEAR = 0.25  # share of its surviving worlds that count as near misses
LEVELS = 5
"""Equal parts that a parameter's range is cut into."""

Cell = tuple[tuple[str, int], ...]
"""Two parameters (the only one, where there is one) in the task's order, each with the number of its level."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauge:
    """How far worlds are stressed, and what a near miss is, by what the policy in service does there."""

    stretch: float
    near: float
    """Margin below which an episode is a near miss; 0 where the task has no margin."""
    num_failed: int
    """Failures of the policy in service among PILOT worlds at that stretch."""

    @property
    def is_telling(self) -> bool:
        """Say whether worlds at this stretch tell more than nominal ones."""
        return self.stretch > 0 and self.num_failed <= _MOST_FAILED * PILOT


def gauge(task: Task, crew: Crew, policy: Policy, parameters: Parameters, *, seed: int, now: float) -> Gauge:
    """Return the largest stretch at which the policy in service still masters most worlds, and its near misses there.

    Its pilot worlds are none of those that a candidate is compared in, so that the comparison keeps its error.
    """
    if not free(task):
        return Gauge(stretch=0.0, near=0.0, num_failed=0)
    worlds = [
        stress_situations(task, seed, f"pilot/{stretch:g}", 0, PILOT, parameters, stretch) for stretch in STRETCHES
    ]
    trials = crew.play(policy, [world for some in worlds for world in some], now).trials
    shown = [trials[first : first + PILOT] for first in range(0, len(trials), PILOT)]
    failures = [sum(trial.failed for trial in some) for some in shown]
    chosen = next((i for i, num in enumerate(failures) if num <= _MOST_FAILED * PILOT), len(STRETCHES) - 1)
    some, num_failed, stretch = shown[chosen], failures[chosen], STRETCHES[chosen]
    margins = [trial.margin for trial in some if not trial.failed]
    near = float(np.quantile(margins, _NEAR)) if margins and task.margin is not None else 0.0
    return Gauge(stretch=stretch, near=near, num_failed=num_failed)


def free(task: Task) -> list[Parameter]:
    """Return the parameters that have a range."""
    return [parameter for parameter in task.parameters if parameter.high > parameter.low]


def worlds_at(places: NDArray[np.float64], task: Task, parameters: Parameters) -> list[dict[str, float]]:
    """Return parameters of worlds at places float64[N, P] in the unit cube of the ranges; others are as given."""
    some = free(task)
    low, high = (np.array([getattr(each, end) for each in some]) for end in ("low", "high"))
    names = [each.name for each in some]
    return [{**parameters, **dict(zip(names, row.tolist(), strict=True))} for row in low + places * (high - low)]


def place_of(task: Task, parameters: Parameters) -> NDArray[np.float64]:
    """Return where in the unit cube of the ranges a world is, float64[P]."""
    return np.array([(parameters[each.name] - each.low) / (each.high - each.low) for each in free(task)])


def stress_situations(
    task: Task, root: int, stream: str, first: int, stop: int, parameters: Parameters, stretch: float
) -> list[Situation]:
    """Return random worlds number `first` to `stop` - 1: uniform in the ranges, drawn in to `stretch` of the way.

    They are independent of each other, as the tests of `sequential` need them.
    """
    seeds = [world_seed(root, f"{stream}/{STRESS}", index) for index in range(first, stop)]
    places = draws(seeds, np.zeros(len(seeds), np.int64), len(free(task)))
    return [
        Situation(
            seed=seed,
            scenario=STRESS,
            parameters={name: parameters[name] + stretch * (far[name] - parameters[name]) for name in parameters},
        )
        for seed, far in zip(seeds, worlds_at(places, task, parameters), strict=True)
    ]


def cell_situations(task: Task, root: int, stream: str, parameters: Parameters) -> list[Situation]:
    """Return few worlds that together hold every pair of levels of every two parameters (every level of a single one).

    Which levels meet a third one, and where in its level a value lies, is another matter for each `root`.
    """
    some = free(task)
    rng = np.random.default_rng(world_seed(root, f"{stream}/{CELLS}", 0))
    if len(some) < 2:
        rows = [[level] for level in range(LEVELS)] if some else []
    else:
        rows = [list(row) for row in AllPairs([range(LEVELS)] * len(some))]
    if not rows:
        return []
    levels = np.stack([rng.permutation(LEVELS)[column] for column in np.array(rows).T], axis=1)
    places = (levels + rng.random(levels.shape)) / LEVELS
    return [
        Situation(seed=world_seed(root, f"{stream}/{CELLS}", 1 + index), scenario=CELLS, parameters=values)
        for index, values in enumerate(worlds_at(places, task, parameters))
    ]


def cells_of(task: Task, parameters: Parameters) -> list[Cell]:
    """Return the cells that a world lies in, one for every two parameters that have a range."""
    numbers = np.clip(place_of(task, parameters) * LEVELS, 0, LEVELS - 1).astype(int)
    levels = [(each.name, number) for each, number in zip(free(task), numbers.tolist(), strict=True)]
    return list(itertools.combinations(levels, min(2, len(levels)))) if levels else []


def all_cells(task: Task) -> set[Cell]:
    """Return every cell that there is."""
    names = [each.name for each in free(task)]
    size = min(2, len(names))
    levels = list(itertools.product(range(LEVELS), repeat=size))
    together = itertools.combinations(names, size) if names else ()
    return {tuple(zip(some, each, strict=True)) for some in together for each in levels}


def cells_tried(task: Task, trials: Iterable[Trial]) -> set[Cell]:
    """Return the cells that trials of cells or stress lie in."""
    return {cell for trial in trials if trial.scenario in (CELLS, STRESS) for cell in cells_of(task, trial.parameters)}


def cells_failed(task: Task, trials: Sequence[Trial]) -> set[Cell]:
    """Return the cells in which every trial of cells or stress failed."""
    return cells_tried(task, trials) - cells_tried(task, (trial for trial in trials if not trial.failed))
