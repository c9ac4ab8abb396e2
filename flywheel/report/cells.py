"""Where in the space of the simulator's parameters a policy was tried, and where it failed. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flywheel.gate.stress import LEVELS, cells_of, free
from flywheel.records import Parameters, Trial
from flywheel.tapes import CELLS, STRESS
from flywheel.task import Parameter, Task

Pair = tuple[Trial, Trial]
"""The candidate's trial, and the baseline's in the same world."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What became of the worlds in a two-way cell: at a level of one parameter and a level of another."""

    num: int = 0
    num_failed: int = 0
    num_rival: int = 0
    """Of them, how many the baseline played."""
    num_rival_failed: int = 0

    def with_(self, trial: Trial, rival: Trial | None) -> Cell:
        """Return the cell with one world more."""
        return Cell(
            num=self.num + 1,
            num_failed=self.num_failed + trial.failed,
            num_rival=self.num_rival + (rival is not None),
            num_rival_failed=self.num_rival_failed + (rival is not None and rival.failed),
        )


Grid = tuple[tuple[Cell, ...], ...]
"""[LEVELS][LEVELS]: rows are levels of the second parameter, columns of the first; one row where there is one only."""


def edge(parameter: Parameter, number: int) -> float:
    """Return where a level begins; where the range ends for LEVELS."""
    return parameter.low + number * (parameter.high - parameter.low) / LEVELS


def grids(task: Task, trials: Sequence[Trial], rivals: Sequence[Trial] = ()) -> dict[tuple[str, ...], Grid]:
    """Return the cells of every two parameters that have a range (of the only one), by their names.

    {} where no trial is of CELLS or STRESS, or the task had other parameters when they were made.
    """
    known = {parameter.name for parameter in free(task)}
    spread = [trial for trial in trials if trial.scenario in (CELLS, STRESS) and known <= set(trial.parameters)]
    by_world = {_world(rival): rival for rival in rivals}
    found: dict[tuple[str, ...], list[list[Cell]]] = {}
    for trial in spread:
        for place in cells_of(task, trial.parameters) if known else ():
            names, (across, *down) = zip(*place, strict=True)
            rows = found.setdefault(names, [[Cell()] * LEVELS for _ in range(LEVELS if down else 1)])
            row = rows[down[0] if down else 0]
            row[across] = row[across].with_(trial, by_world.get(_world(trial)))
    return {names: tuple(map(tuple, rows)) for names, rows in found.items()}


def every(grid: Grid) -> Iterator[Cell]:
    """Yield a grid's cells."""
    return itertools.chain.from_iterable(grid)


def pairs(trials: Sequence[Trial], rivals: Sequence[Trial]) -> list[Pair]:
    """Return the trials that both policies played in one world, in the order of the candidate's."""
    by_world = {_world(rival): rival for rival in rivals}
    return [(trial, by_world[_world(trial)]) for trial in trials if _world(trial) in by_world]


def differing(found: Sequence[Pair]) -> list[Pair]:
    """Return the pairs in which one failed or the returns differ: those that only the candidate failed come first,
    then those that only the baseline failed, then the others; each by how much return the candidate lost.
    """
    some = [(new, old) for new, old in found if new.failed != old.failed or new.total != old.total]
    return sorted(some, key=lambda pair: (pair[0].failed == pair[1].failed, pair[1].failed, *_lost(pair)))


def _lost(pair: Pair) -> tuple[float, str]:
    new, old = pair
    return new.total - old.total, new.episode


def _world(trial: Trial) -> tuple[str, int, tuple[tuple[str, float], ...]]:
    return trial.scenario, trial.seed, _plain(trial.parameters)


def _plain(parameters: Parameters) -> tuple[tuple[str, float], ...]:
    return tuple(sorted(parameters.items()))
