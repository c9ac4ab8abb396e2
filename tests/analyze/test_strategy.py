"""A table of incidents and what is decided about each."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel.analyze.past import open_signals, recall
from flywheel.analyze.remedies import QUIET, REPAIRS, training_ranges
from flywheel.analyze.strategy import RULES, VETOES, decide, decision, sentences
from flywheel.config import AnalyzeConfig
from flywheel.correction import Surface
from flywheel.facts import Facts, plain
from flywheel.records import (
    Artifact,
    Calibration,
    Check,
    Correction,
    Outcome,
    Plan,
    Release,
    Signal,
    SignalKind,
    Turn,
    Verdict,
)

NOW = 1_000_000.0
NOMINAL = {"gravity": 9.8, "length": 0.5}


def signal(kind: SignalKind = "shift_detected", digest: str = "champion", at_episode: str = "e205") -> Signal:
    return Signal(
        kind=kind,
        monitor={"shift_detected": "world", "degradation": "outcome", "reward_hacking": "hacking"}[kind],
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
        artifact=artifact(digest),
        verdict=verdict,
        release=release if outcome == "pass" else None,
        evidence={},
    )


def artifact(digest: str) -> Artifact:
    return Artifact(digest=digest, version=1, uri="", spec=None, parent=None, trained_on={}, made_at=0.0)  # type: ignore[arg-type]


def facts(**incident: Any) -> Facts:
    given_: dict[str, Any] = {"champion": "champion", "nominal": NOMINAL, "now": NOW, **incident}
    history, signals = given_.pop("history", [turn()]), given_.pop("signals", [])
    champion = given_["champion"]
    return Facts(
        number=len(history) + 1,
        signals=open_signals(history, signals, champion),
        past=recall(history, champion, given_["now"]),
        **given_,
    )


def plan(**incident: Any) -> Plan:
    return decide(facts(**incident))


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
            {"signals": [WORSE], "previous": "before", "condemned": ("before",)},
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


SWAPPED = Correction(actions=(1, 0), explained=0.99, num_transitions=400)
LATE = Correction(delay=2, waiting=(0.0,), explained=0.9, num_transitions=400)
CORRECTED = dataclasses.replace(SHIFTED, correction=SWAPPED)
SURFACE = Surface(low=(0.0,), high=(1.0,), centre=(0.5,), scale=(1.0,), weights=(((0.1,), (0.2,), (0.3,)),))
UNEXPLAINED = {"calibration": calibration(explained=0.3), "correction": SWAPPED, "previous": "before"}


@pytest.mark.parametrize("signals", [[SHIFT, WORSE], [WORSE]])
def test_where_no_parameter_explains_a_change_worlds_are_corrected(signals: list[Signal]) -> None:
    decided = plan(signals=signals, **UNEXPLAINED)
    assert (decided.strategy, decided.sampling) == ("retrain_prioritize_recent", "production")
    assert decided.correction == SWAPPED
    assert "production acts as if actions 0 and 1 were swapped, which explains 99% of" in "; ".join(decided.reasons)


def test_while_the_policy_does_its_work_nothing_is_corrected() -> None:
    decided = plan(signals=[SHIFT], **UNEXPLAINED)
    assert (decided.strategy, decided.correction) == ("hold", None)
    assert "as if actions 0 and 1 were swapped" in "; ".join(decided.reasons)


def test_why_nothing_can_be_corrected_is_among_the_reasons() -> None:
    unknown = {**UNEXPLAINED, "correction": None, "no_correction": "only 9 steps show it"}
    decided = plan(signals=[SHIFT, WORSE], **unknown)
    assert (decided.sampling, decided.correction) == ("production", None)
    assert "it is not known what production does otherwise: only 9 steps show it" in decided.reasons


def test_what_is_corrected_stays_so_until_something_else_is_known() -> None:
    history = [turn(CORRECTED)]
    later = signal("degradation", at_episode="e901")
    assert plan(history=history).correction == SWAPPED, "a quiet candidate is judged in the same worlds"
    assert plan(history=[turn(CORRECTED, "fail")]).correction == SWAPPED
    assert plan(history=history, signals=[LATER], calibration=calibration(3.0)).correction == SWAPPED
    same = plan(history=history, signals=[later], calibration=calibration(), correction=SWAPPED, previous="before")
    assert same.strategy == "rollback_and_retrain", "the world is what the policy was trained for"
    other = plan(history=history, signals=[later], **{**UNEXPLAINED, "correction": LATE})
    assert other.correction == LATE
    back = plan(history=history, signals=[later], **{**UNEXPLAINED, "correction": Correction()})
    assert back.correction is None and back.sampling == "recent"
    assert "with nothing corrected" in "; ".join(back.reasons)


def test_a_correction_whose_plan_was_not_carried_out_is_asked_for_again() -> None:
    vetoed = dataclasses.replace(CORRECTED, strategy="hold")
    decided = plan(history=[turn(), turn(vetoed, None)], signals=[SHIFT, WORSE], **UNEXPLAINED)
    assert decided.strategy == "retrain_prioritize_recent" and decided.correction == SWAPPED


def test_what_the_last_plan_corrected_is_still_the_cure_where_its_candidate_was_not_released() -> None:
    """Parameters are fitted in the worlds of the last plan: that they explain all there is no policy's fault."""
    history = [turn(digest="champion"), dataclasses.replace(turn(CORRECTED), release=None)]
    decided = plan(history=history, signals=[SHIFT, WORSE], calibration=calibration(0.5), previous="before")
    assert decided.strategy == "retrain_prioritize_recent" and decided.correction == SWAPPED
    assert "as if actions 0 and 1 were swapped" in "; ".join(decided.reasons)
    assert "worlds trained in so far explain production" in "; ".join(decided.reasons)


def test_a_release_that_a_crash_kept_out_of_the_journal_brings_its_correction_with_it() -> None:
    decided = plan(history=[turn(digest="old")], champion="new", served=RANGES, served_correction=SWAPPED)
    assert decided.correction == SWAPPED


def test_a_reward_that_changed_is_followed_only_where_somebody_said_so() -> None:
    incident = {"signals": [SHIFT, WORSE], **UNEXPLAINED, "cause": {"kind": "reward", "sentences": ["rewards are"]}}
    paid = Correction(reward=SURFACE, explained=0.99, num_transitions=400)
    broken = plan(**{**incident, "correction": paid})
    assert (broken.sampling, broken.correction) == ("none", None)
    followed = plan(**incident, config=AnalyzeConfig(follow_rewards=True))
    assert (followed.sampling, followed.correction) == ("production", SWAPPED)


@pytest.mark.parametrize("kind", ["reward", "sensors"])
def test_that_other_actions_arrive_refutes_that_data_alone_are_broken(kind: str) -> None:
    """An arm whose torque is turned round goes where it never was, where what is paid looks otherwise as well."""
    found = plan(signals=[SHIFT, WORSE], **UNEXPLAINED, cause={"kind": kind, "sentences": ["it is off"]})
    assert (found.strategy, found.sampling) == ("retrain_prioritize_recent", "none")
    assert found.correction == SWAPPED and "as it may be broken" in found.reasons[-1]


@pytest.mark.parametrize("kind", ["reward", "logging"])
def test_a_policy_that_does_as_well_as_it_did_is_not_replaced_for_what_is_paid(kind: str) -> None:
    paid = dataclasses.replace(WORSE, monitor="loss")
    cause = {"kind": kind, "sentences": ["it is off"]}
    made = decision(facts(signals=[paid], cause=cause, previous="before"))
    assert (made.by, made.plan.strategy) == (("broken",), "hold") and REPAIRS[kind] in made.plan.reasons
    failing = decision(facts(signals=[paid, dataclasses.replace(WORSE, monitor="failed")], cause=cause))
    assert failing.by == ("degraded",)


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


def test_a_policy_that_was_trained_elsewhere_is_no_start_for_training() -> None:
    afresh = plan(elsewhere=("champion",))
    assert afresh.warm_start is None and "has no weights to train on, so training starts afresh" in afresh.reasons[-1]
    assert plan(elsewhere=("other",)) == dataclasses.replace(QUIET, warm_start="champion")
    back = plan(signals=[WORSE], previous="before", elsewhere=("before",))
    assert (back.strategy, back.warm_start) == ("rollback_and_retrain", None)


def test_without_a_budget_nothing_is_trained_and_a_rollback_goes_on() -> None:
    spent = plan(is_spent=True)
    assert spent.strategy == "hold" and spent.reasons[:-1] == QUIET.reasons and "--refill" in spent.reasons[-1]
    assert plan(signals=[WORSE], previous="before", is_spent=True) == plan(signals=[WORSE], previous="before")
    assert plan(signals=[SHIFT], is_spent=True) == plan(signals=[SHIFT]), "what holds anyway has its own reasons"


HACK = signal("reward_hacking", at_episode="e300")
KINDS = (*REPAIRS, "policy", "dynamics", "nothing")
CAUSES = {kind: {"kind": kind, "sentences": (f"it is the {kind}", "and more of it")} for kind in KINDS}


@pytest.mark.parametrize(
    ("incident", "by", "strategy", "reason"),
    [
        ({"held": "the plant is being cleaned"}, "held", "hold", "the plant is being cleaned"),
        ({"held": "x", "signals": [WORSE], "previous": "before"}, "held", "hold", "--go"),
        ({"held": "x", "champion": None, "history": []}, "held", "hold", "--go"),
        ({"held": "x", "history": [turn(outcome="fail")]}, "held", "hold", "--go"),
        ({"signals": [HACK]}, "hacked", "hold", "the return rose while episodes went off"),
        ({"signals": [HACK], "history": [turn(outcome="fail")]}, "hacked", "hold", "look at it first"),
        ({"signals": [HACK, WORSE], "previous": "b"}, "degraded", "rollback_and_retrain", "outcomes got worse"),
        ({"signals": [SHIFT], "cause": CAUSES["logging"]}, "broken", "hold", "repair the logging first"),
        ({"signals": [SHIFT], "cause": CAUSES["sensors"], "calibration": calibration()}, "broken", "hold", "sensor"),
        ({"signals": [SHIFT], "cause": CAUSES["reward"]}, "broken", "hold", "it is the reward; rewards are not"),
        ({"signals": [SHIFT], "cause": CAUSES["nothing"], "calibration": calibration()}, "changed_world",
         "retrain_prioritize_recent", "length is 2"),
        ({"signals": [WORSE, SHIFT], "blame": "policy", "previous": "b", "calibration": calibration()}, "bad_release",
         "rollback_and_retrain", "the policy is to blame"),
        ({"signals": [WORSE, SHIFT], "blame": "policy", "previous": "b", "history": [turn(SHIFTED, "fail")]},
         "bad_release", "rollback_and_retrain", "served before"),
        ({"signals": [SHIFT], "blame": "policy", "previous": "b"}, "unexplained", "hold", "still does its work"),
        ({"signals": [WORSE], "blame": "world", "blame_words": "both arms fail as often", "previous": "b"},
         "unexplained", "retrain_prioritize_recent", "both arms fail as often"),
        ({"signals": [WORSE], "blame": "world", "previous": "b", "calibration": calibration(0.5)}, "unexplained",
         "retrain_prioritize_recent", "the policy fails, so it trains on"),
        ({"signals": [WORSE], "cause": CAUSES["dynamics"], "previous": "b"}, "unexplained",
         "retrain_prioritize_recent", "it is the dynamics"),
        ({"signals": [WORSE, SHIFT], "cause": CAUSES["policy"], "previous": "b"}, "degraded", "rollback_and_retrain",
         "it is the policy"),
        ({"signals": [WORSE, SHIFT], "cause": CAUSES["policy"], "blame": "world", "previous": "b"}, "unexplained",
         "retrain_prioritize_recent", "the world is to blame"),
    ],
)  # fmt: skip
def test_blame_causes_and_a_person(incident: dict[str, Any], by: str, strategy: str, reason: str) -> None:
    made = decision(facts(**incident))
    assert (made.by, made.plan.strategy) == ((by,), strategy)
    assert reason in "; ".join(made.plan.reasons)


@pytest.mark.parametrize("kind", list(REPAIRS))
@pytest.mark.parametrize("previous", [None, "before"])
def test_a_policy_that_fails_outright_is_cured_without_the_broken_data(kind: str, previous: str | None) -> None:
    found = plan(signals=[WORSE, SHIFT], cause=CAUSES[kind], previous=previous, calibration=calibration())
    assert found.strategy == ("continue_training" if previous is None else "rollback_and_retrain")
    assert found.sampling == "none" and not found.parameters, "neither the store nor a fit to it says anything"
    assert REPAIRS[kind] in found.reasons


def test_what_the_control_group_and_the_diagnosis_say_is_told() -> None:
    words = "the policy before it was seen too little beside it"
    found = plan(signals=[WORSE], previous="before", blame_words=words)
    assert found.strategy == "rollback_and_retrain" and words in found.reasons
    assert "nothing says that the world changed" in found.reasons
    assert "it is initial states" in plan(signals=[SHIFT], cause={"kind": "initial_states"}).reasons
    made = decision(facts(signals=[SHIFT], cause=CAUSES["policy"] | {"since_episode": "e7", "examples_after": ["e8"]}))
    assert made.evidence.episodes == ("e201", "e205", "e7", "e8")


def test_an_incident_has_one_rollback() -> None:
    back = decision(facts(signals=[WORSE], previous="before"))
    first = Turn(
        number=1,
        plan=back.plan,
        release=Release(digest="before", stage="full", share=1.0, previous="champion", released_at=NOW),
        evidence={"before": 490.0, "recovered": False},
        decision=plain(back),
    )
    later = signal("degradation", "before", "e700")
    again = facts(history=[first], signals=[later], champion="before", previous="older")
    assert (again.past.incident, again.past.rollbacks) == (1, 1)
    assert plan(history=[first], signals=[later], champion="before", previous="older").strategy != back.plan.strategy
    assert "had its rollback already" in "; ".join(decide(again).reasons)
    cured = dataclasses.replace(first, evidence={"before": None, "recovered": True})
    assert plan(history=[cured], signals=[later], champion="before", previous="older").strategy == back.plan.strategy
    blamed = plan(history=[first], signals=[later], champion="before", previous="older", blame="policy")
    assert blamed.strategy == "retrain_prioritize_recent"


def test_where_production_contradicts_the_gate_nothing_is_trained_until_it_is_calibrated() -> None:
    words = "the gate foresaw 1 % of failures and production shows 9 %"
    made = decision(facts(contradiction=words))
    assert made.plan.strategy == "hold" and made.by == ("quiet", "contradicted") and words in made.plan.reasons[-1]
    found = decision(facts(contradiction=words, calibration=calibration()))
    assert (
        found.by == ("changed_world",) and found.plan.parameters["length"][0] < 2.0 < found.plan.parameters["length"][1]
    )
    back = plan(contradiction=words, signals=[WORSE], previous="before")
    assert back.strategy == "rollback_and_retrain", "a rollback asks no gate"


def test_a_day_has_its_rounds_and_quiet_times_may_use_half_of_them() -> None:
    config = AnalyzeConfig(most_rounds=4, cooldown_s=0.0)

    def trained(num: int, at: float) -> list[Turn]:
        made = decision(facts(history=[], champion=None, now=at))
        return [dataclasses.replace(turn(outcome=None), plan=made.plan, decision=plain(made))] * num

    incident = {"signals": [SHIFT], "calibration": calibration(), "config": config}
    assert plan(history=trained(1, NOW - 100), config=config).strategy == "continue_training"
    tired = decision(facts(history=trained(2, NOW - 100), config=config))
    assert tired.plan.strategy == "hold" and tired.by == ("quiet", "overworked")
    assert plan(history=trained(3, NOW - 100), **incident).strategy == "retrain_prioritize_recent"
    assert plan(history=trained(4, NOW - 100), **incident).strategy == "hold"
    assert plan(history=trained(9, NOW - 90_000), **incident).strategy == "retrain_prioritize_recent"
    free = dataclasses.replace(config, most_rounds=0)
    assert plan(history=trained(9, NOW - 100), config=free).strategy == "continue_training"


def test_after_a_release_or_a_hold_nothing_else_is_done_about_the_same_cause_for_a_while() -> None:
    incident = {"signals": [SHIFT], "obstacle": "too few", "now": NOW}
    held = decision(facts(**incident))
    assert held.plan.strategy == "hold"
    waiting = Turn(number=1, plan=held.plan, evidence={"before": 490.0}, decision=plain(held))
    after = {"history": [waiting], "signals": [SHIFT, LATER], "calibration": calibration()}
    soon = decision(facts(**after, now=NOW + 5))
    assert soon.plan.strategy == "hold" and soon.by == ("changed_world", "cooling") and "10 s" in soon.plan.reasons[-1]
    assert plan(**after, now=NOW + 16).strategy == "retrain_prioritize_recent"
    worse = {**after, "signals": [SHIFT, LATER, WORSE]}
    assert plan(**worse, now=NOW + 5).strategy == "retrain_prioritize_recent", "outcomes get worse meanwhile"
    other = {**after, "cause": CAUSES["dynamics"]}
    assert plan(**other, now=NOW + 5).strategy == "retrain_prioritize_recent", "it is another cause"
    cooled = Turn(number=2, plan=soon.plan, evidence={"before": 490.0}, decision=plain(soon))
    longer = {**after, "history": [waiting, cooled]}
    assert plan(**longer, now=NOW + 16).strategy == "retrain_prioritize_recent", "waiting does not begin anew"
    made = decision(facts(**after, now=NOW + 16))
    released = dataclasses.replace(turn(made.plan, digest="new"), decision=plain(made))
    assert released.release is not None
    released = dataclasses.replace(released, release=dataclasses.replace(released.release, released_at=NOW + 40))
    next_one = {
        "history": [waiting, released],
        "champion": "new",
        "signals": [signal(digest="new", at_episode="e990")],
        "calibration": calibration(3.0),
    }
    assert decision(facts(**next_one, now=NOW + 41)).by == ("changed_world", "cooling")
    assert plan(**next_one, now=NOW + 56).strategy == "retrain_prioritize_recent"


def test_every_rule_says_what_it_is_for_and_the_version_is_of_their_source() -> None:
    assert len(sentences()) == len(RULES) + len(VETOES) and all(len(text) > 30 for text in sentences().values())
    made = decision(facts())
    assert len(made.rules) == 12 and set(made.by) <= set(sentences())


def test_where_nothing_explains_a_change_the_plan_says_what_its_algorithm_can_learn() -> None:
    incident: dict[str, Any] = {"signals": [WORSE], "blame": "world", "previous": "b", "calibration": calibration(0.5)}
    by_ppo, by_dqn, unknown = (plan(**incident, algorithm=name) for name in ("ppo", "dqn", ""))
    assert {each.sampling for each in (by_ppo, by_dqn, unknown)} == {"production"}
    assert "PPO can't learn what production does: `--train.algorithm dqn`" in by_ppo.reasons[-1]
    assert by_dqn.reasons[-1].endswith("learns from what production has shown since then, and from nothing simulated")
    assert unknown.reasons[-1] == "the policy fails, so it trains on in the worlds known so far"
