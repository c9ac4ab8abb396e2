"""Where every row, every episode and every late reward went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(slots=True)
class Counts:
    """What became of all that came in since the observer started; what is open is held by the assembler.

    These hold at any time, whatever comes in whatever order:

        received = kept + duplicates + conflicts + stray + truncated + rows of open episodes
        begun = whole + lost + void + open episodes
        rewards = rewards_kept + rewards_same + rewards_conflicts + unmatched

    `evicted` are some of whole, lost and void. `quarantined`, `late`, `passed`, `silent` and `unjudged` say of episodes
    that are counted above (or in `uploaded`) what they were not used for.
    """

    received: int = 0
    """rows that came in"""
    kept: int = 0
    """rows that are in a closed episode"""
    duplicates: int = 0
    """rows that came again with the same content, or for an episode that was over"""
    conflicts: int = 0
    """rows that came again with other content, and were not kept"""
    stray: int = 0
    """rows that no episode could use: past the end, or of an opening that left no episode"""
    truncated: int = 0
    """rows of lost episodes behind the first step that lacks: the episode is cut there"""
    begun: int = 0
    """openings of an episode"""
    whole: int = 0
    lost: int = 0
    void: int = 0
    """openings without two steps in a row from the start, or whose episode the store had already"""
    evicted: int = 0
    """openings that were given out before their timeout, since open episodes filled `observe.open_mib`: whole ones
    whole, the others as lost or void. Clients send those that go on again at their end"""
    quarantined: int = 0
    """episodes whose id the store held with other content; they count nowhere else than in whole or lost"""
    uploaded: int = 0
    """episodes that came whole, from clients that act by themselves; they count nowhere else but in late"""
    late: int = 0
    """uploaded episodes that are kept and learnt from and that no monitor and no canary reads: later ones had been read
    when they were first heard of, or nothing was heard of them until they were over"""
    passed: int = 0
    """places of running episodes that were given up, since more outcomes than `observe.max_waiting` waited for their
    end; they are kept and learnt from, and no monitor and no canary reads them"""
    silent: int = 0
    """places that were given up, because nothing was heard for the timeout of an episode that a client acts in"""
    unjudged: int = 0
    """episodes on which the task's `failed` raised an error; they count as failed, which is the safe side"""
    rewards: int = 0
    """late rewards that were told"""
    rewards_kept: int = 0
    """late rewards that are joined to a step"""
    rewards_same: int = 0
    """late rewards that were known already"""
    rewards_conflicts: int = 0
    """late rewards that were known otherwise, and are set aside"""
    unmatched: int = 0
    """late rewards of steps that nobody knows"""
    belated: int = 0
    """times that late rewards changed an episode which the monitors had read without them"""
    defaulted: int = 0
    """rewards that weren't known when their window was over, and were read as `observe.reward_default`"""

    def tell(self, answers: Iterable[str]) -> None:
        """Count late rewards by what became of them."""
        found = Counter(answers)
        self.rewards += found.total()
        self.rewards_kept += found["stored"]
        self.rewards_same += found["same"]
        self.rewards_conflicts += found["conflict"]
        self.unmatched += found["unknown"]
