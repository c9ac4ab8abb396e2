"""When a round of training is over, whether its candidate deserves a verdict, and what it came of."""

from __future__ import annotations

import dataclasses
from typing import Any

from flywheel.config import TrainConfig
from flywheel.records import Plan, Probe, Progress


def is_good(probe: Probe, config: TrainConfig) -> bool:
    """Say whether a probe shows a policy that the gate will most likely pass."""
    return probe.num_failed <= config.probe_max_failed and not probe.edge_failed


def beats(probe: Probe, rival: Probe) -> bool:
    """Say whether a candidate did strictly better than the policy in service: fewer failures, else a higher return.

    A probe that was broken off showed too many failures for that.
    """
    if probe.num_episodes < rival.num_episodes:
        return False

    def rank(of: Probe) -> tuple[int, float]:
        return of.num_failed + len(of.edge_failed), -of.mean_return

    return rank(probe) < rank(rival)


def most_steps(plan: Plan, rival: Probe | None, config: TrainConfig) -> int:
    """Return the environment steps after which a round gives up: fewer in quiet times, in which there is a rival."""
    return plan.max_steps or (config.max_steps if rival is None else config.quiet_steps)


def is_over(
    plan: Plan, progress: Progress, probe: Probe, rival: Probe | None, best: float, config: TrainConfig
) -> bool:
    """Say whether to stop training: a good probe (that beats `rival`, if there is one), or no hope, or no steps left.

    `best` is the highest return an episode can have: a rival that always reaches it can't be beaten.
    """
    perfect = rival is not None and not rival.num_failed and not rival.edge_failed and rival.mean_return >= best
    if perfect or progress.num_steps >= most_steps(plan, rival, config):
        return True
    return progress.num_steps >= config.min_steps and is_good(probe, config) and (rival is None or beats(probe, rival))


def deserves_verdict(probe: Probe, rival: Probe | None) -> bool:
    """Say whether the gate is asked: always in an incident; in quiet times only for a better policy."""
    return rival is None or beats(probe, rival)


def trained_on(plan: Plan, progress: Progress, seed: int) -> dict[str, Any]:
    """Return what a candidate's manifest says of the round that it came of; `seed` is the run's."""
    found: dict[str, Any] = {
        "strategy": plan.strategy,
        "parameters": {name: list(span) for name, span in plan.parameters.items()},
        "steps": progress.num_steps,
        "seed": seed,
    }
    return found if plan.correction is None else {**found, "correction": dataclasses.asdict(plan.correction)}
