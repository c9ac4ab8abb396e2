"""A table of incidents and what is decided about each."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel.analyze.strategy import QUIET, affordable, decide, startable, training_ranges
from flywheel.config import AnalyzeConfig
from flywheel.records import ELSEWHERE, Calibration, Check, Outcome, Plan, Release, Signal, SignalKind, Turn, Verdict
from flywheel.tasks.cartpole import cartpole
from flywheel.testing import write_linear_artifact

NOMINAL = {"gravity": 9.8, "length": 0.5}


def signal(kind: SignalKind = "shift_detected", digest: str = "champion", at_episode: str = "e205") -> Signal:
    return Signal(
        kind=kind,
        monitor="world" if kind == "shift_detected" else "outcome",
        digest=digest,
        value=31_234.0,
        threshold=20_000.0,
        since_episode="e201",
        at_episode=at_episode,
        evidence={},
        at=1.0,
    )


def calibration(length: float = 2.0, explained: float = 1.0, spread: float = 0.01) -> Calibration:
    return Calibration(
        values={"gravity": 9.8, "length": length},
        intervals={"gravity": (9.79, 9.81), "length": (length * (1 - spread), length * (1 + spread))},
        explained=explained,
        residual=0.0,
        num_transitions=400,
    )


def turn(plan: Plan | None = None, outcome: Outcome | None = "pass", digest: str = "candidate") -> Turn:
    verdict = None
    if outcome is not None:
        check = Check(name="failure_rate", value=0.1, interval=(0.05, 0.2), bound=0.05, passed=outcome == "pass")
        verdict = Verdict(
            digest=digest,
            baseline=None,
            task="t",
            config="c",
            simulator="s",
            outcome=outcome,
            checks=(check,),
            trials=(),
            seed=1,
            cost_s=1.0,
            judged_at=0.0,
            valid_until=1.0,
        )
    release = Release(digest=digest, stage="full", share=1.0, previous=None, released_at=0.0)
    return Turn(
        number=1,
        plan=plan or Plan(strategy="continue_training", reasons=("production is quiet",)),
        artifact=None,
        verdict=verdict,
        release=release if outcome == "pass" else None,
        evidence={},
    )


def plan(**incident: Any) -> Plan:
    given_: dict[str, Any] = {
        "history": [turn()],
        "signals": [],
        "calibration": None,
        "champion": "champion",
        "previous": None,
        "condemned": frozenset(),
        "nominal": NOMINAL,
        **incident,
    }
    history, signals, found = given_.pop("history"), given_.pop("signals"), given_.pop("calibration")
    return decide(history, signals, found, AnalyzeConfig(), **given_)


SHIFT, WORSE = signal(), signal("degradation")
RANGES = {"gravity": (9.0, 10.6), "length": (1.9, 2.1)}
SHIFTED = Plan(
    strategy="retrain_prioritize_recent", reasons=("x",), signals=(SHIFT,), parameters=RANGES, warm_start="champion"
)
LATER = signal(at_episode="e900")


@pytest.mark.parametrize(
    ("incident", "strategy", "warm_start", "reason"),
    [
        ({"history": [], "champion": None}, "continue_training", None, "no policy is in service"),
        ({}, "continue_training", "champion", "quiet"),
        ({"signals": [SHIFT], "calibration": calibration()}, "retrain_prioritize_recent", "champion", "length is 2"),
        (
            {"signals": [WORSE, SHIFT], "calibration": calibration(), "previous": "before"},
            "retrain_prioritize_recent",
            "champion",
            "length is 2",
        ),
        ({"signals": [WORSE], "previous": "before"}, "rollback_and_retrain", "before", "served before"),
        (
            {"signals": [WORSE], "previous": "before", "calibration": calibration()},
            "retrain_prioritize_recent",
            "champion",
            "length is 2",
        ),
        (
            {"signals": [WORSE, SHIFT], "previous": "before", "calibration": calibration(0.5)},
            "rollback_and_retrain",
            "before",
            "nothing says that the world changed",
        ),
        (
            {"signals": [WORSE], "previous": "before", "condemned": frozenset({"before"})},
            "retrain_prioritize_recent",
            "champion",
            "failed itself",
        ),
        ({"signals": [WORSE]}, "retrain_prioritize_recent", "champion", "no earlier policy"),
        ({"signals": [WORSE], "previous": "champion"}, "retrain_prioritize_recent", "champion", "failed itself"),
        ({"signals": [SHIFT], "calibration": calibration(explained=0.3)}, "hold", "champion", "removes 30% of"),
        (
            {"signals": [SHIFT, WORSE], "calibration": calibration(explained=0.3), "previous": "before"},
            "retrain_prioritize_recent",
            "champion",
            "no parameter explains",
        ),
        ({"signals": [SHIFT], "obstacle": "task t gives no set_state"}, "hold", "champion", "gives no set_state"),
        ({"history": [turn(None, "fail")]}, "increase_exploration", "candidate", "last candidate (failure_rate)"),
        ({"history": [turn(outcome="inconclusive")]}, "increase_exploration", "candidate", "could not decide"),
        ({"history": [turn(outcome="fail")] * 2}, "increase_exploration", "champion", "attempt 3"),
        ({"history": [turn(outcome="fail")] * 3}, "increase_exploration", None, "fresh weights"),
        ({"history": [turn(outcome="fail")], "champion": None}, "increase_exploration", "candidate", "refused"),
        ({"history": [turn(outcome="fail")] * 2, "champion": None}, "increase_exploration", None, "fresh weights"),
        (
            {"history": [turn(SHIFTED, "fail")], "signals": [SHIFT], "calibration": calibration()},
            "increase_exploration",
            "candidate",
            "refused",
        ),
        (
            {"history": [turn(SHIFTED, "fail")], "signals": [SHIFT, WORSE], "calibration": calibration()},
            "increase_exploration",
            "candidate",
            "refused",
        ),
        (
            {"history": [turn(SHIFTED, "fail")], "signals": [SHIFT, LATER], "calibration": calibration(3.0)},
            "retrain_prioritize_recent",
            "champion",
            "length is 3",
        ),
        (
            {"history": [turn(outcome="fail")], "signals": [WORSE], "previous": "b"},
            "rollback_and_retrain",
            "b",
            "served",
        ),
        ({"history": [turn(SHIFTED)], "signals": [SHIFT]}, "continue_training", "champion", "quiet"),
        ({"signals": [signal("degradation", digest="gone")]}, "continue_training", "champion", "quiet"),
        ({"signals": [signal(digest="gone")]}, "continue_training", "champion", "quiet"),
        (
            {"history": [turn(SHIFTED, None)], "signals": [SHIFT], "calibration": calibration()},
            "retrain_prioritize_recent",
            "champion",
            "length is 2",
        ),
        (
            {"history": [turn(SHIFTED)], "signals": [LATER], "calibration": calibration()},
            "hold",
            "champion",
            "explain production",
        ),
    ],
)
def test_incidents(incident: dict[str, Any], strategy: str, warm_start: str | None, reason: str) -> None:
    decided = plan(**incident)
    assert (decided.strategy, decided.warm_start) == (strategy, warm_start)
    assert reason in "; ".join(decided.reasons)
    assert plan(**incident) == decided


def test_a_policy_that_an_alarm_was_about_is_not_gone_back_to() -> None:
    accused = turn(SHIFTED, digest="new")
    decided = plan(
        history=[turn(digest="champion"), accused],
        signals=[signal("degradation", digest="new", at_episode="e999")],
        champion="new",
        previous="champion",
    )
    assert decided.strategy == "retrain_prioritize_recent"
    assert decided.warm_start == "new"


def test_a_release_that_a_crash_kept_out_of_the_journal_brings_its_worlds_with_it() -> None:
    decided = plan(history=[turn(digest="old")], champion="new", served=RANGES)
    assert decided.parameters == RANGES
    journaled = plan(history=[turn(SHIFTED, digest="new")], champion="new", served={})
    assert journaled.parameters == SHIFTED.parameters


def test_the_last_calibrated_worlds_are_trained_in_until_others_are_known() -> None:
    assert plan(history=[turn(SHIFTED), turn()]).parameters == RANGES
    assert plan(history=[turn(SHIFTED), turn()], signals=[WORSE]).parameters == RANGES
    assert plan(history=[turn(SHIFTED, "fail")]).parameters == RANGES
    again = plan(history=[turn(SHIFTED)], signals=[LATER], calibration=calibration(1.0))
    assert again.parameters["length"] == pytest.approx((0.95, 1.05))


def test_exploration_grows_with_each_refusal_up_to_a_limit() -> None:
    history: list[Turn] = [turn(SHIFTED, "fail")]
    factors = []
    for _ in range(5):
        decided = plan(history=history, signals=[SHIFT])
        factors.append(decided.exploration)
        history.append(turn(decided, "fail"))
    assert factors == [2.0, 4.0, 8.0, 8.0, 8.0]


def test_exploration_is_back_to_normal_after_a_release() -> None:
    explored = dataclasses.replace(SHIFTED, strategy="increase_exploration", exploration=4.0)
    assert plan(history=[turn(SHIFTED, "fail"), turn(explored)]).exploration == 1.0


def test_what_can_not_be_told_apart_is_among_the_reasons() -> None:
    found = dataclasses.replace(calibration(), not_identified=("masscart", "force_mag"))
    assert "production can't tell apart masscart, force_mag" in plan(signals=[SHIFT], calibration=found).reasons


@given(value=st.floats(0.01, 100), below=st.floats(0, 1), above=st.floats(0, 10), widen=st.floats(0.001, 0.5))
def test_a_training_range_is_centred_on_the_value_covers_its_neighbourhood_and_keeps_its_sign(
    value: float, below: float, above: float, widen: float
) -> None:
    found = dataclasses.replace(
        calibration(), values={"length": value}, intervals={"length": (value * (1 - below), value * (1 + above))}
    )
    low, high = training_ranges(found, widen)["length"]
    assert (low + high) / 2 == pytest.approx(value)
    assert 0 < low <= value * (1 - widen) * (1 + 1e-9)
    assert high >= value * (1 + widen) * (1 - 1e-9)


def test_a_fit_to_whole_episodes_is_believed_by_a_threshold_of_its_own() -> None:
    config = AnalyzeConfig()
    between = (config.explained + config.explained_episodes) / 2
    whole = dataclasses.replace(calibration(explained=between), method="episodes")
    assert plan(signals=[SHIFT], calibration=whole).strategy == "retrain_prioritize_recent"
    assert plan(signals=[SHIFT], calibration=calibration(explained=between)).strategy == "hold"
    little = dataclasses.replace(whole, explained=0.1)
    assert "10% of the distance" in "; ".join(plan(signals=[SHIFT], calibration=little).reasons)


def test_a_policy_that_was_trained_elsewhere_is_no_start_for_training(tmp_path: Path) -> None:
    ours = write_linear_artifact(tmp_path, cartpole, trained_on={"strategy": "continue_training"})
    theirs = write_linear_artifact(tmp_path, cartpole, trained_on={"strategy": ELSEWHERE})
    plan = dataclasses.replace(QUIET, warm_start=ours.digest)
    assert startable(plan, ours) == plan and startable(QUIET, None) == QUIET
    afresh = startable(dataclasses.replace(plan, warm_start=theirs.digest), theirs)
    assert afresh.warm_start is None and "has no weights to train on, so training starts afresh" in afresh.reasons[-1]
    assert dataclasses.replace(afresh, reasons=QUIET.reasons) == QUIET


def test_without_a_budget_nothing_is_trained_and_a_rollback_goes_on() -> None:
    back = dataclasses.replace(QUIET, strategy="rollback_and_retrain")
    for plan in (QUIET, back, dataclasses.replace(QUIET, strategy="hold")):
        assert affordable(plan, False) == plan
    held = affordable(QUIET, True)
    assert held.strategy == "hold" and held.reasons[:-1] == QUIET.reasons and "--refill" in held.reasons[-1]
    assert affordable(back, True) == back


def test_a_hacked_reward_holds_the_wheel_unless_outcomes_got_worse() -> None:
    hacked = signal("reward_hacking")
    held = plan(signals=[hacked])
    assert (held.strategy, held.signals, held.warm_start) == ("hold", (hacked,), "champion")
    assert held.reasons[0].startswith("the return rose while episodes went off (")
    assert plan(signals=[hacked, signal("degradation")], previous="older").strategy == "rollback_and_retrain"
    assert plan(signals=[signal("reward_hacking", digest="challenger")]).strategy == "continue_training"
