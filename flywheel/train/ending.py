"""When a round of training is over, whether its candidate deserves a verdict, and what it came of."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from flywheel.config import TrainConfig
from flywheel.records import Plan, Probe, Progress

RISE = 0.01
"""Share of the range of returns by which a return must be higher than the best so far to count as higher."""


@dataclass(frozen=True, slots=True)
class Climb:
    """How far a round goes that is for another reward: there a policy that never fails may still be a poor one."""

    needed: float
    """Mean return at which it is over."""
    rise: float
    """By how much a return must be higher than the best so far to count as higher."""
    patience: int
    """Steps without a higher one, after a first good policy, in which it is over too."""


class Kept:
    """How the best policy on a round's way was probed, and after how many steps; none yet, as it is made."""

    probe: Probe | None = None
    num_steps: int = 0
    last: Probe | None = None
    """The last probe that no failure broke off: in the end that of the policy which the round ends with."""


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


def is_whole(probe: Probe, config: TrainConfig) -> bool:
    """Say whether no failure broke a probe off, so that it saw all edge cases as often as it may."""
    return probe.num_episodes >= config.probe_episodes


def beats(probe: Probe, rival: Probe) -> bool:
    """Say whether a candidate did strictly better than the policy in service: fewer failures, else a higher return.

    A probe that was broken off showed too many failures for that.
    """
    if probe.num_episodes < rival.num_episodes:
        return False

    return (_failures(probe), -probe.mean_return) < (_failures(rival), -rival.mean_return)


def _failures(probe: Probe) -> int:
    return probe.num_failed + len(probe.edge_failed)


def _rank(probe: Probe) -> tuple[int, int]:
    """Return what is lower for the better of two policies: whose probe went further, or else failed less often.

    One that always fails got nowhere, though a probe that breaks counts as that in all of its episodes.
    """
    got = probe.num_episodes if probe.num_failed < probe.num_episodes else 0
    return -got, _failures(probe)


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
    needed: float = -math.inf,
) -> bool:
    """Say whether to stop training: a good probe (that beats `rival`, if there is one), or no hope, or no steps left.

    `best` is the highest return an episode can have: a rival that always reaches it can't be beaten. Without a rival a
    good probe has to have the mean return that is `needed`, too.
    """
    perfect = rival is not None and not rival.num_failed and not rival.edge_failed and rival.mean_return >= best
    if perfect or progress.num_steps >= most_steps(plan, rival, config):
        return True
    if progress.num_steps < config.min_steps or not is_good(probe, config):
        return False
    if rival is not None:
        return beats(probe, rival)
    return probe.mean_return >= needed


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
    kept: Kept = field(default_factory=Kept)

    @property
    def needed(self) -> float:
        """The mean return that a good policy has to have, -inf where none is asked for."""
        return -math.inf if self.climb is None else self.climb.needed

    def is_over(self, progress: Progress, probe: Probe) -> bool:
        """Say whether to stop training: as `is_over`, or as worlds may not give what is needed of another reward."""
        is_stalled = (
            self.climb is not None
            and self.kept.probe is not None
            and progress.num_steps - self.kept.num_steps >= self.climb.patience
        )
        return is_stalled or is_over(self.plan, progress, probe, self.rival, self.best, self.config, self.needed)

    def is_worth_keeping(self, progress: Progress, probe: Probe) -> bool:
        """Say whether the policy is the best one so far: those after it may be worse, up to the round's last step.

        That is the good one with the highest return where a round climbs, or else the one that fails least often:
        where edge cases fail in every probe, all of them are broken off, and the first episodes have to tell.
        """
        if self.rival is not None or progress.num_steps < self.config.min_steps:
            return False
        before = self.kept.probe
        if self.climb is None:
            return before is None or _rank(probe) < _rank(before)
        is_higher = before is None or probe.mean_return > before.mean_return + self.climb.rise
        return is_good(probe, self.config) and is_higher

    def whole(self, probe: Probe) -> Probe:
        """Return a probe that no failure broke off; by the last one the policy at the round's end is compared."""
        self.kept.last = probe
        return probe

    def is_in_doubt(self, probe: Probe) -> bool:
        """Say whether the one that was kept has to be looked at whole, to be compared with the one at the end."""
        kept = self.kept.probe
        return kept is not None and not is_whole(kept, self.config) and not is_good(probe, self.config)

    def keep(self, progress: Progress, probe: Probe) -> None:
        """Take the policy for the best one so far."""
        self.kept.probe, self.kept.num_steps = probe, progress.num_steps

    def is_lost_again(self, probe: Probe) -> bool:
        """Say whether the policy at the round's end is worse than one that was kept."""
        before, is_good_now = self.kept.probe, is_good(probe, self.config)
        if before is None:
            return False
        if self.climb is None:
            return not is_good_now and _failures(before) < _failures(probe)
        return not (is_good_now and probe.mean_return >= before.mean_return)


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
