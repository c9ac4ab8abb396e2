"""Past decisions are made again, a changed one is found, and other rules are tried on the same facts."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from flywheel.analyze import replay
from flywheel.analyze.strategy import decide, decision
from flywheel.errors import FlywheelError
from flywheel.facts import Facts, plain
from flywheel.records import Plan, Turn
from tests.analyze.test_strategy import NOW, SHIFT, calibration, facts, turn


def journal() -> list[Turn]:
    """Return a turn from before decisions were kept, a quiet one, and one that answers a change."""
    turns = [turn()]
    for number, incident in enumerate(({}, {"signals": [SHIFT], "calibration": calibration()}), 2):
        made = decision(facts(history=list(turns), now=NOW + number, **incident))
        turns.append(dataclasses.replace(turn(made.plan), number=number, decision=plain(made)))
    return turns


def forged(turns: list[Turn], *path: str, value: Any) -> list[Turn]:
    """Return the journal with another value in its last decision."""
    made = json.loads(json.dumps(turns[-1].decision))
    inner = made
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    return [*turns[:-1], dataclasses.replace(turns[-1], decision=made)]


def test_every_decision_comes_out_the_same() -> None:
    old, *others = replay.replayed(journal())
    assert old.decision is None and old.is_same
    assert [each.is_same for each in others] == [True, True]
    assert [each.number for each in others] == [2, 3]


def test_what_was_changed_afterwards_is_found() -> None:
    turns = journal()
    (*_, last) = replay.replayed(forged(turns, "plan", "exploration", value=4.0))
    assert last.fields == ("exploration",) and not last.past and not last.is_same
    (*_, last) = replay.replayed(forged(turns, "facts", "signals", value=[]))
    assert {"strategy", "reasons", "signals"} <= set(last.fields)
    (*_, last) = replay.replayed(forged(turns, "facts", "past", "refusals", value=2))
    assert last.past == ("refusals",) and not last.fields and not last.is_same
    another = dataclasses.replace(turns[1], plan=dataclasses.replace(turns[1].plan, parameters={"length": (1.0, 1.1)}))
    (*_, last) = replay.replayed([turns[0], another, turns[2]])
    assert set(last.past) == {"plan", "parameters", "released"}, "the turn before it was changed"


def test_other_rules_are_tried_on_the_same_facts() -> None:
    def patient(found: Facts) -> Plan:
        plan = decide(found)
        return dataclasses.replace(plan, strategy="hold", reasons=("wait",)) if found.signals else plan

    assert [each.fields for each in replay.tried(journal(), patient)] == [(), (), ("strategy",)]
    assert not any(each.fields for each in replay.tried(journal(), decide))


def test_rules_that_fail_are_named_with_the_turn() -> None:
    with pytest.raises(FlywheelError, match=r"fail on turn 2 \(ZeroDivisionError"):
        replay.tried(journal(), lambda found: 1 // 0)  # type: ignore[arg-type,return-value]
    with pytest.raises(FlywheelError, match="turn 2 these rules return str"):
        replay.tried(journal(), lambda found: "hold")  # type: ignore[arg-type,return-value]
