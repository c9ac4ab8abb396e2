"""Drives the challenger on its way: asks the observer how episodes came out, and keeps what follows. Without Ray."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from flywheel.config import DeployConfig
from flywheel.deploy import evidence
from flywheel.deploy.admission import Tried
from flywheel.deploy.canary import Canary, Ramp
from flywheel.deploy.links import AwayError, within
from flywheel.deploy.looks import Looks
from flywheel.deploy.registry import Registry
from flywheel.outcomes import Outcome
from flywheel.preflight import approver
from flywheel.records import Release, Signal

log = logging.getLogger(__name__)
Clock = Callable[[], float]
"""Says what time it is: others are asked first, who take theirs, and a share counts from when it is in force."""


class Witness(Protocol):
    """The observer, from the registry; every method may raise AwayError."""

    async def outcomes(self, digests: Sequence[str], after: tuple[float, str]) -> list[Outcome]:
        """Return how these policies' episodes came out that began after one, as far as all of them are over."""

    async def signals(self) -> tuple[Signal, ...]:
        """Return every Signal raised so far."""

    async def release(self, release: Release, failure_bound: float) -> None:
        """Watch this release from now on."""


class Driver:
    """Moves the registry's canary; everything that it says is on the disk when a method returns."""

    def __init__(self, registry: Registry, config: DeployConfig, failure_bound: float) -> None:
        """Drive by a configuration; `failure_bound` is the failure rate that the gate promised of what it let pass.

        Raises UsageError when the function that is to approve can't be found.
        """
        self._registry, self._ramp, self._bound = registry, Ramp(config), failure_bound
        self._approve = approver(config.approve)
        self._asked: tuple[Canary, asyncio.Task[bool | None]] | None = None
        self._watched: Release | None = None
        self._is_away = False
        self.looks = Looks()
        self._stayed: tuple[float, tuple[float, str], int] = (0.0, (0.0, ""), 0)

    async def challenge(self, digest: str, witness: Witness, clock: Clock, slowly: bool = False) -> Canary:
        """Begin to try a digest beside the champion, at the last share at once where an alarm is open about that one.

        `slowly` has it begin in the shadow in any case: production's own episodes say that it is worse.

        It is promoted on less where that one surely fails oftener than it may: what an alarm of another world alone
        doesn't say. With the observer away it begins in the shadow, and the first look finds out. Raises Refused as
        Registry.challenge.
        """
        try:
            alarms = await self._alarms(witness)
            urgent = any(signal.kind == "degradation" for signal in alarms) or await self._fails(witness, alarms)
        except AwayError as error:
            log.warning("The observer is away, so nobody knows of alarms about the champion yet: %s", error)
            return self._registry.challenge(digest, self._ramp, clock())
        known = {"alarmed": bool(alarms), "urgent": urgent, "slowly": slowly}
        return self._registry.challenge(digest, self._ramp, clock(), **known)

    async def _alarms(self, witness: Witness) -> list[Signal]:
        """Return the alarms about the release in service; that it hacks its reward says nothing of a challenger."""
        signals, present = await within(witness.signals()), self._registry.releases()[-1:]
        alarms = [s for s in signals if any(s.evidence["released_at"] == each.released_at for each in present)]
        return [signal for signal in alarms if signal.kind != "reward_hacking"]

    async def _accused(self, witness: Witness, digest: str, since: float) -> str:
        """Return why a policy is given no more episodes that hacks its reward, as a clause; "" where nobody says so.

        What was said before it began to be tried, or to stay, is not about that.
        """
        signals = await within(witness.signals())
        told = [s for s in signals if s.kind == "reward_hacking" and s.digest == digest and s.at >= since]
        return f"it may hack its reward: {told[-1].evidence['words']}" if told else ""

    async def _fails(self, witness: Witness, alarms: Sequence[Signal]) -> bool:
        """Say whether the champion surely fails oftener than it may, by the episodes that began since an alarm."""
        if not alarms:
            return False
        since = min(signal.at for signal in alarms)
        outcomes = await within(witness.outcomes((alarms[0].digest,), (since, "")))
        failed = [outcome.failed for outcome in outcomes if outcome.is_known]
        return evidence.is_above(sum(failed), len(failed), self._bound, self._ramp.config.rollback_error)

    def tried(self, tried: Tried, now: float) -> Release | None:
        """Take in what a replica saw of the challenger; what it says of another policy is late, and is left."""
        canary, control = self._registry.canary(), self._registry.control()
        if control is not None and control.policy == tried.digest and tried.trouble:
            self._registry.end_control(tried.trouble, now)
        if canary is None or canary.is_over or canary.challenger != tried.digest:
            return None
        if tried.trouble:
            return self._keep(canary, self._ramp.broke(canary, tried.trouble, now))
        return self._keep(canary, self._ramp.shadowed(canary, tried.num_shadowed, tried.num_same, now))

    async def step(self, witness: Witness, clock: Clock) -> Release | None:
        """Move the canary as far as outcomes, alarms, a person's word and time allow; return the Release it ends in.

        Nobody is waited for who can keep it from ending when its time is up: not a person, and not the observer, while
        which is away nothing else moves.
        """
        canary = self._registry.canary()
        if canary is not None and not canary.is_over:
            self._keep(canary, self._ramp.tick(canary, clock()))
        release = None
        try:
            await self._watch(witness)
            release = await self._move(witness, clock)
            await self._watch(witness)
            await self._look_after_control(witness, clock)
            self._is_away = False
        except AwayError as error:
            if not self._is_away:
                log.warning("The observer is away, so that challengers wait for outcomes: %s", error)
            self._is_away = True
        return release

    async def _move(self, witness: Witness, clock: Clock) -> Release | None:
        canary = self._registry.canary()
        if canary is None or canary.is_over:
            return None
        alarms, heard = await self._alarms(witness), list[Outcome]()
        is_meant = self._registry.pays_otherwise(canary.challenger, canary.champion)
        hacks = "" if is_meant else await self._accused(witness, canary.challenger, canary.begun_at)
        if canary.state == "canary":
            after = max(canary.read_to, (canary.begun_at, ""))
            heard = await within(witness.outcomes((canary.champion, canary.challenger), after))
        present = self._registry.canary()  # it may have ended while others were asked
        if present is None or present.is_over or not present.is_same(canary):
            return None
        if hacks:
            return self._keep(present, self._ramp.stop(present, hacks, clock()))
        now, word = clock(), self._word(present)
        moved = self._hear(self._ramp.alarmed(present, alarms, now), heard, now)
        return self._keep(present, moved if word is None else self._ramp.approve(moved, word, now))

    def _hear(self, canary: Canary, heard: Sequence[Outcome], now: float) -> Canary:
        """Let a canary read what is known, up to where not every replica is known to act by its share yet."""
        if canary.state != "canary":
            return canary
        begun_at = canary.shares[-1][0]
        known_from = self.looks.known_from(begun_at, now)
        if known_from is None:
            return self._ramp.hear(canary, [o for o in heard if o.started_at < begun_at], now)
        return self._ramp.hear(self._ramp.known(canary, known_from), heard, now)

    async def quiet_share(self, witness: Witness) -> float:
        """Return the control's share for a promotion of now: 0 where an alarm is open, or nobody knows whether."""
        if self._registry.champion() is None:
            return 0.0
        try:
            return 0.0 if await self._alarms(witness) else self._ramp.config.control_share
        except AwayError as error:
            log.warning("The observer is away, so that no control group stays: %s", error)
            return 0.0

    async def _look_after_control(self, witness: Witness, clock: Clock) -> None:
        """Let the control count once all replicas know of it, and end it once it was seen enough in quiet times.

        One that hacks its reward ends at once: it was replaced for good.
        """
        control, config = self._registry.control(), self._ramp.config
        if control is None:
            return
        if hacks := await self._accused(witness, control.policy, control.begun_at):
            self._registry.end_control(hacks, clock(), control.policy)
            return
        if control.settled_at is None:
            known_from = self.looks.known_from(control.begun_at, clock())
            if known_from is not None:
                self._registry.settle_control(max(known_from, control.begun_at + config.settle_s))
            return
        begun_at, after, num = self._stayed
        if begun_at != control.begun_at:
            begun_at, after, num = control.begun_at, (control.settled_at, ""), 0
        outcomes = await within(witness.outcomes((control.policy,), after))
        num += sum(outcome.is_known for outcome in outcomes)
        self._stayed = (begun_at, (outcomes[-1].started_at, outcomes[-1].id) if outcomes else after, num)
        if num >= config.control_episodes and not await self._alarms(witness):
            present = self._registry.control()  # it may have ended, and another begun, while the observer was asked
            if present is not None and present.begun_at == begun_at:
                self._registry.end_control(f"{num:,} of its episodes are enough in quiet times", clock())

    async def _watch(self, witness: Witness) -> None:
        """Let the observer watch whatever was put into service last."""
        for release in self._registry.releases()[-1:]:
            if release != self._watched:
                await within(witness.release(release, self._bound))
                self._watched = release

    def _keep(self, before: Canary, canary: Canary) -> Release | None:
        if canary == before:
            return None
        release = self._registry.keep_canary(canary)
        kept = self._registry.canary() or canary
        if kept.state != before.state:
            log.warning("Policy %s is %s now: %s", kept.challenger[:12], kept.state, kept.reason or "on its way")
        return release

    def _word(self, canary: Canary) -> bool | None:
        """Return what the function said that approves, None as long as it says nothing; it is asked again after None.

        It may take days: it runs beside, and is looked at here.
        """
        if self._approve is None or not canary.is_proven:
            return None
        if self._asked is None or not self._asked[0].is_same(canary):
            self._asked = (canary, asyncio.create_task(asyncio.to_thread(self._ask, canary)))
            return None
        if not self._asked[1].done():
            return None
        (_, said), self._asked = self._asked, None
        return said.result()

    def _ask(self, canary: Canary) -> bool | None:
        assert self._approve is not None
        try:
            word: bool | None = self._approve(canary)
        except Exception:  # a person's function: it is asked again
            log.exception("The function that approves challengers raised an error.")
            return None
        return word
