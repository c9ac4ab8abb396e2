"""A challenger's way as people are shown it, by the page and by `flywheel canary`, and what they may say to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flywheel.records import Stage

Word = Literal["drop", "approve", "freeze"]
"""A person's word: roll it back for good, promote it, or give it no more episodes."""
Pair = tuple[int, int]
"""A number of the champion's and one of the challenger's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What outcomes say to one claim: how many times better it explains them than its contrary does."""

    claim: str
    value: float
    """1 is nothing, less speaks against the claim."""
    acts_at: float
    """Where it is acted on; where the claim is false it gets there with a probability of at most 1 / acts_at."""
    then: str
    """What is done there, as a clause."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A time in which a challenger's share of new episodes was the same."""

    begin: float
    end: float | None
    """None for the present one."""
    stage: Stage
    share: float
    """0 in the shadow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """A challenger on its way, or at its end."""

    challenger: str
    champion: str
    state: str
    """shadow, canary and frozen are on the way; promoted, rolled_back, stopped, timed_out and replaced are ends."""
    is_over: bool
    is_urgent: bool
    """True where an open incident condemns the champion, so that it is promoted on less."""
    is_proven: bool
    """True once it is as good as it has to be; it is promoted then, unless a person is asked first."""
    begun_at: float
    changed_at: float
    """When its state or its share was last another."""
    ends_at: float | None
    """When the champion stays for good if nothing is certain; None where no time is up any more."""
    share: float
    """Of new episodes, now."""
    ramp: tuple[float, ...]
    """The shares that it is given, one after another."""
    spans: tuple[Span, ...]
    """Its shadow and its shares, oldest first."""
    num_shadowed: int
    """Decisions in the shadow, beside the champion, which answered."""
    num_same: int
    """Those of them that were the champion's, too."""
    num: Pair
    """Outcomes that are known."""
    num_failed: Pair
    num_lost: Pair
    evidence: tuple[Evidence, ...]
    """That it is worse, that it is as good, and that one arm's episodes are lost oftener."""
    next: str
    """What has to happen next, and what follows, as a clause; "" where it is over."""
    reason: str
    """Why it ended, or was frozen, as a clause."""
    frozen: tuple[float, str] | None
    """When and why it was frozen; None where it never was."""
