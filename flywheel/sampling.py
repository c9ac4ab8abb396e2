"""What is learnt from: a rule on stored episodes (or on single steps), and what is drawn by it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flywheel.errors import UsageError
from flywheel.records import Array

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Barred = Mapping[tuple[str, str], str]
"""What nothing is learnt from: (one of KINDS, its name) → why."""
KINDS = ("policy", "origin", "episode")
"""What can be excluded from training: a policy's actions, all of an origin, one episode."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How often each stored transition is drawn; factors multiply, and the default draws all alike."""

    half_life: float = 0.0
    """Episodes after which a transition is drawn half as often; 0: age does not count."""
    aged: tuple[str, ...] = ()
    """Sources whose age counts, in their own episodes; the others' doesn't then. (): all of them, in everybody's."""
    failed: float = 1.0
    """Factor on the transitions of failed episodes."""
    policies: tuple[str, ...] = ()
    """Digests whose actions alone are learnt from; () for any policy's."""
    quotas: Mapping[str, float] = field(default_factory=dict)
    """Share of the draws for each source (an episode's origin), in proportion to each other; {}: as many as there are.
    A source that has nothing leaves its share to the others."""
    since: float = 0.0
    """When an episode must have begun to be drawn from (UTC epoch seconds): where the world changed, older ones teach
    what was right before; 0: whenever it was."""
    alpha: float = 0.0
    """Exponent on a transition's priority, its last TD error (Schaul et al. 2016, equation 1); 0: not prioritized.
    Then priorities stand in for age, failure and quotas, and what is excluded has none."""
    beta: float = 0.4
    """Exponent of the importance weights that make up for priorities, 1 in full."""

    def __post_init__(self) -> None:
        """Raise UsageError for what can be no weight."""
        for name in ("half_life", "failed", "since", "alpha", "beta"):
            value = getattr(self, name)
            if not (np.isfinite(value) and value >= 0.0):
                raise UsageError(f"Sampling's {name} is {value}, and must be a number of at least 0: give another one.")
        if any(not (np.isfinite(share) and share >= 0.0) for share in self.quotas.values()):
            raise UsageError(f"Sampling's quotas {dict(self.quotas)} hold one below 0: give each at least 0.")
        if self.alpha and (self.half_life or self.failed != 1.0 or self.policies or self.quotas or self.since):
            raise UsageError(
                "Sampling by priority (alpha above 0) goes with no half_life, failed, policies, quotas or since, as a "
                "priority already says how often a step is drawn: leave those out, or set alpha to 0."
            )

    def of_runs(self) -> Sampling:
        """Return the rule, for a draw of whole runs; UsageError where it goes by priority, which a step alone has."""
        if self.alpha:
            raise UsageError(
                f"Whole episodes can't be drawn by priority (alpha is {self.alpha}), as a priority is one step's: draw "
                "sequences by it, or set alpha to 0."
            )
        return self


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Provenance:
    """Where N draws stand in a table, whose they are, and how much they count."""

    weights: NDArray[np.float32]
    """float32[N]: importance weights, at most 1; 1 where transitions aren't drawn by priority"""
    rows: Ints
    """int64[N]: where they stand, for `Table.prioritize`; of a stretch, its first step"""
    stamps: Ints
    """int64[N]: what stood there when they were drawn"""
    ages: Ints
    """int64[N]: episodes added since theirs"""
    policies: tuple[str, ...]
    policy: Ints
    """int64[N]: index into `policies`"""
    effective: float
    """Transitions that would say as much if all were drawn equally often (Kish 1965): (sum w)^2 / sum w^2."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch(Provenance):
    """N transitions, drawn with replacement; whole windows of n steps where the table looks n steps ahead."""

    observations: Array
    """dtype[N, *o]"""
    actions: Array
    """dtype[N, *a], raw, as the policy's distribution gave them"""
    rewards: NDArray[np.float32]
    """float32[N]: sum of gamma^k r_k over the window"""
    next_observations: Array
    """dtype[N, *o], at the window's end"""
    discounts: NDArray[np.float32]
    """float32[N]: what the value at the window's end counts: gamma^steps, 0 where the episode terminated there"""
    terminated: NDArray[np.bool_]
    logps: NDArray[np.float32]
    """float32[N]: log probability of the action by the rule that acted"""

    def told(self) -> Mapping[str, Any]:
        """Return what the batch is made of: `share` by policy's digest, mean and oldest `age`, `effective` size."""
        return _told(self, np.ones(len(self.policy)))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sequences(Provenance):
    """N stretches of up to L steps that follow each other, by one policy each; drawn with replacement.

    Steps past a stretch's end repeat its last one, with a reward of 0, and the mask leaves them out.
    """

    observations: Array
    """dtype[N, L + 1, *o]"""
    actions: Array
    """dtype[N, L, *a], raw, as the policy's distribution gave them"""
    rewards: NDArray[np.float32]
    """float32[N, L]"""
    terminated: NDArray[np.bool_]
    """bool[N, L]: the episode terminates with this step"""
    logps: NDArray[np.float32]
    """float32[N, L]: log probability of the action by the rule that acted"""
    mask: NDArray[np.bool_]
    """bool[N, L]: there is a step"""

    def told(self) -> Mapping[str, Any]:
        """As Batch.told; a stretch counts by its steps in the shares."""
        return _told(self, self.mask.sum(axis=1).astype(np.float64))

    def padded(self, length: int) -> Sequences:
        """Return the same stretches in arrays of so many steps, no fewer than there are."""
        more = length - self.mask.shape[1]

        def longer(array: Array, *, is_last: bool) -> Array:
            sizes = [(0, 0), (0, more), *[(0, 0)] * (array.ndim - 2)]
            return np.pad(array, sizes, mode="edge" if is_last else "constant")

        if not more:
            return self
        return replace(
            self,
            observations=longer(self.observations, is_last=True),
            actions=longer(self.actions, is_last=True),
            rewards=longer(self.rewards, is_last=False),
            terminated=longer(self.terminated, is_last=False),
            logps=longer(self.logps, is_last=True),
            mask=longer(self.mask, is_last=False),
        )


def _told(drawn: Provenance, sizes: Floats) -> Mapping[str, Any]:
    """Return what a batch is made of, where float64[N] says how much each part of it counts in the shares."""
    shares = np.bincount(drawn.policy, sizes, minlength=len(drawn.policies)) / (sizes.sum() or 1.0)
    return {
        "share": {name: float(share) for name, share in zip(drawn.policies, shares, strict=True) if share > 0.0},
        "age": float(drawn.ages.mean()) if len(drawn.ages) else 0.0,
        "oldest": int(drawn.ages.max(initial=0)),
        "effective": drawn.effective,
    }
