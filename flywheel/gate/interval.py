"""Worlds drawn from the ranges that calibration leaves open: is a policy fit for what the world may also be?

All other questions are asked at the middle of those ranges. This one is a question more: it can only refuse, so what
passes has the guarantees that it had without. How often a policy fails over the ranges, each world in them as likely as
any other, is how often it will fail in production as far as anybody knows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from flywheel.draws import draws
from flywheel.gate.sequential import bounds, log_evidence
from flywheel.gate.trials import Crew, Situation, world_seed
from flywheel.policy import Policy
from flywheel.records import Check, Parameters, Trial
from flywheel.tapes import INTERVAL
from flywheel.task import Limits

Ranges = Mapping[str, tuple[float, float]]
LOOKS = (1, 3)
"""Worlds after each look, in units of `gate.num_sims`: more where more than the limit failed, and not surely."""


def open_ranges(ranges: Ranges) -> Ranges:
    """Return the ranges that are wider than a point."""
    return {name: (low, high) for name, (low, high) in ranges.items() if high > low}


def try_interval(
    crew: Crew,
    policy: Policy,
    ranges: Ranges,
    parameters: Parameters,
    limits: Limits,
    *,
    num: int,
    error: float,
    seed: int,
    now: float,
) -> tuple[Check, tuple[Trial, ...]]:
    """Return whether surely more episodes fail than may, in worlds uniform in the ranges, and their trials.

    A policy that keeps the limit there is refused with a probability of at most `error`.
    """
    trials: tuple[Trial, ...] = ()
    limit, is_failed = limits.max_failure_rate, False
    for look in LOOKS:
        some = situations(ranges, parameters, seed, len(trials), look * num)
        trials += crew.play(policy, some, now).trials
        k = sum(trial.failed for trial in trials)
        is_failed = float(log_evidence(k, len(trials), limit, "above")) >= math.log(1.0 / error)
        if is_failed or k <= limit * len(trials):
            break
    told = ", ".join(f"{name} {low:.3g} to {high:.3g}" for name, (low, high) in open_ranges(ranges).items())
    note = f"{k} of {len(trials):,} worlds failed that are drawn from {told}"
    value, interval = k / len(trials), bounds(k, len(trials), error)
    return Check(name=INTERVAL, value=value, interval=interval, bound=limit, passed=not is_failed, note=note), trials


def situations(ranges: Ranges, parameters: Parameters, root: int, first: int, stop: int) -> Sequence[Situation]:
    """Return worlds number `first` to `stop` - 1, uniform in the ranges, and at `parameters` in all others."""
    some = open_ranges(ranges)
    low, high = (np.array([each[end] for each in some.values()]) for end in (0, 1))
    seeds = [world_seed(root, INTERVAL, index) for index in range(first, stop)]
    values = low + draws(seeds, np.zeros(len(seeds), np.int64), len(some)) * (high - low)
    return [
        Situation(seed=each, scenario=INTERVAL, parameters={**parameters, **dict(zip(some, row.tolist(), strict=True))})
        for each, row in zip(seeds, values, strict=True)
    ]
