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
        """Climb to a mean return of `needed`, or until `patience` steps brought none that is good and `rise` better."""
        self.needed, self._rise, self._patience = needed, rise, patience
        self.best, self._best_at = -math.inf, 0

    def is_higher(self, mean_return: float) -> bool:
        """Say whether a good policy's return is higher than that of every good one before."""
        return mean_return > self.best + self._rise

    def hold(self, num_steps: int, mean_return: float) -> None:
        """Take a good policy's return for the highest one."""
        self.best, self._best_at = mean_return, num_steps

    def is_stalled(self, num_steps: int) -> bool:
        """Say whether there was a good policy, and none any more that is better: worlds may not give what is needed."""
        return self.best > -math.inf and num_steps - self._best_at >= self._patience


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
    good probe has to be at the end of the `climb`, too, if there is one; a climb that is stalled has its candidate.
    """
    perfect = rival is not None and not rival.num_failed and not rival.edge_failed and rival.mean_return >= best
    is_stalled = climb is not None and climb.is_stalled(progress.num_steps)
    if perfect or is_stalled or progress.num_steps >= most_steps(plan, rival, config):
        return True
    if progress.num_steps < config.min_steps or not is_good(probe, config):
        return False
    if rival is not None:
        return beats(probe, rival)
    return climb is None or probe.mean_return >= climb.needed


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

    @property
    def best_so_far(self) -> float:
        """The mean return of the policy that was kept, -inf where none was."""
        return -math.inf if self.climb is None else self.climb.best

    def is_worth_keeping(self, progress: Progress, probe: Probe) -> bool:
        """Say whether the policy is the best of a climb so far: those after it may fail, and never be good again."""
        if self.climb is None or progress.num_steps < self.config.min_steps:
            return False
        return is_good(probe, self.config) and self.climb.is_higher(probe.mean_return)

    def keep(self, progress: Progress, probe: Probe) -> None:
        """Take the policy for the best of the climb so far."""
        assert self.climb is not None
        self.climb.hold(progress.num_steps, probe.mean_return)

    def is_lost_again(self, probe: Probe) -> bool:
        """Say whether the policy at the round's end is worse than one that was kept."""
        return self.best_so_far > -math.inf and not (
            is_good(probe, self.config) and probe.mean_return >= self.best_so_far
        )


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
