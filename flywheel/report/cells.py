"""Where in the space of the simulator's parameters a policy was tried, and where it failed. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flywheel.records import Parameters, Trial
from flywheel.task import Parameter

LEVELS = 5
"""Equal levels into which each parameter's range is cut."""
SPREAD = ("cells", "stress")
"""Scenarios whose worlds are spread over the parameters' ranges."""
Pair = tuple[Trial, Trial]
"""The candidate's trial, and the baseline's in the same world."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What became of the worlds in a two-way cell: at one level of one parameter and one level of another."""

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
"""[LEVELS][LEVELS]: rows are levels of the second parameter, columns of the first."""


def level(parameter: Parameter, value: float) -> int:
    """Return the level 0 to LEVELS - 1 in which a value lies; what is beyond the range counts to its end."""
    share = (value - parameter.low) / (parameter.high - parameter.low) if parameter.high > parameter.low else 0.0
    return min(max(int(share * LEVELS), 0), LEVELS - 1)


def bounds(parameter: Parameter, number: int) -> tuple[float, float]:
    """Return where a level begins and ends."""
    width = (parameter.high - parameter.low) / LEVELS
    return parameter.low + number * width, parameter.low + (number + 1) * width


def grids(
    parameters: Sequence[Parameter], trials: Sequence[Trial], rivals: Sequence[Trial] = ()
) -> dict[tuple[str, str], Grid]:
    """Return the two-way cells of every pair of parameters, by their names; {} where no trial is of SPREAD."""
    spread = [trial for trial in trials if trial.scenario in SPREAD]
    if not spread:
        return {}
    by_world = {_world(rival): rival for rival in rivals}
    found = {}
    for one, other in itertools.combinations(parameters, 2):
        rows = [[Cell()] * LEVELS for _ in range(LEVELS)]
        for trial in spread:
            across, down = (level(each, trial.parameters[each.name]) for each in (one, other))
            rows[down][across] = rows[down][across].with_(trial, by_world.get(_world(trial)))
        found[one.name, other.name] = tuple(map(tuple, rows))
    return found


def cells_of(grid: Grid) -> Iterator[Cell]:
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
