"""How often each stored run of steps is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flywheel.sampling import Floats, Ints, Sampling


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Entries:
    """Columns over E runs of steps that one policy acted in and whose rewards are known; most episodes are one run."""

    age: Ints
    own_age: Ints
    """int64[E]: episodes that were added after the entry's; of all, and of its own source"""
    count: Ints
    """int64[E]: transitions"""
    failed: NDArray[np.bool_]
    policy: Ints
    origin: Ints
    """int64[E]: indices into the table's names of policies and of sources"""
    started_at: Floats
    """float64[E]: when the episode began, UTC epoch seconds"""
    is_out: NDArray[np.bool_]
    """excluded from training"""


def weights_of(rule: Sampling, entries: Entries, policies: Mapping[str, int], origins: Mapping[str, int]) -> Floats:
    """Return how often one transition of each entry is drawn, float64[E], up to a common factor."""
    weights = np.where(entries.is_out, 0.0, 1.0)
    if rule.half_life and len(weights):
        age = entries.age
        if rule.aged:
            counts = np.isin(entries.origin, [origins[name] for name in rule.aged if name in origins])
            age = np.where(counts, entries.own_age, 0)
        weights *= np.exp2(-np.minimum(age / rule.half_life, 1000.0))  # 2**-1000 is still a number
    if rule.failed != 1.0:
        weights[entries.failed] *= rule.failed
    if rule.policies:
        wanted = [policies[name] for name in rule.policies if name in policies]
        weights[~np.isin(entries.policy, wanted)] = 0.0
    if rule.since:
        weights[entries.started_at < rule.since] = 0.0
    if rule.quotas:
        shares = np.zeros(max(origins.values(), default=-1) + 1)
        for name, share in rule.quotas.items():
            if name in origins:
                shares[origins[name]] = share
        held = np.bincount(entries.origin, weights * entries.count, minlength=len(shares))
        weights *= np.divide(shares, held, out=np.zeros_like(shares), where=held > 0)[entries.origin]
    return weights
