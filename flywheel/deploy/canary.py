"""Shadow, canary, full: what becomes of a judged challenger while the champion goes on serving. Pure.

One test is carried through the whole ramp. It reads outcomes in order of episode start, whichever comes in first, each
with the share that was in force when it started, and looks after every one of them. Evidence that the challenger fails
oftener ends it; evidence that it doesn't lifts it, and promotes it at last; without either nothing moves, and when time
is up the champion stays. So it does when an alarm says that the world is another than the challenger was judged for, or
the challenger's episodes are not as many as its share says.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from flywheel.challenge import Pair, Word
from flywheel.config import DeployConfig
from flywheel.deploy.comparison import Comparison
from flywheel.errors import UsageError
from flywheel.outcomes import Outcome
from flywheel.records import Release, Signal, Stage

State = Literal["shadow", "canary", "frozen", "promoted", "rolled_back", "stopped", "timed_out", "replaced"]
"""`frozen` waits for a person; from `promoted` on it is over, and only `rolled_back` condemns the challenger."""
OPEN: tuple[State, ...] = ("shadow", "canary", "frozen")
STEEP = 0.25
"""The second of three shares is left at 0.5 ** STEEP of the evidence (as a log) that promotes: one that is worse and is
lifted by chance takes many more episodes to be found out, for they say less at a large share."""
_STAGES: dict[State, Stage] = {"shadow": "shadow", "canary": "canary", "promoted": "full"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What a challenger has to show, and on which shares, under the names of DeployConfig.

    A canary keeps the one that it began by: another configuration after a restart is for the next challenger, as no
    promise outlives a change of the bar in its middle.
    """

    ramp: tuple[float, ...]
    ramp_first: int
    canary_margin: float
    incident_margin: float
    rollback_error: float
    promote_error: float
    lost_error: float
    split_error: float
    control_share: float = 0.0
    """Share of new episodes that stays on the champion for a time when it is promoted quietly."""

    @classmethod
    def of(cls, config: DeployConfig) -> Course:
        """Return the course that is configured."""
        return cls(**{field.name: getattr(config, field.name) for field in dataclasses.fields(cls)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """A challenger on its way, or at its end."""

    challenger: str
    champion: str
    state: State
    begun_at: float
    course: Course | None = None
    """What it has to show; None in a record from before that was kept, which goes by the configuration."""
    is_alarmed: bool | None = None
    """True where an alarm about the champion was open when it began: it is tried as the answer to that. None as long as
    nobody could look, where it began without a living observer."""
    is_urgent: bool = False
    """True where an open incident condemns the champion, which fails oftener than it may."""
    shares: tuple[tuple[float, float], ...] = ()
    """When each share of new episodes came into force, and which; each is more than the one before."""
    settled: tuple[tuple[float, float], ...] = ()
    """Of shares that replicas were late to know: when it came into force, and when the last of them knew it."""
    rung: int = -1
    """Which of its course's shares is in force; -1 in the shadow."""
    num_shadowed: int = 0
    """Decisions that it made beside the champion, which answered."""
    num_same: int = 0
    """Those of them that were the champion's, too."""
    is_proven: bool = False
    """True once it surely doesn't fail oftener by the margin."""
    test: Comparison = field(default_factory=Comparison)
    read_to: tuple[float, str] = (0.0, "")
    """Start and id of the last episode that was read: those that began before it count no more."""
    reason: str = ""
    """Why it ended, or was frozen, as a clause; "" while it goes on."""
    changed_at: float = 0.0
    """When its state or its share was last another."""
    frozen: tuple[float, str] | None = None
    """When and why it was frozen; None where it never was."""

    @property
    def is_over(self) -> bool:
        """True where nothing changes it any more."""
        return self.state not in OPEN

    @property
    def is_quiet(self) -> bool:
        """True where it surely answers no alarm about the champion."""
        return self.is_alarmed is False and not self.is_urgent

    @property
    def answered_until(self) -> float | None:
        """When it was last given an episode, or acted in the shadow; None where it still is."""
        if self.state in ("shadow", "canary"):
            return None
        return self.frozen[0] if self.frozen else self.changed_at

    def is_same(self, other: Canary) -> bool:
        """Say whether both are the same way of the same challenger, however far."""
        return (self.challenger, self.begun_at) == (other.challenger, other.begun_at)

    @property
    def share(self) -> float:
        """Share of new episodes that the challenger is given."""
        if self.state == "promoted":
            return 1.0
        return self.shares[-1][1] if self.state == "canary" else 0.0

    @property
    def release(self) -> Release | None:
        """The challenger's release as it stands; None where it answers nobody and isn't tried."""
        stage = _STAGES.get(self.state)
        if stage is None:
            return None
        return Release(
            digest=self.challenger,
            stage=stage,
            share=self.share,
            previous=self.champion,
            released_at=self.changed_at,
        )

    def share_at(self, t: float, settle_s: float) -> float | None:
        """Return the share in force for an episode that began at `t`; None where not all replicas may have known it."""
        at, share = max(((at, share) for at, share in self.shares if at <= t), default=(math.inf, 0.0))
        return share if t >= max(at + settle_s, dict(self.settled).get(at, at)) else None


class Ramp:
    """How challengers go from shadow to full. Every method returns the canary as it is then; one that is over stays."""

    def __init__(self, config: DeployConfig | None = None) -> None:
        """Take the shares, the errors and the limits."""
        self.config = config or DeployConfig()

    def begin(
        self, challenger: str, champion: str, now: float, *, alarmed: bool | None = None, urgent: bool = False,
        slowly: bool = False,
    ) -> Canary:  # fmt: skip
        """Return a canary at its beginning: in the shadow, or, where `alarmed` or `urgent`, at the last share at once.

        It is alarmed where an alarm about the champion is open, so that the one that answers it is wanted soon; None
        where nobody knows yet. It is urgent where the champion fails oftener than it may, so that each of its episodes
        is likely to be lost: it is promoted on less, then. With `slowly` it begins in the shadow all the same: there is
        reason to think that it is worse. Raises UsageError when the challenger is the champion.
        """
        if challenger == champion:
            raise UsageError(f"Policy {challenger[:12]} is in service already: there is nothing to try it against.")
        begun: dict[str, Any] = {"begun_at": now, "changed_at": now, "course": Course.of(self.config)}
        begun |= {"is_alarmed": urgent or alarmed, "is_urgent": urgent}
        canary = Canary(challenger=challenger, champion=champion, state="shadow", **begun)
        if canary.is_alarmed and not slowly:
            return self._lift(canary, len(self.config.ramp) - 1, now)
        return canary if self.config.shadow_decisions else self._lift(canary, 0, now)

    def shadowed(self, canary: Canary, num: int, num_same: int, now: float) -> Canary:
        """Count decisions that the challenger made well in the shadow, and those that were the champion's, too.

        Enough of them begin the canary.
        """
        if canary.state != "shadow":
            return canary
        num, num_same = canary.num_shadowed + num, canary.num_same + num_same
        canary = dataclasses.replace(canary, num_shadowed=num, num_same=num_same)
        return canary if canary.num_shadowed < self.config.shadow_decisions else self._lift(canary, 0, now)

    def hear(self, canary: Canary, outcomes: Iterable[Outcome], now: float) -> Canary:
        """Read outcomes of either arm in order of episode start, up to the one that ends the canary.

        Give all that are known up to some start, in any order and as often as you like: those that were read already,
        other policies', and those that began while the share was changing count for nothing.
        """
        for outcome in sorted(outcomes):
            if canary.state != "canary":
                break
            if (outcome.started_at, outcome.id) <= canary.read_to:
                continue
            share = canary.share_at(outcome.started_at, self.config.settle_s)
            canary = dataclasses.replace(canary, read_to=(outcome.started_at, outcome.id))
            if share is not None and outcome.digest in (canary.champion, canary.challenger):
                is_challengers = outcome.digest == canary.challenger
                test = canary.test.read(outcome, is_challengers, share, self.promotes_at(canary)[0])
                canary = self._look(dataclasses.replace(canary, test=test), now)
        return canary

    def known(self, canary: Canary, known_from: float) -> Canary:
        """Take in from when on every replica knows the present share: what began before counts for nothing.

        It is said before any outcome is read that began at this share, and once.
        """
        at = canary.shares[-1][0]
        if known_from <= at + self.config.settle_s or at in dict(canary.settled) or canary.read_to[0] >= at:
            return canary
        return dataclasses.replace(canary, settled=(*canary.settled, (at, known_from)))

    def alarmed(self, canary: Canary, signals: Sequence[Signal], now: float) -> Canary:
        """Take in all alarms about the champion's release; without one nothing changes.

        They end a canary that began before there was any: the world that its challenger was judged for is another now.
        One that began after an alarm goes on, as others are of the same incident; a degradation makes it urgent, and
        what it has shown so far holds for the wider margin all the more.
        """
        if canary.state not in ("shadow", "canary"):
            return canary
        if canary.is_alarmed is None:
            canary = dataclasses.replace(canary, is_alarmed=canary.is_urgent or bool(signals))
        if not signals:
            return canary
        if canary.is_alarmed:
            condemned = any(signal.kind == "degradation" for signal in signals)
            return dataclasses.replace(canary, is_urgent=canary.is_urgent or condemned)
        told = ", ".join(f"{signal.kind} by the {signal.monitor} monitor" for signal in signals)
        reason = f"an alarm about the champion came ({told}): the world that it was judged for is another now"
        return self._to(canary, "stopped", reason, now)

    def broke(self, canary: Canary, how: str, now: float) -> Canary:
        """Take the challenger out because it crashed or answered what is no action; `how` is a clause."""
        return self._fail(canary, how, now)

    def approve(self, canary: Canary, is_approved: bool, now: float, reason: str = "") -> Canary:
        """Take a person's word on a challenger that is proven; without the configured approval nobody is asked."""
        if canary.state != "canary" or not canary.is_proven:
            return canary
        because = f": {reason}" if reason else ""
        if is_approved:
            return self._to(canary, "promoted", f"it was approved{because}", now)
        return self._to(canary, "stopped", f"it was not approved{because}", now)

    def drop(self, canary: Canary, reason: str, now: float) -> Canary:
        """Roll the challenger back, frozen or not, for a reason of one's own."""
        return canary if canary.is_over else self._to(canary, "rolled_back", reason, now)

    def stop(self, canary: Canary, reason: str, now: float) -> Canary:
        """Keep the champion, and give the challenger no more episodes, for a reason that doesn't condemn it."""
        return self._to(canary, "stopped", reason, now) if canary.state in ("shadow", "canary") else canary

    def freeze(self, canary: Canary, reason: str, now: float) -> Canary:
        """Give the challenger no more episodes, for a reason of one's own: the rest is left to a person."""
        return self._to(canary, "frozen", reason, now) if canary.state in ("shadow", "canary") else canary

    def decide(self, canary: Canary, word: Word, reason: str, now: float) -> Canary:
        """Do what a person says; the canary stays as it is where that can't be done."""
        if word == "approve":
            return self.approve(canary, True, now, reason)
        return self.drop(canary, reason, now) if word == "drop" else self.freeze(canary, reason, now)

    def replace(self, canary: Canary, by: str, now: float) -> Canary:
        """End the canary because another challenger comes, for which one begins from nothing."""
        return canary if canary.is_over else self._to(canary, "replaced", f"policy {by[:12]} took its place", now)

    def tick(self, canary: Canary, now: float) -> Canary:
        """Keep the champion when time is up; one that is frozen waits for a person."""
        if canary.state not in ("shadow", "canary") or now - canary.begun_at < self.config.canary_timeout_s:
            return canary
        missing = "nobody approved it" if canary.is_proven else "nothing was certain"
        return self._to(canary, "timed_out", f"{missing} after {now - canary.begun_at:,.0f} s", now)

    def course(self, canary: Canary) -> Course:
        """Return what a challenger has to show."""
        return canary.course or Course.of(self.config)

    def promotes_at(self, canary: Canary) -> tuple[float, float]:
        """Return by how much oftener it may fail to be promoted, and how likely one is promoted that does."""
        course = self.course(canary)
        if canary.is_urgent:
            return course.incident_margin, course.rollback_error
        return course.canary_margin, course.promote_error

    def is_last(self, canary: Canary) -> bool:
        """Say whether the present share is the last one before all episodes."""
        return canary.rung >= len(self.course(canary).ramp) - 1

    def _look(self, canary: Canary, now: float) -> Canary:
        """Return what follows from the test as it is."""
        course, test, num = self.course(canary), canary.test, canary.test.num[1]
        if test.is_worse >= -math.log(course.rollback_error):
            return self._fail(canary, f"it fails oftener: {_told(test.num_failed, test.num)}", now)
        both = (test.num[0] + test.num_lost[0], test.num[1] + test.num_lost[1])
        if test.is_uneven >= -math.log(course.lost_error):
            reason = f"one arm's episodes are lost oftener: {_told(test.num_lost, both)}"
            return self._to(canary, "stopped", reason, now)
        if test.is_skewed >= -math.log(course.split_error):
            reason = f"its share of episodes isn't the one that it was given: {both[1]:,} of {sum(both):,} are its own"
            return self._to(canary, "stopped", reason, now)
        if self._climbs(canary):
            return self._lift(canary, canary.rung + 1, now)
        margin, error = self.promotes_at(canary)
        enough = test.is_good >= -math.log(error) and num >= course.ramp_first
        is_proven = canary.is_proven or (enough and self.is_last(canary))
        canary = dataclasses.replace(canary, is_proven=is_proven)
        if is_proven and not self.config.approve:
            reason = f"it fails no oftener by {margin:.1%}: {_told(test.num_failed, test.num)}"
            return self._to(canary, "promoted", reason, now)
        if num >= self.config.canary_episodes and not is_proven:
            return self._to(canary, "timed_out", f"nothing is certain: {_told(test.num_failed, test.num)}", now)
        return canary

    def climbs_at(self, canary: Canary) -> float:
        """Return the evidence, as a log, on which the present share is left for the next; -inf where on any."""
        if canary.rung <= 0:
            return -math.inf
        course = self.course(canary)
        return -math.log(course.promote_error) * math.pow(canary.rung / max(len(course.ramp) - 1, 1), STEEP)

    def _climbs(self, canary: Canary) -> bool:
        """Say whether the next share's turn has come: the first is left after some outcomes, others on evidence."""
        if self.is_last(canary) or canary.test.num[1] < self.course(canary).ramp_first:
            return False
        return canary.test.is_good >= self.climbs_at(canary)

    def _lift(self, canary: Canary, rung: int, now: float) -> Canary:
        shares = (*canary.shares, (now, self.course(canary).ramp[rung]))
        return dataclasses.replace(canary, state="canary", rung=rung, shares=shares, changed_at=now)

    def _fail(self, canary: Canary, reason: str, now: float) -> Canary:
        if canary.state not in ("shadow", "canary"):
            return canary
        return self._to(canary, "rolled_back" if self.config.on_fail == "rollback" else "frozen", reason, now)

    def _to(self, canary: Canary, state: State, reason: str, now: float) -> Canary:
        frozen = (now, reason) if state == "frozen" else canary.frozen
        return dataclasses.replace(canary, state=state, reason=reason, changed_at=now, frozen=frozen)


def _told(some: Pair, of: Pair) -> str:
    return f"{some[1]:,} of {of[1]:,} episodes, the champion's {some[0]:,} of {of[0]:,}"
