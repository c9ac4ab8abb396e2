"""What open episodes will come to: they are given as far as they came, and the estimate is shown as one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from flywheel.observe.outlook import EVERY_S, STALE_S, Outlook
from flywheel.records import Episode
from flywheel.task import Task
from flywheel.tasks.cartpole import cartpole
from tests.observe.streams import DIGEST, rows_of, steps_of
from tests.observe.test_assemble import make
from tests.observe.test_leased import episode


def test_open_episodes_are_given_as_far_as_they_came_and_stay_open() -> None:
    assembler = make()
    whole = rows_of("a", 6, start=1.0)
    assembler.add(steps_of([*whole[:4], *rows_of("b", 6, 2.0)[:1], *rows_of("c", 3, 3.0)]), 4.0)
    (found,) = assembler.unfinished(DIGEST, 9)
    assert (found.id, found.num_steps, found.end, found.failed) == ("a", 3, "lost", False)
    assert np.array_equal(found.observations, [row[2] for row in whole[:4]])
    assert found.rewards.tolist() == [row[4] for row in whole[1:4]]
    assert not assembler.unfinished("another", 9) and not assembler.unfinished(DIGEST, 0)
    assert assembler.is_open("a") and assembler.counts.unjudged == 0


def guess(task: Task, closed: Sequence[Episode], begun: Sequence[Episode], now: float) -> Any:
    return f"estimated: {len(closed)} closed, {[e.id for e in begun]}" if begun else None


def test_it_looks_now_and_then_at_open_episodes_and_those_that_lack_a_reward() -> None:
    outlook = Outlook(cartpole, guess)
    assert outlook.is_due(100.0) and not outlook.is_due(100.1) and outlook.is_due(100.0 + EVERY_S)
    closed = [episode(name, 1.0, 2.0) for name in "ab"]
    late = dataclasses.replace(closed[0], id="late", rewards=np.array([1.0, np.nan]))
    assert outlook.look(closed, [], 5.0) == "" and outlook.told is None
    noted = outlook.look([*closed, late], [episode("open", 3.0, 3.0)], 5.0)
    assert outlook.told == "estimated: 3 closed, ['late', 'open']"
    assert Outlook.noted(noted, 6.0) == outlook.told and Outlook.noted(noted, 5.0 + STALE_S) is None
    gone = outlook.look(closed, [], 7.0)
    assert gone and Outlook.noted(gone, 7.0) is None and Outlook.noted(None, 0.0) is None
    assert not Outlook(cartpole, None).is_due(1e9)
