"""What rounds and turns say in numbers. Pure: records in, finite numbers by name out."""

from __future__ import annotations

import math
from collections.abc import Mapping

from flywheel.records import Probe, Progress, Turn


def of_round(progress: Progress, probe: Probe) -> dict[str, float]:
    """Return the numbers of a round of training so far, and of the gate's probe of what it has."""
    return _finite(
        {
            "train/return": progress.mean_return,
            "train/steps_per_second": progress.steps_per_s or None,
            "train/seconds_left": progress.left_s,
            "probe/failure_rate": probe.num_failed / max(1, probe.num_episodes),
            "probe/return": probe.mean_return,
            "probe/edge_cases_failed": len(probe.edge_failed),
            **{f"learner/{name}": value for name, value in progress.losses.items()},
        }
    )


def of_turn(turn: Turn) -> dict[str, float]:
    """Return what the gate said in a turn, check by check, what production did after it, and what took how long."""
    verdict, evidence, found = turn.verdict, turn.evidence, {}
    if verdict is not None:
        found = {"gate/passed": float(verdict.outcome == "pass"), "gate/simulations": verdict.num_simulations}
        for check in verdict.checks:
            found |= {f"gate/{check.name}": check.value, f"gate/{check.name}_bound": check.bound}
    return _finite(
        {
            **found,
            "production/return": evidence.get("mean_return"),
            "production/failure_rate": evidence.get("failure_rate"),
            "production/episodes": evidence.get("episodes"),
            "production/alarms": len(evidence.get("signals", ())),
            **{f"seconds/{stage}": seconds for stage, seconds in evidence.get("seconds", {}).items()},
        }
    )


def _finite(numbers: Mapping[str, float | None]) -> dict[str, float]:
    return {name: float(value) for name, value in numbers.items() if value is not None and math.isfinite(value)}
