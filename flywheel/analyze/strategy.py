"""What to do next, and why: one Plan for each turn, from rules a person can check by hand.

The order of the rules is the order of what they cure. A changed world outranks a bad outcome, because a rollback
is no cure for it; an old alarm whose cure the gate refused asks for more exploration, a new one for a new answer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

from flywheel.config import AnalyzeConfig
from flywheel.records import ELSEWHERE, Artifact, Calibration, Parameters, Plan, Signal, Turn

GROWTH = 2.0
"""Factor on the entropy bonus for each refusal in a row."""
MOST_EXPLORATION = 8.0
"""Largest factor: beyond it the bonus outweighs the return."""

QUIET = Plan(strategy="continue_training", reasons=("production is quiet",), sampling="uniform")

Ranges = Mapping[str, tuple[float, float]]


def decide(
    history: Sequence[Turn],
    signals: Sequence[Signal],
    calibration: Calibration | None,
    config: AnalyzeConfig,
    *,
    champion: str | None,
    previous: str | None,
    condemned: frozenset[str],
    nominal: Parameters,
    served: Ranges | None = None,
    obstacle: str = "",
) -> Plan:
    """Return the plan of the next turn; the same arguments always give the same plan.

    Args:
        history: all turns so far, in order.
        signals: alarms; those about other policies, and those a release answered, are left out here.
        calibration: the simulator's parameters as the changed episodes show them, None if there is none.
        config: when a calibration is believed, and how far training strays from it.
        champion: digest in service.
        previous: digest that was in service before it and may be served again.
        condemned: digests that were rolled back.
        nominal: the task's own parameters, where training was so far if no plan says otherwise.
        served: ranges that the policy in service was trained in; they count where the journal lacks its release.
        obstacle: why there is no calibration.
    """
    last = history[-1] if history else None
    journaled = any(turn.release is not None and turn.release.digest == champion for turn in history)
    ranges = _carried(history) if served is None or journaled or champion is None else served
    refused = last is not None and last.verdict is not None and last.verdict.outcome != "pass"
    open_signals = _open(history, signals, champion)
    fresh = [s for s in open_signals if last is None or _key(s) not in {_key(old) for old in last.plan.signals}]
    shifts = [s for s in open_signals if s.kind == "shift_detected"]
    degraded = any(s.kind == "degradation" for s in open_signals)
    believed = calibration is not None and _believed(calibration, config)
    answered = not any(s.kind == "shift_detected" for s in fresh) and (bool(shifts) or not fresh)

    if last is not None and refused and answered:
        return _explore(last, history, champion)
    if champion is None:
        return Plan(strategy="continue_training", reasons=("no policy is in service yet",), parameters=ranges)
    if not open_signals:
        return dataclasses.replace(QUIET, parameters=ranges, warm_start=champion)
    trained = _carried([turn for turn in history if turn.release is not None]) if served is None else served
    moved = _moved(calibration, trained, nominal) if calibration is not None and believed else ()
    if not moved and degraded and (believed or not shifts):
        accused = frozenset(s.digest for turn in history for s in turn.plan.signals)
        return _degraded(open_signals, ranges, champion, previous, condemned | accused)
    return _shifted(open_signals, calibration, config, ranges, champion, moved, obstacle)


def startable(plan: Plan, start: Artifact | None) -> Plan:
    """Return the plan, from fresh weights where the policy that it would start from has none that can be trained on.

    `start` is the artifact of `plan.warm_start`. A policy that was trained elsewhere is judged and served like any
    other, but its network's weights are not those of training's own architecture.
    """
    if start is None or start.trained_on.get("strategy") != ELSEWHERE:
        return plan
    why = f"policy {start.digest[:8]} was trained elsewhere and has no weights to train on, so training starts afresh"
    return dataclasses.replace(plan, warm_start=None, reasons=(*plan.reasons, why))


def affordable(plan: Plan, is_spent: bool) -> Plan:
    """Return the plan, as one that holds where the gate's error budget is spent: no candidate could pass."""
    if not is_spent or plan.strategy in ("hold", "rollback_and_retrain"):  # a rollback needs no verdict
        return plan
    why = "the gate's error budget is spent, so no candidate could pass: fill it by `flywheel budget --refill REASON`"
    return dataclasses.replace(plan, strategy="hold", sampling="none", reasons=(*plan.reasons, why))


def _key(signal: Signal) -> tuple[str, str, str]:
    return signal.monitor, signal.digest, signal.at_episode


def _open(history: Sequence[Turn], signals: Sequence[Signal], champion: str | None) -> list[Signal]:
    """Leave out what a release has answered, and what was said of a policy that is out of service."""
    answered = {_key(s) for turn in history if turn.release is not None for s in turn.plan.signals}
    return [s for s in signals if s.digest == champion and _key(s) not in answered]


def _carried(history: Sequence[Turn]) -> Ranges:
    return next((turn.plan.parameters for turn in reversed(history) if turn.plan.parameters), {})


def _explore(last: Turn, history: Sequence[Turn], champion: str | None) -> Plan:
    """Try again where the refused plan tried: first from its candidate, then from the champion, then afresh."""
    refusals = 0
    for turn in reversed(history):
        if turn.verdict is None or turn.verdict.outcome == "pass":
            break
        refusals += 1
    assert last.verdict is not None
    failing = ", ".join(c.name for c in last.verdict.checks if c.passed is not True) or "no check named"
    word = "refused" if last.verdict.outcome == "fail" else "could not decide on"
    origin, warm_start = {
        1: ("the candidate", last.verdict.digest),
        2: ("the policy in service", champion),
    }.get(refusals, ("fresh weights", None))
    return dataclasses.replace(
        last.plan,
        strategy="increase_exploration",
        reasons=(
            f"the gate {word} the last candidate ({failing})",
            f"attempt {refusals + 1} starts from {origin if warm_start else 'fresh weights'}",
        ),
        warm_start=warm_start,
        exploration=min(MOST_EXPLORATION, max(1.0, last.plan.exploration) * GROWTH),
    )


def _degraded(
    signals: Sequence[Signal], ranges: Ranges, champion: str, previous: str | None, barred: frozenset[str]
) -> Plan:
    strategy: Literal["rollback_and_retrain", "retrain_prioritize_recent"]
    if previous is not None and previous != champion and previous not in barred:
        strategy, warm_start = "rollback_and_retrain", previous
        why = f"policy {previous[:8]} served before it, and no alarm was ever about it"
    else:
        strategy, warm_start = "retrain_prioritize_recent", champion
        why = "there is no earlier policy to go back to" if previous is None else "the earlier one failed itself"
    return Plan(
        strategy=strategy,
        reasons=(*_told(signals), "nothing says that the world changed", why),
        signals=tuple(signals),
        sampling="recent",
        parameters=ranges,
        warm_start=warm_start,
    )


def _shifted(
    signals: Sequence[Signal],
    calibration: Calibration | None,
    config: AnalyzeConfig,
    ranges: Ranges,
    champion: str,
    moved: Sequence[str],
    obstacle: str,
) -> Plan:
    plan = Plan(
        strategy="retrain_prioritize_recent",
        reasons=(),
        signals=tuple(signals),
        sampling="recent",
        parameters=ranges,
        warm_start=champion,
    )
    kinds = {s.kind for s in signals}
    if "reward_hacking" in kinds and "degradation" not in kinds:
        why = "training for this reward would teach more of it: look at it first"
        return dataclasses.replace(plan, strategy="hold", reasons=(*_told(signals), why), sampling="none")
    if calibration is not None and _believed(calibration, config):
        reasons = [*_told(signals), _measured(calibration, moved)]
        if not moved:
            return dataclasses.replace(plan, strategy="hold", reasons=tuple(reasons), sampling="none")
        if calibration.not_identified:
            reasons.append(f"production can't tell apart {', '.join(calibration.not_identified)}")
        return dataclasses.replace(plan, reasons=tuple(reasons), parameters=training_ranges(calibration, config.widen))
    if calibration is None:
        why = f"the simulator was not calibrated: {obstacle or 'no episode shows the changed world yet'}"
    else:
        what = "residual" if calibration.method == "transitions" else "distance between whole episodes' statistics"
        why = f"no parameter explains the change: the best fit removes {calibration.explained:.0%} of the {what}"
    if any(s.kind == "degradation" for s in signals):
        last = "the policy fails, so it trains on in the worlds known so far"
        return dataclasses.replace(plan, reasons=(*_told(signals), why, last))
    return dataclasses.replace(
        plan,
        strategy="hold",
        reasons=(
            *_told(signals),
            why,
            "the policy still does its work, and training in the worlds known so far would not help",
        ),
        sampling="none",
    )


def _believed(calibration: Calibration, config: AnalyzeConfig) -> bool:
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


def _moved(calibration: Calibration, trained: Ranges, nominal: Parameters) -> tuple[str, ...]:
    """Name the parameters whose interval lies outside the worlds that the policies in service were trained in."""
    trained = {**{name: (value, value) for name, value in nominal.items()}, **trained}
    names = []
    for name, (low, high) in calibration.intervals.items():
        slack = 0.01 * abs(calibration.values[name])  # a change of less than 1 % is none
        if low > trained[name][1] + slack or high < trained[name][0] - slack:
            names.append(name)
    return tuple(names)


def _told(signals: Sequence[Signal]) -> list[str]:
    what = {"shift_detected": "the world changed", "degradation": "outcomes got worse"}
    what["reward_hacking"] = "the return rose while episodes went off"
    return [f"{what[s.kind]} ({s.monitor} monitor, evidence {s.value:,.0f} of {s.threshold:,.0f})" for s in signals]


def _measured(calibration: Calibration, moved: Sequence[str]) -> str:
    if not moved:
        return f"the worlds trained in so far explain production ({calibration.explained:.0%})"
    told = []
    for name in moved:
        low, high = calibration.intervals[name]
        told.append(f"{name} is {calibration.values[name]:.3g} ({low:.3g} to {high:.3g})")
    return ", ".join(told)
