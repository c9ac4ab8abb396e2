"""The loop on one page: analyze, train, gate, deploy, observe; which process does the work is cluster.py's affair."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from flywheel.records import Artifact, Plan, Probe, Progress, Release, Turn, Verdict


class Stages(Protocol):
    """What the loop asks of the rooms."""

    def analyze(self) -> Plan:
        """Decide what to do next from the journal, the open signals and what production showed."""

    def begin(self, plan: Plan) -> Probe | None:
        """Set the trainer on the plan; in quiet times return the probe of the policy in service."""

    def advance(self) -> Progress:
        """Train one iteration."""

    def probe(self, plan: Plan, progress: Progress) -> Probe:
        """Try the weights of an iteration on fresh episodes of the gate, in the plan's worlds."""

    def enough(self, plan: Plan, progress: Progress, probe: Probe, rival: Probe | None) -> bool:
        """Say whether this round's training is over."""

    def export(self, plan: Plan, progress: Progress, probe: Probe, rival: Probe | None) -> Artifact | None:
        """Write the candidate as an artifact, if it deserves a verdict; a quiet one must beat the policy in service."""

    def judge(self, plan: Plan, artifact: Artifact) -> Verdict:
        """Let the gate judge; the verdict comes back signed and recorded."""

    def rollback(self, plan: Plan) -> Release:
        """Put the previous policy back into service and condemn the present one."""

    def release(self, verdict: Verdict) -> Release:
        """Put a judged digest into service; raises unless its verdict passed."""

    def observe(self, plan: Plan) -> Mapping[str, Any]:
        """Wait for a signal, a recovery, enough quiet episodes, or a person's stop; return what was seen."""

    def record(self, turn: Turn) -> None:
        """Write the turn to the journal, durably."""


def candidate(stages: Stages, plan: Plan) -> Artifact | None:
    """Train by the plan, alternating iterations and probes; return what deserves a verdict, or None."""
    rival = stages.begin(plan)
    while True:
        progress = stages.advance()
        probe = stages.probe(plan, progress)
        if stages.enough(plan, progress, probe, rival):
            return stages.export(plan, progress, probe, rival)


def turns(stages: Stages, numbers: Iterable[int]) -> Iterator[Turn]:
    """Turn the wheel once for each number; end early when production has recovered from a change."""
    for number in numbers:
        plan, artifact, verdict, release = stages.analyze(), None, None, None
        if plan.strategy == "rollback_and_retrain":
            release = stages.rollback(plan)
        if plan.strategy != "hold":
            artifact = candidate(stages, plan)
            if artifact is None:
                reasons = (*plan.reasons, "no candidate beat the policy in service")
                plan = dataclasses.replace(plan, strategy="hold", reasons=reasons)
        if artifact is not None:
            verdict = stages.judge(plan, artifact)
            if verdict.outcome == "pass":
                release = stages.release(verdict)
        evidence = stages.observe(plan)
        turn = Turn(number=number, plan=plan, artifact=artifact, verdict=verdict, release=release, evidence=evidence)
        stages.record(turn)
        yield turn
        if evidence["recovered"] or evidence["stopped"]:
            return
