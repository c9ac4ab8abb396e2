"""What a replica asks of the rest of its wheel: the registry and the observer, either of which can be away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from flywheel.deploy.admission import Admission, Served, Tried
from flywheel.errors import FlywheelError
from flywheel.policy import Bundle
from flywheel.records import Episode, Release, Reward, Steps, Verdict

AWAY_S = 5.0
"""Seconds after which an observer or a registry that doesn't answer counts as away."""
T = TypeVar("T")


class AwayError(FlywheelError):
    """The registry or the observer can't be reached now; it may be back in a moment."""


@dataclass(frozen=True, slots=True)
class Secrets:
    """What a replica needs of the run's keys, and whose policies it serves."""

    public: bytes
    run: bytes
    task: str

    def __repr__(self) -> str:
        return f"Secrets(task={self.task[:12]})"


class RegistryLink(Protocol):
    """The registry, from a replica; every method may raise AwayError."""

    async def secrets(self) -> Secrets:
        """Return what this replica needs of the run's keys."""

    async def admission(self, replica: str = "", changed_at: float | None = None) -> Admission:
        """Return who answers, and whom; `changed_at` is that of the Admission that this replica acts by, None of none.

        From when on all replicas know a share is seen by that.
        """

    async def papers(self, digest: str) -> tuple[Bundle, Verdict | None]:
        """Return a digest's artifact with its files and its newest verdict."""

    async def tried(self, tried: Tried) -> None:
        """Take in what this replica saw of a challenger."""

    async def served(self, at: float) -> Served:
        """Return who answered at a time."""

    async def rollback(self, reason: str, digest: str | None) -> Release:
        """Condemn the policy in service, or this one, and put the one before it back; raises Refused."""


class ObserverLink(Protocol):
    """The observer, from a replica; every method may raise AwayError."""

    async def append(self, steps: Steps) -> None:
        """Hand over rows of running episodes."""

    async def end(self, steps: Steps) -> Mapping[str, tuple[int, ...]]:
        """Hand over ends; return () for each episode that is durable now, else its missing steps."""

    async def reward(self, rewards: Sequence[Reward]) -> Sequence[str]:
        """Return what became of each late reward: "stored" or "same" (durable), "conflict" (aside), or "unknown"."""

    async def begun(self, begun: Mapping[str, float]) -> None:
        """Hand over word of episodes (id → start) that clients act in by themselves: they hold their places then."""

    async def upload(self, episodes: Sequence[Episode]) -> Mapping[str, str]:
        """Return what became of each whole episode: "stored" or "same" (durable), or "conflict" (aside)."""


async def within(call: Awaitable[T]) -> T:
    """Return the answer of a link; raise AwayError when it takes longer than AWAY_S."""
    try:
        async with asyncio.timeout(AWAY_S):  # wait_for may swallow a cancellation, and stop() would wait for ever
            return await call
    except TimeoutError as error:
        raise AwayError(f"no answer in {AWAY_S:g} s") from error
