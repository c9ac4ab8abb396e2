"""What each rule of strategy.py prescribes: plans with the sentences that give their reasons."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

from flywheel.config import AnalyzeConfig
from flywheel.facts import Facts, Ranges
from flywheel.records import Calibration, Correction, Parameters, Plan, Signal
from flywheel.replaying import OFF_POLICY

GROWTH = 2.0
"""Factor on the entropy bonus for each refusal in a row."""
MOST_EXPLORATION = 8.0
"""Largest factor: beyond it the bonus outweighs the return."""

QUIET = Plan(strategy="continue_training", reasons=("production is quiet",), sampling="uniform")

REPAIRS: Mapping[str, str] = {
    "logging": "what is logged is not what happened: repair the logging first, since what it lost can't be learnt from",
    "sensors": "an observation is off: repair the sensor first, or a policy would be trained to believe it",
    "reward": "rewards are not what they were: repair them first, say in the task what is wanted now, or have "
    "production's followed (analyze.follow_rewards)",
}
"""What a person has to do, by the kind of cause: of broken data nothing good is learnt."""


def worlds(facts: Facts) -> Ranges:
    """Return the ranges in which the policy in service was trained, or training was last."""
    return facts.past.parameters if _is_told(facts) or facts.served is None else facts.served


def _is_told(facts: Facts) -> bool:
    """Say whether the journal has the release of the policy in service, as far as there is one."""
    return facts.served is None or facts.past.is_champion_known or facts.champion is None


def in_force(facts: Facts) -> Correction | None:
    """Return what the worlds correct that were trained in so far."""
    return facts.past.correction if _is_told(facts) else facts.served_correction


def known(facts: Facts) -> Correction | None:
    """Return what worlds are to correct, as far as it is known: what production shows now, else what was so far."""
    found = in_force(facts) if facts.correction is None else facts.correction
    return None if found is None or found.is_none else found


def is_corrected(facts: Facts) -> bool:
    """Say whether production shows another correction than the policy in service was trained and judged by.

    Parameters that are believed are those of worlds that correct what the last plan did: then production shows that.
    """
    before = facts.past.corrected if _is_told(facts) else facts.served_correction
    is_fit = facts.calibration is not None and believed(facts.calibration, facts.config)
    return (facts.correction is not None or is_fit) and known(facts) != before


def hold(facts: Facts, *why: str) -> Plan:
    """Return the plan that changes nothing, for its reasons; it waits for other alarms than those at hand."""
    return Plan(
        strategy="hold",
        reasons=why,
        signals=facts.signals,
        parameters=worlds(facts),
        warm_start=facts.champion,
        correction=in_force(facts),
    )


def vetoed(plan: Plan, why: str) -> Plan:
    """Return a plan as one that holds, with one more reason."""
    return dataclasses.replace(plan, strategy="hold", sampling="none", reasons=(*plan.reasons, why))


def explore(facts: Facts) -> Plan:
    """Try again where the refused plan tried: first from its candidate, then from the champion, then afresh."""
    past = facts.past
    assert past.plan is not None and past.outcome is not None
    failing = ", ".join(past.failing) or "no check named"
    word = "refused" if past.outcome == "fail" else "could not decide on"
    origin, warm_start = {
        1: ("the candidate", past.candidate),
        2: ("the policy in service", facts.champion),
    }.get(past.refusals, ("fresh weights", None))
    return dataclasses.replace(
        past.plan,
        strategy="increase_exploration",
        reasons=(
            f"the gate {word} the last candidate ({failing})",
            f"attempt {past.refusals + 1} starts from {origin if warm_start else 'fresh weights'}",
        ),
        warm_start=warm_start,
        exploration=min(MOST_EXPLORATION, max(1.0, past.plan.exploration) * GROWTH),
        correction=known(facts),
    )


def no_way_back(facts: Facts) -> str:
    """Return why nothing may be rolled back, as a phrase; "" where the policy before may be put into service."""
    if facts.previous is None or facts.previous == facts.champion:
        return "there is no earlier policy to go back to" if facts.previous is None else "the earlier one failed itself"
    if facts.previous in facts.condemned or facts.previous in facts.past.accused:
        return "the earlier one failed itself"
    if facts.past.rollbacks:
        return "this incident had its rollback already, and was not cured by it"
    if to_blame(facts) == "world":
        return "the world is to blame, which a rollback does not cure"
    return ""


def to_blame(facts: Facts) -> str:
    """Return who made outcomes worse: as the control group shows, else as the diagnosis says."""
    if facts.blame != "unknown":
        return facts.blame
    kinds = {"policy": "policy", "dynamics": "world", "initial_states": "world"}
    return kinds.get(cause_kind(facts), "unknown")


def cause_kind(facts: Facts) -> str:
    """Return what the diagnosis names, "unknown" where there is none."""
    return str((facts.cause or {}).get("kind", "unknown"))


def is_broken(facts: Facts) -> bool:
    """Say whether the data are broken, as nothing good is learnt of: rewards only where they aren't to be followed."""
    kind = cause_kind(facts)
    return kind in REPAIRS and not (kind == "reward" and facts.config.follow_rewards)


def is_paid_otherwise(facts: Facts) -> bool:
    """Say whether nothing got worse but what is paid, or noted of it: the policy does as well as it did."""
    worse = [signal.monitor for signal in facts.signals if signal.kind == "degradation"]
    return cause_kind(facts) in ("reward", "logging") and all(monitor == "loss" for monitor in worse)


def acts_otherwise(facts: Facts) -> bool:
    """Say whether it is known that other actions arrive than are given, and that this is all: no broken data say so."""
    found = facts.correction
    return found is not None and not found.is_none and found.state is None and found.reward is None


def degraded(facts: Facts) -> Plan:
    """Go back to the policy before, or train another from the one in service, where nobody may be gone back to.

    Broken data are trained on by neither.
    """
    assert facts.champion is not None
    broken_data = is_broken(facts)
    stays = no_way_back(facts)
    strategy: Literal["rollback_and_retrain", "retrain_prioritize_recent", "continue_training"]
    if stays:
        strategy = "continue_training" if broken_data else "retrain_prioritize_recent"
        warm_start, why = facts.champion, stays
    else:
        assert facts.previous is not None
        strategy, warm_start = "rollback_and_retrain", facts.previous
        why = f"policy {warm_start[:8]} served before it, and no alarm was ever about it"
    broken = ("nothing of the broken data is trained on", REPAIRS[cause_kind(facts)]) if broken_data else ()
    is_known = broken_data or to_blame(facts) != "unknown"
    unchanged = () if is_known else ("nothing says that the world changed",)
    return Plan(
        strategy=strategy,
        reasons=(*told(facts), *unchanged, why, *broken),
        signals=facts.signals,
        sampling="none" if broken_data else "recent",
        parameters=worlds(facts),
        warm_start=warm_start,
        correction=in_force(facts),
    )


def calibrated(facts: Facts, names: Sequence[str]) -> Plan:
    """Train in the worlds that production shows; `names` are the parameters that moved."""
    assert facts.calibration is not None
    found = facts.calibration
    reasons = [*told(facts), measured(found, names)]
    if found.not_identified:
        reasons.append(f"production can't tell apart {', '.join(found.not_identified)}")
    return Plan(
        strategy="retrain_prioritize_recent",
        reasons=tuple(reasons),
        signals=facts.signals,
        sampling="recent",
        parameters=training_ranges(found, facts.config.widen),
        warm_start=facts.champion,
        correction=known(facts),
    )


def unexplained(facts: Facts) -> Plan:
    """Train where the policy fails in a world that no parameter explains; hold where it does its work."""
    if is_degraded(facts):
        return retrained(facts)
    found = facts.calibration
    fine = "the policy still does its work, and training in the worlds known so far would not help"
    shown = () if facts.correction is None else (str(facts.correction),)
    is_known = found is not None and believed(found, facts.config)
    return hold(facts, *told(facts), _fitted(facts), *shown, *(() if is_known else (fine,)))


def _fitted(facts: Facts) -> str:
    """Return what the parameters explain of the change, or why nobody knows."""
    found = facts.calibration
    if found is None:
        return f"the simulator was not calibrated: {facts.obstacle or 'no episode shows the changed world yet'}"
    if believed(found, facts.config):
        return measured(found, ())
    what = "residual" if found.method == "transitions" else "distance between whole episodes' statistics"
    return f"no parameter explains the change: the best fit removes {found.explained:.0%} of the {what}"


def retrained(facts: Facts) -> Plan:
    """Train by what production shows, in worlds that are corrected by it where it is known how.

    In those alone where its data may be broken, too: what is paid there is what the task pays.
    """
    is_back = facts.correction is not None and facts.correction.is_none
    broken_data = is_broken(facts)
    alone = ("nothing that production noted is trained on, as it may be broken",) if broken_data else ()
    return Plan(
        strategy="retrain_prioritize_recent",
        reasons=(*told(facts), _fitted(facts), *told_correction(facts), *alone),
        signals=facts.signals,
        sampling="none" if broken_data else "recent" if is_back else "production",
        parameters=worlds(facts),
        warm_start=facts.champion,
        correction=known(facts),
    )


def told_correction(facts: Facts) -> tuple[str, ...]:
    """Return what production does otherwise than the simulator, or that it is not known, and what follows from it."""
    found = facts.correction or (known(facts) if is_corrected(facts) else None)
    if found is None:
        asked = f"it is not known what production does otherwise: {facts.no_correction}" if facts.no_correction else ""
        return (*filter(None, [asked]), f"the policy fails, so it {_goes_on(facts.algorithm)}")
    if found.is_none:
        return ("production does what the simulator does at the parameters known so far, with nothing corrected",)
    share = f"{found.explained:.0%} of what the simulator missed in episodes that it was not fitted to"
    return (f"{found}, which explains {share}", "the gate judges in worlds that do so, too, and training goes on there")


def _goes_on(algorithm: str) -> str:
    """Return how an algorithm goes on where no simulator does what production does, as a phrase."""
    if algorithm in OFF_POLICY:
        return "learns from what production has shown since then, and from nothing simulated"
    learners = "`--train.algorithm dqn` (discrete actions) or `sac` (bounded box actions)"
    other = f", where {algorithm.upper()} can't learn what production does: {learners} learns from its steps"
    return f"trains on in the worlds known so far{other if algorithm else ''}"


def is_degraded(facts: Facts) -> bool:
    """Say whether an open alarm is about outcomes: only such a one may roll back, or train on what isn't explained."""
    return any(signal.kind == "degradation" for signal in facts.signals)


def believed(calibration: Calibration, config: AnalyzeConfig) -> bool:
    """Say whether a fit removed enough: chance leaves more of whole episodes than of transitions."""
    least = config.explained if calibration.method == "transitions" else config.explained_episodes
    return calibration.explained >= least


def training_ranges(calibration: Calibration, widen: float) -> dict[str, tuple[float, float]]:
    """Return the range to train in for each parameter, centred on the calibrated value, which the gate judges at.

    A range reaches `widen` of the value to both sides, further where the calibration is less sure, and keeps its sign.
    """
    ranges = {}
    for name, value in calibration.values.items():
        low, high = calibration.intervals[name]
        half = max(widen * abs(value), value - low, high - value)
        half = min(half, 0.9 * abs(value)) if value else half
        ranges[name] = (value - half, value + half)
    return ranges


def moved(facts: Facts) -> tuple[str, ...]:
    """Name the parameters whose interval lies outside the worlds that the policies in service were trained in.

    () where no calibration is believed, or it was made of broken data.
    """
    found = facts.calibration
    if found is None or not believed(found, facts.config) or is_broken(facts):
        return ()
    trained = facts.past.released if facts.served is None else facts.served
    return _outside(found, trained, facts.nominal)


def _outside(calibration: Calibration, trained: Ranges, nominal: Parameters) -> tuple[str, ...]:
    trained = {**{name: (value, value) for name, value in nominal.items()}, **trained}
    names = []
    for name, (low, high) in calibration.intervals.items():
        slack = 0.01 * abs(calibration.values[name])  # a change of less than 1 % is none
        if low > trained[name][1] + slack or high < trained[name][0] - slack:
            names.append(name)
    return tuple(names)


def told(facts: Facts) -> list[str]:
    """Return what is known of the incident: each alarm, who is to blame, and the cause."""
    return [*map(_alarm, facts.signals), *told_causes(facts)]


def _alarm(signal: Signal) -> str:
    what = {
        "shift_detected": "the world changed",
        "degradation": "outcomes got worse",
        "reward_hacking": "the return rose while episodes went off",
    }
    name = "episodes begin or look otherwise" if signal.monitor == "inputs" else what.get(signal.kind, signal.kind)
    return f"{name} ({signal.monitor} monitor, evidence {signal.value:,.0f} of {signal.threshold:,.0f})"


def told_causes(facts: Facts) -> list[str]:
    """Return whose doing it is, and the cause that the diagnosis names; [] where nobody says anything of either."""
    whose = facts.blame_words or ("" if facts.blame == "unknown" else f"the {facts.blame} is to blame")
    kind, what = cause_kind(facts), ""
    if kind not in ("nothing", "unknown"):
        what = str(next(iter((facts.cause or {}).get("sentences", ())), f"it is {kind.replace('_', ' ')}"))
    return [text for text in (whose, what) if text]


def measured(calibration: Calibration, names: Sequence[str]) -> str:
    """Return what a fit found of the parameters that moved, or that none did."""
    if not names:
        return f"the worlds trained in so far explain production ({calibration.explained:.0%})"
    found = []
    for name in names:
        low, high = calibration.intervals[name]
        found.append(f"{name} is {calibration.values[name]:.3g} ({low:.3g} to {high:.3g})")
    return ", ".join(found)
