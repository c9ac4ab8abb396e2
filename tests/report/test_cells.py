"""Cells and pairs: every world counted once, in its own cell, beside the baseline's in the same world."""

from __future__ import annotations

import dataclasses
import itertools
import math

from hypothesis import given
from hypothesis import strategies as st

from flywheel.gate.stress import LEVELS
from flywheel.records import Trial
from flywheel.report import cells
from flywheel.task import Parameter
from flywheel.tasks.cartpole import cartpole

PARAMETERS = (Parameter("a", 0.5, 0.0, 1.0), Parameter("b", 0.0, -2.0, 3.0), Parameter("c", 10.0, 1.0, 100.0))
TASK = dataclasses.replace(cartpole, parameters=PARAMETERS, edge_cases=(), drift={})


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
    found = cells.grids(TASK, trials)
    assert set(found) == (set(itertools.combinations("abc", 2)) if spread else set())
    for grid in found.values():
        assert sum(cell.num for cell in cells.every(grid)) == len(spread)
        assert sum(cell.num_failed for cell in cells.every(grid)) == sum(each.failed for each in spread)


def test_a_level_is_named_by_where_it_begins() -> None:
    for number in range(LEVELS):
        values = tuple(cells.edge(p, number) + 0.01 * (p.high - p.low) for p in PARAMETERS)
        grid = cells.grids(TASK, [trial(1, values, False)])["a", "c"]
        assert grid[number][number].num == 1
    assert [cells.edge(PARAMETERS[1], i) for i in (0, LEVELS)] == [-2.0, 3.0]


def test_a_single_parameter_has_one_row_and_none_has_no_cells() -> None:
    one = dataclasses.replace(TASK, parameters=PARAMETERS[:1])
    values = (0.1, 0.0, 10.0)
    assert [cell.num for (row,) in cells.grids(one, [trial(1, values, True)]).values() for cell in row] == [
        1, 0, 0, 0, 0,
    ]  # fmt: skip
    assert cells.grids(dataclasses.replace(TASK, parameters=()), [trial(1, values, True)]) == {}


def test_rows_are_levels_of_the_second_parameter_and_the_baseline_is_counted_beside() -> None:
    values = (0.9, -2.0, 1.0)
    mine, theirs = trial(1, values, True), trial(1, values, True)
    alone = trial(2, values, False)
    grid = cells.grids(TASK, [mine, alone], [theirs])["a", "b"]
    assert grid[0][4] == cells.Cell(num=2, num_failed=1, num_rival=1, num_rival_failed=1)
    assert sum(cell.num for cell in cells.every(grid)) == 2


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
