"""What the journal says to the rules: incidents, rollbacks, rounds, and what was done about a cause."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel.analyze.past import COOLING, open_signals, recall
from flywheel.analyze.strategy import decision
from flywheel.errors import FlywheelError
from flywheel.facts import DAY_S, Past, cause_of, decision_of, plain
from flywheel.records import Plan, Release, StrategyName, Turn
from tests.analyze.test_strategy import NOW, SHIFT, SHIFTED, WORSE, facts, signal, turn

BEFORE = Release(digest="before", stage="full", share=1.0, previous="champion", released_at=NOW)
ALARMED = {"before": 490.0, "recovered": False, "signals": [{"kind": "degradation"}]}
UNCURED = {"before": 490.0, "recovered": False}
CURED = {"before": None, "recovered": True}
QUIET = {"before": None, "recovered": False}
STOPPED = {"before": None, "recovered": False, "stopped": True}


def seen(number: int, strategy: StrategyName, evidence: dict[str, Any], **more: Any) -> Turn:
    return Turn(number=number, plan=Plan(strategy=strategy, reasons=()), evidence=evidence, **more)


BACK = seen(2, "rollback_and_retrain", UNCURED, release=BEFORE)


@pytest.mark.parametrize(
    ("history", "incident", "rollbacks"),
    [
        ([], 0, 0),
        ([seen(1, "continue_training", QUIET)], 0, 0),
        ([seen(1, "continue_training", ALARMED)], 1, 0),
        ([seen(1, "continue_training", ALARMED), BACK], 1, 1),
        ([BACK], 2, 1),
        ([seen(1, "continue_training", ALARMED), BACK, seen(3, "hold", CURED)], 0, 0),
        ([seen(1, "continue_training", ALARMED), BACK, seen(3, "hold", STOPPED)], 1, 1),
        ([seen(1, "continue_training", ALARMED), dataclasses.replace(BACK, evidence=QUIET)], 0, 0),
        ([dataclasses.replace(BACK, plan=Plan(strategy="hold", reasons=("no candidate was worth a verdict",)))], 2, 1),
        ([Turn(number=4, plan=Plan(strategy="hold", reasons=(), signals=(SHIFT,)), evidence=QUIET)], 4, 0),
        ([Turn(number=4, plan=SHIFTED, evidence=QUIET)], 0, 0),
        ([Turn(number=4, plan=SHIFTED, evidence=STOPPED)], 4, 0),
    ],
)
def test_an_incident_is_open_until_production_is_good_again(history: list[Turn], incident: int, rollbacks: int) -> None:
    found = recall(history, "champion", NOW)
    assert (found.incident, found.rollbacks) == (incident, rollbacks)


def test_before_the_first_turn_there_is_nothing_to_recall() -> None:
    assert recall([], None, NOW) == Past()


def test_alarms_that_a_release_answered_or_about_others_are_not_open() -> None:
    others = signal(digest="gone")
    assert open_signals([], [SHIFT, WORSE, others], "champion") == (SHIFT, WORSE)
    assert open_signals([turn(SHIFTED)], [SHIFT, WORSE, others], "champion") == (WORSE,)
    assert open_signals([turn(SHIFTED, "fail")], [SHIFT], "champion") == (SHIFT,)
    assert open_signals([], [SHIFT], None) == ()


def test_rounds_of_the_last_day_are_counted_also_those_from_before_decisions_were_kept() -> None:
    made = decision(facts(history=[], champion=None, now=NOW))
    held = decision(facts(held="x", now=NOW))
    history = [
        seen(1, "continue_training", QUIET, decision=plain(made)),
        seen(2, "hold", QUIET, decision=plain(held)),
        turn(),  # judged at 0
        seen(3, "hold", QUIET),
    ]
    assert recall(history, "champion", NOW).rounds == 1
    assert recall(history, "champion", NOW + DAY_S).rounds == 0
    assert recall(history, "champion", 10.0).rounds == 1, "the old turn, by its verdict"


DONE = st.tuples(
    st.sampled_from(["hold", "train", "release"]), st.sampled_from(["sensors", "reward"]), st.booleans(), st.booleans()
)


def acted(history: Sequence[Turn]) -> tuple[str, float]:
    """Return what `Past.cause` and `Past.acted_at` are, looked for from the end."""
    cause, at = "", 0.0
    for each in reversed(history):
        made = decision_of(each)
        assert made is not None
        if not made.facts.signals or COOLING in made.by:
            continue
        its, holds = cause_of(made.facts), made.plan.strategy == "hold"
        if cause and not (holds and its == cause):
            break
        if each.release is not None:
            return its, each.release.released_at
        if holds:
            cause, at = its, made.facts.now
    return cause, at


@settings(deadline=None)
@given(st.lists(DONE, max_size=8))
def test_what_was_done_about_a_cause_is_the_same_from_the_front_as_from_the_end(done: list[Any]) -> None:
    history: list[Turn] = []
    for number, (what, kind, is_cooling, is_quiet) in enumerate(done, start=1):
        made = decision(facts(signals=() if is_quiet else [WORSE], cause={"kind": kind}, now=NOW + number))
        plan = Plan(strategy="hold" if what == "hold" else "continue_training", reasons=())
        made = dataclasses.replace(made, plan=plan, by=(COOLING,) if is_cooling else ("quiet",))
        release = dataclasses.replace(BEFORE, released_at=NOW + number + 0.5) if what == "release" else None
        history.append(seen(number, plan.strategy, QUIET, decision=plain(made), release=release))
    found = recall(history, "champion", NOW)
    assert (found.cause, found.acted_at) == acted(history)


def test_two_alarms_of_one_kind_have_one_cause_unless_the_diagnosis_names_it() -> None:
    assert cause_of(facts()) == ""
    assert cause_of(facts(signals=[WORSE, SHIFT])) == cause_of(facts(signals=[SHIFT, WORSE, SHIFT]))
    assert cause_of(facts(signals=[WORSE], cause={"kind": "sensors"})) == "sensors"
    assert cause_of(facts(signals=[WORSE], cause={"kind": "nothing"})) == "degradation"


def test_a_damaged_decision_is_named_with_its_turn() -> None:
    made = plain(decision(facts()))
    with pytest.raises(FlywheelError, match=r"decision of turn 1 .* can't be read"):
        decision_of(dataclasses.replace(turn(), decision=made | {"by": 3}))
    later = decision_of(dataclasses.replace(turn(), decision=made | {"new": "field of a newer version"}))
    assert later is not None and later.by == ("quiet",)
    made["facts"].pop("contradiction")
    earlier = decision_of(dataclasses.replace(turn(), decision=made))
    assert earlier is not None and earlier.facts.contradiction == "", "a field that was added since has its default"
