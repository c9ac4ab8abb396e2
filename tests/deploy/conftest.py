"""A judged CartPole policy, a registry, and a service whose registry and observer live in this process."""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from flywheel.config import DeployConfig
from flywheel.deploy.admission import Admission, Served, Tried
from flywheel.deploy.keys import CLIENT, token_file
from flywheel.deploy.links import AwayError, Secrets
from flywheel.deploy.registry import Registry
from flywheel.deploy.service import Service
from flywheel.policy import Bundle
from flywheel.records import Artifact, Check, Episode, Outcome, Release, Reward, Steps, Trial, Verdict
from flywheel.store.intake import Intake
from flywheel.task import task_digest
from flywheel.tasks.cartpole import cartpole
from flywheel.testing import GOOD, write_linear_artifact

NOW = 1_000.0


def verdict_on(artifact: Artifact, outcome: Outcome = "pass", **changes: object) -> Verdict:
    """Return an unsigned verdict as the gate gives it."""
    fields: dict[str, object] = {
        "digest": artifact.digest,
        "baseline": None,
        "task": task_digest(cartpole),
        "config": "c",
        "simulator": "s",
        "outcome": outcome,
        "checks": (Check(name="failure_rate", value=0.0, interval=(0.0, 0.04), bound=0.05, passed=True),),
        "trials": (
            Trial(
                seed=1, parameters={"length": 0.5}, scenario="nominal", total=500.0, length=500, failed=False,
                margin=float("nan"), episode="e",
            ),
        ),
        "seed": 7,
        "cost_s": 1,
        "judged_at": NOW,
        "valid_until": NOW + 900.0,
    } | changes  # fmt: skip
    return Verdict(**fields)  # type: ignore[arg-type]


class World:
    """A registry with what it takes to put policies into service."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.registry = Registry(run_dir, task_digest(cartpole))
        self.token = token_file(run_dir, CLIENT).read_text()

    def artifact(self, number: float = 1.0, trained_on: Mapping[str, Any] | None = None) -> Artifact:
        """Write and register a policy; another number gives another digest."""
        gains = tuple(number * gain for gain in GOOD)
        told = {"version": self.registry.next_version(), "trained_on": trained_on}
        artifact = write_linear_artifact(self.run_dir / "policies", cartpole, gains, **told)
        self.registry.add(artifact)
        return artifact

    def judged(self, number: float = 1.0, **changes: object) -> Artifact:
        """Return a registered policy that passed."""
        artifact = self.artifact(number)
        self.registry.record(verdict_on(artifact, **({"baseline": self.registry.champion()} | changes)))  # type: ignore[arg-type]
        return artifact

    def served(self, number: float = 1.0, now: float = NOW) -> Artifact:
        """Return a policy that was put into service."""
        artifact = self.judged(number)
        self.registry.promote(artifact.digest, now)
        return artifact


class Links:
    """Registry and observer as a replica sees them; both can go away."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.away = False
        self.hangs = False
        self.steps: list[Steps] = []
        self.ends: list[Steps] = []
        self.lost: set[tuple[str, int]] = set()
        """Steps that the observer forgets once."""
        self.loads: list[str] = []
        self.tried_: list[Tried] = []
        self.looks: list[tuple[str, float | None]] = []
        self.begun_: list[Mapping[str, float]] = []
        self.now = NOW
        """When the registry is told to roll back."""

    @functools.cached_property
    def store(self) -> Intake:
        """What the observer makes durable."""
        return Intake(self.registry.run_dir)

    async def _reach(self) -> None:
        if self.away:
            raise AwayError("gone")
        if self.hangs:
            await asyncio.Event().wait()

    async def secrets(self) -> Secrets:
        await self._reach()
        keys = self.registry.keys
        return Secrets(public=keys.public, run=keys.run, task=self.registry.task)

    async def admission(self, replica: str = "", changed_at: float | None = None) -> Admission:
        await self._reach()
        self.looks.append((replica, changed_at))
        return self.registry.admission()

    async def papers(self, digest: str) -> tuple[Bundle, Verdict | None]:
        await self._reach()
        self.loads.append(digest)
        return self.registry.bundle(digest), self.registry.verdict(digest)

    async def tried(self, tried: Tried) -> None:
        await self._reach()
        self.tried_.append(tried)

    async def served(self, at: float) -> Served:
        await self._reach()
        return self.registry.served(at)

    async def rollback(self, reason: str, digest: str | None) -> Release:
        await self._reach()
        return self.registry.rollback(self.now, reason, digest)

    async def reward(self, rewards: Sequence[Reward]) -> Sequence[str]:
        await self._reach()
        known = self.rows()
        answers, _ = self.store.reward(rewards, [math.nan if (r.episode, r.t) in known else None for r in rewards])
        return answers

    async def begun(self, begun: Mapping[str, float]) -> None:
        await self._reach()
        self.begun_.append(begun)

    async def upload(self, episodes: Sequence[Episode]) -> Mapping[str, str]:
        await self._reach()
        return self.store.append(episodes)

    async def append(self, steps: Steps) -> None:
        await self._reach()
        self.steps.append(steps)

    def rows(self) -> set[tuple[str, int]]:
        """Return the steps that arrived."""
        return {(e, int(t)) for steps in self.steps for e, t in zip(steps.episodes, steps.t, strict=True)}

    async def end(self, steps: Steps) -> Mapping[str, tuple[int, ...]]:
        await self._reach()
        answer = {}
        for episode, num_steps in zip(steps.episodes, steps.t, strict=True):
            known = self.rows() - self.lost
            answer[episode] = tuple(t for t in range(num_steps) if (episode, t) not in known)
        self.lost.clear()
        self.ends.append(steps)
        return answer


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.registry.close()


@pytest.fixture
def links(world: World) -> Iterator[Links]:
    links = Links(world.registry)
    yield links
    if "store" in vars(links):
        links.store.close()


@pytest.fixture
def service(links: Links) -> Service:
    return Service(DeployConfig(flush_s=0.001, poll_s=0.01), links, links, lambda: NOW)
