"""What the turns so far mean for the next one: what is still open, what was refused, and what was done about it."""

from __future__ import annotations

from collections.abc import Sequence

from flywheel.facts import DAY_S, Past, Ranges, cause_of, decision_of
from flywheel.records import Signal, Turn

COOLING = "cooling"
"""Name of the rule that waits: a turn in which it did is no new act for a cause, else it would wait for ever."""
HELD = "held"
"""Name of the rule by which a person holds the wheel."""


def key(signal: Signal) -> tuple[str, str, str]:
    """Return what tells an alarm from others."""
    return signal.monitor, signal.digest, signal.at_episode


def open_signals(history: Sequence[Turn], signals: Sequence[Signal], champion: str | None) -> tuple[Signal, ...]:
    """Return the alarms without those that a release has answered, and those of a policy that is out of service."""
    answered = {key(s) for turn in history if turn.release is not None for s in turn.plan.signals}
    return tuple(s for s in signals if s.digest == champion and key(s) not in answered)


def recall(history: Sequence[Turn], champion: str | None, now: float) -> Past:
    """Return what the journal's turns say to the rules; the same turns and arguments always say the same.

    Args:
        history: all turns so far, in order.
        champion: digest in service.
        now: UTC epoch seconds.
    """
    incident, rollbacks = _incident(history)
    cause, acted_at = _acted(history)
    last = history[-1] if history else None
    verdict = None if last is None else last.verdict
    return Past(
        plan=None if last is None else last.plan,
        candidate=None if verdict is None else verdict.digest,
        outcome=None if verdict is None else verdict.outcome,
        failing=() if verdict is None else tuple(c.name for c in verdict.checks if c.passed is not True),
        refusals=_refusals(history),
        parameters=_carried(history),
        released=_carried([turn for turn in history if turn.release is not None]),
        correction=None if last is None else last.plan.correction,
        corrected=next((turn.plan.correction for turn in reversed(history) if turn.release is not None), None),
        is_champion_known=any(turn.release is not None and turn.release.digest == champion for turn in history),
        accused=tuple(sorted({s.digest for turn in history for s in turn.plan.signals})),
        incident=incident,
        rollbacks=rollbacks,
        rounds=sum(at is not None and now - DAY_S < at <= now for at in map(_trained_at, history)),
        cause=cause,
        acted_at=acted_at,
    )


def _carried(history: Sequence[Turn]) -> Ranges:
    return next((turn.plan.parameters for turn in reversed(history) if turn.plan.parameters), {})


def _refusals(history: Sequence[Turn]) -> int:
    count = 0
    for turn in reversed(history):
        if turn.verdict is None or turn.verdict.outcome == "pass":
            break
        count += 1
    return count


def _incident(history: Sequence[Turn]) -> tuple[int, int]:
    """Return the number of the turn with which the open incident began (0: none is open), and rollbacks since then.

    A turn that was stopped, or that holds for its alarms, shows nothing that could end an incident by itself.
    """
    began = rollbacks = 0
    for turn in history:
        seen = turn.evidence
        if turn.plan.signals:
            began = began or turn.number
        rollbacks += turn.plan.strategy == "rollback_and_retrain" or _went_back(turn)
        if not seen.get("recovered") and (seen.get("before") is not None or seen.get("signals")):
            began = began or turn.number
        elif seen.get("recovered") or not (seen.get("stopped") or _is_waiting(turn)):
            began = rollbacks = 0
    return began, rollbacks


def _went_back(turn: Turn) -> bool:
    """Say whether a turn released without a candidate, as only a rollback does: its plan may have become a hold."""
    return turn.release is not None and turn.artifact is None


def _is_waiting(turn: Turn) -> bool:
    return turn.plan.strategy == "hold" and bool(turn.plan.signals)


def _acted(history: Sequence[Turn]) -> tuple[str, float]:
    """Return for what cause, and when, a plan for alarms last ended in a release or was to hold; ("", 0) if never.

    Of holds one after another for one cause the first one counts, so that holding does not make itself last.
    """
    cause, at = "", 0.0
    for turn in reversed(history):
        decision = decision_of(turn)
        if decision is None or not decision.facts.signals or {COOLING, HELD} & set(decision.by):
            continue
        its, holds = cause_of(decision.facts), decision.plan.strategy == "hold"
        if cause and not (holds and its == cause):
            break
        if turn.release is not None:
            return its, turn.release.released_at
        if holds:
            cause, at = its, decision.facts.now
    return cause, at


def _trained_at(turn: Turn) -> float | None:
    """Return when a turn's round of training began, as far as the journal knows; None where it had none."""
    decision = decision_of(turn)
    if decision is not None:
        return None if decision.plan.strategy == "hold" else decision.facts.now
    return None if turn.verdict is None else turn.verdict.judged_at
