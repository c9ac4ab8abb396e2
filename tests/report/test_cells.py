"""Cells and pairs: every world counted once, in its own cell, beside the baseline's in the same world."""

from __future__ import annotations

import dataclasses
import itertools
import math

from hypothesis import given
from hypothesis import strategies as st

from flywheel.records import Trial
from flywheel.report import cells
from flywheel.report.cells import LEVELS
from flywheel.task import Parameter

PARAMETERS = (Parameter("a", 0.5, 0.0, 1.0), Parameter("b", 0.0, -2.0, 3.0), Parameter("c", 10.0, 1.0, 100.0))


def trial(number: int, values: tuple[float, ...], failed: bool, scenario: str = "cells", total: float = 1.0) -> Trial:
    parameters = {each.name: value for each, value in zip(PARAMETERS, values, strict=True)}
    return Trial(
        seed=number, parameters=parameters, scenario=scenario, total=total, length=1, failed=failed, margin=math.nan,
        episode=f"{number:032x}",
    )  # fmt: skip


worlds = st.lists(
    st.tuples(
        st.tuples(*(st.floats(p.low, p.high) for p in PARAMETERS)), st.booleans(), st.sampled_from(["cells", "nominal"])
    ),
    max_size=30,
)


@given(worlds)
def test_each_world_is_in_one_cell_of_each_pair(drawn: list[tuple[tuple[float, ...], bool, str]]) -> None:
    trials = [trial(i, values, failed, scenario) for i, (values, failed, scenario) in enumerate(drawn)]
    spread = [each for each in trials if each.scenario == "cells"]
    found = cells.grids(PARAMETERS, trials)
    assert set(found) == (set(itertools.combinations("abc", 2)) if spread else set())
    for grid in found.values():
        assert sum(cell.num for cell in cells.cells_of(grid)) == len(spread)
        assert sum(cell.num_failed for cell in cells.cells_of(grid)) == sum(each.failed for each in spread)


@given(st.integers(0, LEVELS - 1), st.floats(0.01, 0.99))
def test_a_level_holds_what_lies_between_its_bounds(number: int, share: float) -> None:
    for parameter in PARAMETERS:
        low, high = cells.bounds(parameter, number)
        assert cells.level(parameter, low + share * (high - low)) == number
    assert [cells.level(PARAMETERS[0], value) for value in (-9.0, 0.0, 1.0, 9.0)] == [0, 0, LEVELS - 1, LEVELS - 1]
    assert cells.level(Parameter("still", 1.0, 1.0, 1.0), 1.0) == 0


def test_rows_are_levels_of_the_second_parameter_and_the_baseline_is_counted_beside() -> None:
    values = (0.9, -2.0, 1.0)
    mine, theirs = trial(1, values, True), trial(1, values, True)
    alone = trial(2, values, False)
    grid = cells.grids(PARAMETERS, [mine, alone], [theirs])["a", "b"]
    assert grid[0][4] == cells.Cell(num=2, num_failed=1, num_rival=1, num_rival_failed=1)
    assert sum(cell.num for cell in cells.cells_of(grid)) == 2


def test_pairs_are_of_one_world_and_those_that_only_the_candidate_failed_come_first() -> None:
    values = (0.5, 0.0, 10.0)
    mine = [
        trial(1, values, False, total=5.0), trial(2, values, False, total=9.0), trial(3, values, False, total=2.0),
        trial(4, values, True, total=1.0), trial(5, values, True, total=0.0), trial(6, values, False),
    ]  # fmt: skip
    theirs = [
        trial(1, values, False, total=5.0), trial(2, values, True, total=1.0), trial(3, values, False, total=4.0),
        trial(4, values, False, total=7.0), trial(5, values, True, total=1.0),
        trial(6, values, False, scenario="stress"),
    ]  # fmt: skip
    found = cells.pairs(mine, theirs)
    assert [new.seed for new, _ in found] == [1, 2, 3, 4, 5]
    assert [new.seed for new, _ in cells.differing(found)] == [4, 2, 3, 5]
    other = dataclasses.replace(theirs[0], parameters={**theirs[0].parameters, "a": 0.25})
    assert cells.pairs(mine, [other]) == []
