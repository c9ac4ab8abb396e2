"""Turns as JSON has them for the page: how each was trained, judged and released, and its plan also in words. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flywheel.page.shapes import plain, story_line, verdict
from flywheel.records import Plan, Told, Turn
from flywheel.replaying import OFF_POLICY
from flywheel.tapes import short


def curve(told: Sequence[tuple[int, Told]], number: int) -> dict[str, list[float | None]]:
    """Return a turn's training: environment steps, mean return, and the share of its probe's episodes that failed."""
    found = [line.numbers for _, line in told if line.turn == number and line.stage == "train" and line.numbers]
    steps = [numbers.get("steps", 0.0) for numbers in found]
    begin = max((i for i in range(1, len(steps)) if steps[i] < steps[i - 1]), default=0)  # a round that began again
    found, steps = found[begin:], steps[begin:]
    return {
        "steps": [*steps],
        "return": [numbers.get("return") for numbers in found],
        "failed": [n["failed"] / n["probed"] if n.get("probed") else None for n in found],
    }


def listed_turn(each: Turn, is_over: bool) -> dict[str, Any]:
    """Return a turn as a list shows it."""
    artifact, verdict = each.artifact, each.verdict
    digest = artifact.digest if artifact is not None else verdict.digest if verdict is not None else None
    evidence = each.evidence
    return {
        "number": each.number,
        "over": is_over,
        "strategy": each.plan.strategy,
        "reasons": list(each.plan.reasons),
        "digest": digest,
        "outcome": verdict.outcome if verdict is not None else None,
        "num_trials": verdict.num_simulations if verdict is not None else 0,
        "judged_at": verdict.judged_at if verdict is not None else None,
        "release": plain(each.release),
        "released": each.is_released,
        "rolled_back": each.release is not None and not each.is_released,
        "seconds": dict(evidence.get("seconds", {})),
        "episodes": evidence.get("episodes", 0),
        "mean_return": plain(evidence.get("mean_return")),
        "recovered": bool(evidence.get("recovered")),
        "num_signals": len(evidence.get("signals", ())),
    }


def whole_turn(each: Turn, is_over: bool, told: Sequence[tuple[int, Told]]) -> dict[str, Any]:
    """Return a turn with its plan, its training, its verdict and what production said after."""
    return {
        **listed_turn(each, is_over),
        "plan": plan(each),
        "curve": curve(told, each.number),
        "verdict": None if each.verdict is None else verdict(each.verdict),
        "evidence": plain({k: v for k, v in each.evidence.items() if k != "seconds"}),
        "story": [story_line(end, line) for end, line in told if line.turn == each.number and not line.passing],
    }


def plan(each: Turn) -> dict[str, Any]:
    """Return a turn's plan, with what its worlds correct and what its round learns from in words, "" for none."""
    facts = each.decision.get("facts")
    algorithm = str(facts.get("algorithm", "")) if isinstance(facts, Mapping) else ""
    return {
        **plain(each.plan),
        "corrected": "" if each.plan.correction is None else f"{each.plan.correction}",
        "learns_from": learnt(each.plan, algorithm),
    }


def learnt(plan: Plan, algorithm: str) -> str:
    """Return in words what steps a round learns from, "" where it is none, or where nobody said how a plan samples.

    `algorithm` is what trains, "" where it isn't known: only some learn from what the store holds.
    """
    if plan.strategy == "hold" or plan.sampling == "none":
        return ""
    if algorithm and algorithm not in OFF_POLICY:
        return f"simulation alone, as {algorithm.upper()} learns from no stored steps"
    if plan.sampling == "uniform":
        found = "simulation, and all that production showed"
    elif plan.sampling == "recent":
        found = "simulation, and what production showed of late"
    elif plan.sampling == "failed":
        found = "simulation, and what production showed, its failures more often"
    elif plan.correction is not None:
        found = "corrected simulation, and what production showed since the change"
    else:
        found = "what production showed since the change alone, as no simulation does what production does"
    if plan.policies:
        found += f" (of {', '.join(short(digest) for digest in plan.policies)} alone)"
    names = " or ".join(each.upper() for each in OFF_POLICY)
    return found if algorithm else f"{found} (if {names} trains; others learn from simulation alone)"
