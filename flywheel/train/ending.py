"""When a round of training is over, whether its candidate deserves a verdict, and what it came of."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from flywheel.config import TrainConfig
from flywheel.records import Plan, Probe, Progress

RISE = 0.01
"""Share of the range of returns by which a return must be higher than the best so far to count as higher."""


class Climb:
    """How far a round has come that is for another reward: there a policy that never fails may still be a poor one."""

    def __init__(self, needed: float, rise: float, patience: int) -> None:
        """Climb to a mean return of `needed`, or until `patience` steps brought none that is higher by `rise`."""
        self.needed, self._rise, self._patience = needed, rise, patience
        self._best, self._best_at = -math.inf, 0

    def is_up(self, num_steps: int, mean_return: float) -> bool:
        """Say whether a probe's return is high enough, or rises no more: what is needed may not be had in these worlds.

        Every probe of a round is to be asked for, as one that fails shows, too, how high the return can be.
        """
        if mean_return > self._best + self._rise:
            self._best, self._best_at = mean_return, num_steps
        return mean_return >= self.needed or num_steps - self._best_at >= self._patience


def is_quiet(plan: Plan) -> bool:
    """Say whether a round's candidate has to beat the policy in service: nothing is wrong that it has to put right.

    Something is where production raised an alarm, and where it pays less than before though its reward is followed.
    """
    return not plan.signals and not (plan.sampling == "production" and _is_for_another(plan))


def _is_for_another(plan: Plan) -> bool:
    """Say whether a plan's worlds give another reward than the task's own."""
    return plan.correction is not None and plan.correction.reward is not None


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
    plan: Plan,
    progress: Progress,
    probe: Probe,
    rival: Probe | None,
    best: float,
    config: TrainConfig,
    climb: Climb | None = None,
) -> bool:
    """Say whether to stop training: a good probe (that beats `rival`, if there is one), or no hope, or no steps left.

    `best` is the highest return an episode can have: a rival that always reaches it can't be beaten. Without a rival a
    good probe has to be at the end of the `climb`, too, if there is one.
    """
    is_up = climb is None or climb.is_up(progress.num_steps, probe.mean_return)
    perfect = rival is not None and not rival.num_failed and not rival.edge_failed and rival.mean_return >= best
    if perfect or progress.num_steps >= most_steps(plan, rival, config):
        return True
    if progress.num_steps < config.min_steps or not is_good(probe, config):
        return False
    return is_up if rival is None else beats(probe, rival)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How one round ends."""

    plan: Plan
    rival: Probe | None
    best: float
    """The highest return an episode can have."""
    config: TrainConfig
    climb: Climb | None

    def is_over(self, progress: Progress, probe: Probe) -> bool:
        """Say whether to stop training, as `is_over`."""
        return is_over(self.plan, progress, probe, self.rival, self.best, self.config, self.climb)


def ending(
    plan: Plan,
    rival: Probe | None,
    config: TrainConfig,
    return_range: tuple[float, float] | None,
    before: float | None,
    share: float,
) -> Ending:
    """Return how a round ends.

    One that is for another reward climbs to what counts as good again: the mean return `before` the change, less what
    may be missing, 1 - `share` of the range of returns (None: of the size of `before`). Where `before` isn't known it
    goes on while the return rises.
    """
    low, best = return_range or (math.nan, math.inf)
    width = best - low if return_range else abs(before or 0.0)
    needed = math.inf if before is None else before - (1.0 - share) * width
    climb = Climb(needed, RISE * width, config.quiet_steps) if rival is None and _is_for_another(plan) else None
    return Ending(plan=plan, rival=rival, best=best, config=config, climb=climb)
