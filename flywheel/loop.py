"""The loop on one page: analyze, train, gate, deploy, observe; which process does the work is cluster.py's affair."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Protocol

from flywheel.records import Artifact, Plan, Probe, Progress, Release, Turn, Verdict


class Stages(Protocol):
    """What the loop asks of the rooms."""

    def begun(self, number: int) -> Turn | None:
        """Return this turn as far as an earlier start had brought it, None if it had not begun."""

    def keep(self, turn: Turn) -> Turn:
        """Return the turn so far, kept durably for a start that goes on with it."""

    def analyze(self, number: int) -> Turn:
        """Begin a turn: decide what to do from the journal, the open signals and what production showed."""

    def begin(self, plan: Plan) -> Probe | None:
        """Set the trainer on the plan; in quiet times return the probe of the policy in service."""

    def advance(self, plan: Plan) -> tuple[Progress, Probe]:
        """Train one iteration, and try its weights on fresh episodes of the gate, in the plan's worlds."""

    def enough(self, plan: Plan, progress: Progress, probe: Probe, rival: Probe | None) -> bool:
        """Say whether this round's training is over."""

    def export(self, plan: Plan, progress: Progress, probe: Probe, rival: Probe | None) -> Artifact | None:
        """Write the candidate as an artifact, if it deserves a verdict; a quiet one must beat the policy in service."""

    def judge(self, plan: Plan, artifact: Artifact) -> Verdict:
        """Let the gate judge; the verdict comes back signed and recorded."""

    def rollback(self, plan: Plan) -> Release:
        """Put the previous policy back into service and condemn the present one."""

    def release(self, verdict: Verdict) -> Release | None:
        """Put a judged digest into service, None if it did not prove itself there; raises unless its verdict passed."""

    def observe(self, plan: Plan) -> Mapping[str, Any]:
        """Wait for a signal, a recovery, enough quiet episodes, or a person's stop; return what was seen."""

    def record(self, turn: Turn) -> None:
        """Write the whole turn to the journal, durably."""


def candidate(stages: Stages, plan: Plan) -> Artifact | None:
    """Train by the plan, alternating iterations and probes; return what deserves a verdict, or None."""
    rival = stages.begin(plan)
    while True:
        progress, probe = stages.advance(plan)
        if stages.enough(plan, progress, probe, rival):
            return stages.export(plan, progress, probe, rival)


def turns(stages: Stages, numbers: Iterable[int], forever: bool = False) -> Iterator[Turn]:
    """Turn the wheel once for each number, going on inside a turn; a stop ends it, so does a recovery."""
    for number in numbers:
        turn = stages.begun(number) or stages.keep(stages.analyze(number))
        if turn.plan.strategy == "rollback_and_retrain" and turn.release is None:
            turn = stages.keep(replace(turn, release=stages.rollback(turn.plan)))
        if turn.plan.strategy != "hold" and turn.artifact is None:
            turn = stages.keep(replace(turn, artifact=candidate(stages, turn.plan)))
            if turn.artifact is None:
                reasons = (*turn.plan.reasons, "no candidate was worth a verdict")
                turn = stages.keep(replace(turn, plan=replace(turn.plan, strategy="hold", reasons=reasons)))
        if turn.artifact is not None and turn.verdict is None:
            turn = stages.keep(replace(turn, verdict=stages.judge(turn.plan, turn.artifact)))
        if turn.verdict is not None and turn.verdict.outcome == "pass" and not turn.is_released:
            turn = stages.keep(replace(turn, release=stages.release(turn.verdict) or turn.release))
        turn = replace(turn, evidence=stages.observe(turn.plan))
        stages.record(turn)
        yield turn
        if turn.evidence["stopped"] or (turn.evidence["recovered"] and not forever):
            return
