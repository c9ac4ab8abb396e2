"""What the turns so far mean for the next one: what is still open, what was refused, and what was done about it."""

from __future__ import annotations

from collections.abc import Sequence

from flywheel.facts import DAY_S, Decision, Past, Ranges, cause_of, decision_of
from flywheel.records import Correction, Signal, Turn

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
    memory = Memory()
    for turn in history:
        memory.add(turn)
    return memory.past(champion, now)


class Memory:
    """What turns say to the rules, read once each, in order: so that a whole journal is recalled turn by turn."""

    def __init__(self) -> None:
        """Begin before the first turn."""
        self._last: Turn | None = None
        self._refusals = self._incident = self._rollbacks = 0
        self._parameters: Ranges = {}
        self._released: Ranges = {}
        self._corrected: Correction | None = None
        self._champions, self._accused = set[str](), set[str]()
        self._trained = list[float]()
        self._acted, self._is_holding = ("", 0.0), False

    def add(self, turn: Turn) -> None:
        """Take in the next turn."""
        decision = decision_of(turn)
        self._last, verdict = turn, turn.verdict
        self._refusals = 0 if verdict is None or verdict.outcome == "pass" else self._refusals + 1
        self._parameters = turn.plan.parameters or self._parameters
        if turn.release is not None:
            self._released = turn.plan.parameters or self._released
            self._corrected = turn.plan.correction
            self._champions.add(turn.release.digest)
        self._accused |= {signal.digest for signal in turn.plan.signals}
        self._open(turn)
        if decision is not None:
            self._act(turn, decision)
        if (at := _trained_at(turn, decision)) is not None:
            self._trained.append(at)

    def _open(self, turn: Turn) -> None:
        """Count the number of the turn with which the open incident began (0: none is open), and rollbacks since then.

        A turn that was stopped, or that holds for its alarms, shows nothing that could end an incident by itself.
        """
        seen = turn.evidence
        if turn.plan.signals:
            self._incident = self._incident or turn.number
        self._rollbacks += turn.plan.strategy == "rollback_and_retrain" or _went_back(turn)
        if not seen.get("recovered") and (seen.get("before") is not None or seen.get("signals")):
            self._incident = self._incident or turn.number
        elif seen.get("recovered") or not (seen.get("stopped") or _is_waiting(turn)):
            self._incident = self._rollbacks = 0

    def _act(self, turn: Turn, decision: Decision) -> None:
        """Keep for what cause, and when, a plan for alarms last ended in a release or was to hold; ("", 0) if never.

        Of holds one after another for one cause the first one counts, so that holding does not make itself last.
        """
        if not decision.facts.signals or {COOLING, HELD} & set(decision.by):
            return
        its, holds = cause_of(decision.facts), decision.plan.strategy == "hold"
        if turn.release is not None:
            self._acted = its, turn.release.released_at
        elif holds and not (self._is_holding and its == self._acted[0]):
            self._acted = its, decision.facts.now
        self._is_holding = holds

    def past(self, champion: str | None, now: float) -> Past:
        """Return what the turns so far say.

        Args:
            champion: digest in service.
            now: UTC epoch seconds.
        """
        last = self._last
        verdict = None if last is None else last.verdict
        return Past(
            plan=None if last is None else last.plan,
            candidate=None if verdict is None else verdict.digest,
            outcome=None if verdict is None else verdict.outcome,
            failing=() if verdict is None else tuple(c.name for c in verdict.checks if c.passed is not True),
            refusals=self._refusals,
            parameters=self._parameters,
            released=self._released,
            correction=None if last is None else last.plan.correction,
            corrected=self._corrected,
            is_champion_known=champion in self._champions,
            accused=tuple(sorted(self._accused)),
            incident=self._incident,
            rollbacks=self._rollbacks,
            rounds=sum(now - DAY_S < at <= now for at in self._trained),
            cause=self._acted[0],
            acted_at=self._acted[1],
        )


def _went_back(turn: Turn) -> bool:
    """Say whether a turn released without a candidate, as only a rollback does: its plan may have become a hold."""
    return turn.release is not None and turn.artifact is None


def _is_waiting(turn: Turn) -> bool:
    return turn.plan.strategy == "hold" and bool(turn.plan.signals)


def _trained_at(turn: Turn, decision: Decision | None) -> float | None:
    """Return when a turn's round of training began, as far as the journal knows; None where it had none."""
    if decision is not None:
        return None if decision.plan.strategy == "hold" else decision.facts.now
    return None if turn.verdict is None else turn.verdict.judged_at
