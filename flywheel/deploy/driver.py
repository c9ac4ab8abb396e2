"""Drives the challenger on its way: asks the observer how episodes came out, and keeps what follows. Without Ray."""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from flywheel.config import DeployConfig
from flywheel.deploy.admission import Tried
from flywheel.deploy.canary import Canary, Ramp
from flywheel.deploy.registry import Registry
from flywheel.errors import UsageError
from flywheel.outcomes import Outcome
from flywheel.records import Release, Signal

log = logging.getLogger(__name__)
Approve = Callable[[Canary], bool | None]
PERSON = "person"
"""Who approves where no function does: whoever says so by `flywheel canary approve`, or on the page."""


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
        self._approve = approver(config.approve) if config.approve not in ("", PERSON) else None
        self._watched: Release | None = None

    async def challenge(self, digest: str, witness: Witness, now: float) -> Canary:
        """Begin to try a digest beside the champion, at the last share at once where an alarm condemns that one.

        Raises Refused as Registry.challenge, and AwayError.
        """
        signals = await witness.signals()
        present = self._registry.releases()[-1:]
        urgent = any(signal.evidence["released_at"] == each.released_at for signal in signals for each in present)
        return self._registry.challenge(digest, self._ramp, now, urgent=urgent)

    def tried(self, tried: Tried, now: float) -> Release | None:
        """Take in what a replica saw of the challenger; what it says of another policy is late, and is left."""
        canary = self._registry.canary()
        if canary is None or canary.is_over or canary.challenger != tried.digest:
            return None
        if tried.trouble:
            return self._keep(canary, self._ramp.broke(canary, tried.trouble, now))
        return self._keep(canary, self._ramp.shadowed(canary, tried.num_shadowed, tried.num_same, now))

    async def step(self, witness: Witness, now: float) -> Release | None:
        """Move the canary as far as outcomes, a person's word and time allow; return the Release that it ends in."""
        await self._watch(witness)
        canary = self._registry.canary()
        if canary is None or canary.is_over:
            return None
        heard: list[Outcome] = []
        if canary.state == "canary":
            after = max(canary.read_to, (canary.begun_at, ""))
            heard = await witness.outcomes((canary.champion, canary.challenger), after)
        word = None
        if self._approve is not None and canary.is_proven:
            word = await asyncio.to_thread(self._asked, canary)
        present = self._registry.canary()  # it may have ended while others were asked
        if present is None or present.begun_at != canary.begun_at or present.is_over:
            return None
        moved = self._ramp.hear(present, heard, now)
        moved = moved if word is None else self._ramp.approve(moved, word, now)
        release = self._keep(present, self._ramp.tick(moved, now))
        await self._watch(witness)
        return release

    async def _watch(self, witness: Witness) -> None:
        """Let the observer watch whatever was put into service last."""
        for release in self._registry.releases()[-1:]:
            if release != self._watched:
                await witness.release(release, self._bound)
                self._watched = release

    def _keep(self, before: Canary, canary: Canary) -> Release | None:
        if canary == before:
            return None
        if canary.state != before.state:
            log.warning("Policy %s is %s now: %s", canary.challenger[:12], canary.state, canary.reason or "on its way")
        return self._registry.keep_canary(canary)

    def _asked(self, canary: Canary) -> bool | None:
        assert self._approve is not None
        try:
            return self._approve(canary)
        except Exception:  # a person's function: it is asked again
            log.exception("The function that approves challengers raised an error.")
            return None


def approver(reference: str) -> Approve:
    """Return the function that `module:function` names; UsageError where there is none."""
    module, _, name = reference.partition(":")
    try:
        found: Any = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"deploy.approve is {reference!r}, and there is no such function ({error}): give module:function, "
            f"importable where the registry runs, or {PERSON}."
        ) from error
    if not callable(found):
        raise UsageError(f"deploy.approve is {reference!r}, which is no function.")
    approve: Approve = found
    return approve
