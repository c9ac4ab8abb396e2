"""The two arms of production after a release: the champion, and the control that stays on the policy before it.

They are counted from one list of outcomes in order of start, cut where an alarm about the champion says that its
evidence begins: records of plain values, from which whoever decides can decide again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from flywheel.outcomes import Outcome
from flywheel.records import Release


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """A policy that some new episodes stay on after the release of another, to see what that one and the world do."""

    policy: str
    """Digest of the policy that was in service before."""
    champion: str
    """Digest of the one that is."""
    share: float
    """Of new episodes, by a hash of their ids."""
    begun_at: float
    """When the champion was put into service."""
    settled_at: float | None = None
    """From when on every replica was seen to know of it; None as long as not all were."""
    ended_at: float | None = None
    """None while it runs."""
    reason: str = ""
    """Why it ended, as a clause."""

    @property
    def release(self) -> Release:
        """The control as a release: in full service, for a share of new episodes."""
        return Release(
            digest=self.policy,
            stage="full",
            share=self.share if self.ended_at is None else 0.0,
            previous=self.champion,
            released_at=self.begun_at,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """How episodes came out."""

    num: int = 0
    """Outcomes that are known."""
    num_failed: int = 0
    loss: float = 0.0
    """Sum of their losses, each in [0, 1] and 1 where it failed."""
    num_lost: int = 0
    """Episodes of which nobody knows how they would have ended."""

    @property
    def num_all(self) -> int:
        """Episodes, known or not."""
        return self.num + self.num_lost

    def plus(self, other: Count) -> Count:
        """Return the count of both."""
        return Count(
            num=self.num + other.num,
            num_failed=self.num_failed + other.num_failed,
            loss=self.loss + other.loss,
            num_lost=self.num_lost + other.num_lost,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Arms:
    """How champion and control fare beside each other."""

    champion: str
    control: str
    """Digest of the policy that was the champion before it."""
    share: float
    """Share of new episodes that begin on the control, in (0, 1)."""
    counted_from: float
    """From when on both answer side by side and every replica knows it, and episodes that begin count."""
    since: float
    """Start of the episode where the alarm's evidence begins."""
    former: Count
    """Of the control, from its time as champion."""
    before: tuple[Count, Count]
    """Of champion and control side by side until `since`."""
    after: tuple[Count, Count]
    """Of both from `since` on."""

    @property
    def beside(self) -> tuple[Count, Count]:
        """Champion and control as long as they answer side by side."""
        return self.before[0].plus(self.after[0]), self.before[1].plus(self.after[1])

    @property
    def usual(self) -> Count:
        """The control until `since`: as champion, and beside this one."""
        return self.former.plus(self.before[1])


def failed(outcome: Outcome) -> float:
    """Return the loss of an outcome where nothing but failures is one."""
    return float(outcome.failed)


def count(outcomes: Iterable[Outcome], loss: Callable[[Outcome], float] = failed) -> Count:
    """Return how these episodes came out; `loss` gives a number in [0, 1]."""
    num = num_failed = num_lost = 0
    total = 0.0
    for outcome in outcomes:
        if not outcome.is_known:
            num_lost += 1
            continue
        num += 1
        num_failed += outcome.failed
        total += loss(outcome)
    return Count(num=num, num_failed=num_failed, loss=total, num_lost=num_lost)


def compare(
    champion: str,
    control: str,
    outcomes: Iterable[Outcome],
    *,
    share: float,
    begun_at: float,
    counted_from: float,
    since_episode: str,
    until: float = float("inf"),
    loss: Callable[[Outcome], float] = failed,
) -> Arms:
    """Return the arms of a release that began at `begun_at`, as the settled outcomes of both show them.

    What began between `begun_at` and `counted_from`, or at `until` or later, counts for neither. Where no outcome is
    that of `since_episode`, all that is side by side came since then.
    """
    ordered = sorted(o for o in outcomes if o.digest in (champion, control))
    beside = [o for o in ordered if counted_from <= o.started_at < until]
    since = next((o.started_at for o in ordered if o.id == since_episode), counted_from)
    parts = [
        count((o for o in beside if o.digest == digest and (o.started_at >= since) == is_after), loss)
        for is_after in (False, True)
        for digest in (champion, control)
    ]
    return Arms(
        champion=champion,
        control=control,
        share=share,
        counted_from=counted_from,
        since=max(since, counted_from),
        former=count((o for o in ordered if o.digest == control and o.started_at < begun_at), loss),
        before=(parts[0], parts[1]),
        after=(parts[2], parts[3]),
    )
