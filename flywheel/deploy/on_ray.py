"""Deploy's actors on Ray: the registry's owner, and the links by which replicas find it and the observer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError

from flywheel.arms import Control
from flywheel.challenge import Word
from flywheel.config import DeployConfig
from flywheel.deploy.admission import Admission, Served, Tried
from flywheel.deploy.canary import Canary
from flywheel.deploy.driver import Driver
from flywheel.deploy.links import AwayError, Secrets
from flywheel.deploy.registry import Registry
from flywheel.errors import Refused
from flywheel.meters import WHEEL, readings
from flywheel.meters.on_ray import Recorder
from flywheel.outcomes import Outcome
from flywheel.policy import Bundle, Files
from flywheel.records import Artifact, Episode, Release, Reward, Signal, Steps, Verdict
from flywheel.tapes import Scenario
from flywheel.tokens import Scope

log = logging.getLogger(__name__)
REGISTRY = "registry"
OBSERVER = "observer"


def namespace(wheel: str) -> str:
    """Return Ray's namespace of a wheel's named actors."""
    return f"flywheel-{wheel}"


T = TypeVar("T")


class RegistryActor:
    """Owns the run's Registry and drives its challengers. Named REGISTRY in the wheel's namespace.

    No call into the Registry awaits, so that none is interleaved with another.
    """

    def __init__(
        self,
        run_dir: str,
        task: str,
        wheel: str = WHEEL,
        config: DeployConfig | None = None,
        failure_bound: float = 1.0,
    ) -> None:
        """Open the registry of a run directory; `task` is the task's digest, `failure_bound` its limit."""
        self._meters = Recorder(wheel)
        self._config = config or DeployConfig()
        self._registry = Registry(Path(run_dir), task)
        self._driver = Driver(self._registry, self._config, failure_bound)
        self._observer = ObserverActorLink(OBSERVER, namespace(wheel))
        self._driving: asyncio.Task[None] | None = None
        for release in self._registry.releases()[-1:]:
            self._meters.record(readings.of_release(release, self._registry.artifact(release.digest).version))

    def __repr__(self) -> str:
        return f"registry({self._meters.wheel})"

    def run_dir(self) -> str:
        """Return the run directory that this actor owns."""
        return str(self._registry.run_dir)

    def secrets(self) -> Secrets:
        """Return what replicas need of the run's keys."""
        keys = self._registry.keys
        return Secrets(public=keys.public, run=keys.run, task=self._registry.task)

    async def admission(self, replica: str = "", changed_at: float | None = None) -> Admission:
        """Return who answers clients; replicas ask each second, so that from then on challengers are driven.

        `changed_at` says by which shares this replica has acted so far.
        """
        self._driver.looks.saw(replica, changed_at, time.time())
        if self._driving is None:
            self._driving = asyncio.create_task(self._drive())
        return self._registry.admission()

    async def _drive(self) -> None:
        while True:
            await asyncio.sleep(self._config.poll_s)
            try:
                self._say(await self._driver.step(self._observer, time.time))
            except Exception:  # a full disk, or a person's change meanwhile: the next look may do
                log.exception("The challenger could not be moved.")

    async def challenge(self, digest: str, slowly: bool = False) -> Canary:
        """Begin to try a judged digest beside the champion; raises Refused, changing nothing, otherwise."""
        return await self._driver.challenge(digest, self._observer, time.time, slowly)

    async def tried(self, tried: Tried) -> None:
        """Take in what a replica saw of the challenger."""
        self._say(self._driver.tried(tried, time.time()))

    def canary(self) -> Canary | None:
        """Return the last challenger's way, over or not."""
        return self._registry.canary()

    def decide(self, word: Word, reason: str, digest: str = "") -> Canary:
        """Do what a person says to the challenger on its way; replicas follow when they look next."""
        canary, release = self._registry.decide(word, reason, time.time(), digest)
        self._say(release)
        return canary

    def _say(self, release: Release | None) -> None:
        if release is not None:
            self._told(release, "promotion")
        for present in filter(None, [self._registry.present()]):
            self._meters.record(readings.of_release(present, self._registry.artifact(present.digest).version))

    def controls(self) -> list[Control]:
        """Return every control group, over or not, oldest first."""
        return self._registry.controls()

    def add_token(self, name: str, scopes: Sequence[Scope], quota: float | None = None) -> str:
        """Return a new token, which nobody can be told again."""
        return self._registry.add_token(name, scopes, time.time(), quota)

    def revoke_token(self, name: str) -> None:
        """Let a token open nothing any more; replicas follow when they look next."""
        self._registry.revoke_token(name, time.time())

    def papers(self, digest: str) -> tuple[Bundle, Verdict | None]:
        """Return a digest's artifact with its files, and its newest verdict."""
        return self._registry.bundle(digest), self._registry.verdict(digest)

    def bundle(self, digest: str) -> Bundle:
        """Return a registered artifact with the files that acting needs."""
        return self._registry.bundle(digest)

    def files(self, digest: str) -> Files:
        """Return all files of a registered artifact, the weights that training starts from among them."""
        return self._registry.files(digest)

    def write(self, digest: str, files: Files) -> Artifact:
        """Write a new policy's files into the run directory, register it and return its Artifact."""
        return self._registry.write(digest, files)

    def add(self, artifact: Artifact) -> None:
        """Register an artifact."""
        self._registry.add(artifact)

    def record(self, verdict: Verdict) -> Verdict:
        """Sign and keep a verdict; return the signed one."""
        return self._registry.record(verdict)

    def spend(self, digest: str) -> int:
        """Note that a candidate is about to be judged; return how many were since the budget was last filled."""
        return self._registry.spend(digest, time.time())

    def refill(self, reason: str) -> None:
        """Fill the gate's error budget, for a reason that is kept."""
        self._registry.refill(reason, time.time())

    def tries(self) -> int:
        """Return how many candidates were judged since the budget was last filled."""
        return self._registry.tries()

    def set_terms(self, config: str, simulator: str) -> None:
        """Let only verdicts by this configuration and simulator allow a promotion from now on."""
        self._registry.set_terms(config, simulator, time.time())

    def scenarios(self) -> tuple[Scenario, ...]:
        """Return the gate's suite."""
        return self._registry.scenarios()

    def save_scenario(self, scenario: Scenario) -> Scenario:
        """Keep a scenario, which every candidate from now on must master."""
        return self._registry.save_scenario(scenario)

    def drop_scenario(self, name: str) -> None:
        """Take a scenario out of the suite."""
        self._registry.drop_scenario(name)

    def dropped(self) -> tuple[Scenario, ...]:
        """Return the scenarios of production's failures that were taken out of the suite."""
        return self._registry.dropped()

    def grown(self, scenarios: Sequence[Scenario], fates: Mapping[str, str], simulator: str, now: float) -> None:
        """Keep what became of production's failures."""
        self._registry.grown(scenarios, fates, simulator, now)

    def looked_at(self, simulator: str) -> dict[str, str]:
        """Return by id the scenario that stands for a failed episode."""
        return self._registry.looked_at(simulator)

    async def promote(self, digest: str) -> Release:
        """Put a judged digest into service; raises Refused, changing nothing, otherwise.

        Where no alarm is open about the one before it, a share of new episodes stays on that for a time.
        """
        share = await self._driver.quiet_share(self._observer)
        return self._told(self._registry.promote(digest, time.time(), share), "promotion")

    def rollback(self, reason: str = "rolled back", digest: str | None = None) -> Release:
        """Condemn the digest in service, which is this one if any is given, and put the one before it back."""
        before = self._registry.champion()
        release = self._registry.rollback(time.time(), reason, digest)
        return self._told(release, "rollback") if release.digest != before else release

    def served(self, at: float) -> Served:
        """Return who answered at a time."""
        return self._registry.served(at)

    def champion(self) -> str | None:
        """Return the digest in service."""
        return self._registry.champion()

    def previous(self) -> str | None:
        """Return the digest that a rollback would put into service."""
        return self._registry.previous()

    def condemned(self) -> frozenset[str]:
        """Return the digests that may not come back."""
        return self._registry.condemned()

    def artifact(self, digest: str) -> Artifact:
        """Return a registered artifact."""
        return self._registry.artifact(digest)

    def artifacts(self) -> list[Artifact]:
        """Return every registered artifact, oldest version first."""
        return self._registry.artifacts()

    def verdict(self, digest: str) -> Verdict | None:
        """Return the newest verdict on a digest."""
        return self._registry.verdict(digest)

    def verdicts(self, digest: str | None = None, last: int = -1) -> list[Verdict]:
        """Return every verdict (on a digest), or the `last` so many, oldest first."""
        return self._registry.verdicts(digest, last)

    def releases(self) -> list[Release]:
        """Return every release, oldest first."""
        return self._registry.releases()

    def next_version(self) -> int:
        """Return the version of the next artifact."""
        return self._registry.next_version()

    def _told(self, release: Release, cause: str) -> Release:
        self._meters.record(readings.of_releasing(release, cause))
        self._meters.record(readings.of_release(release, self._registry.artifact(release.digest).version))
        return release


class _Link:
    """A named actor that may be away, or come back as another process."""

    def __init__(self, name: str, namespace: str) -> None:
        self._name, self._namespace = name, namespace
        self._handle: Any = None

    async def _ask(self, method: str, *args: Any) -> Any:
        try:
            if self._handle is None:
                self._handle = ray.get_actor(self._name, namespace=self._namespace)
            answer: Awaitable[Any] = getattr(self._handle, method).remote(*args)
            return await answer
        except Refused as error:
            raise getattr(error, "cause", error) from None  # Ray's own has a traceback for its message
        except (RayError, ValueError) as error:
            self._handle = None
            raise AwayError(f"actor {self._name!r}: {type(error).__name__}") from error


class RegistryActorLink(_Link):
    """The registry's actor, as a replica calls it."""

    async def secrets(self) -> Secrets:
        """As RegistryActor.secrets; raises AwayError, as all of these do."""
        found: Secrets = await self._ask("secrets")
        return found

    async def admission(self, replica: str = "", changed_at: float | None = None) -> Admission:
        """As RegistryActor.admission."""
        found: Admission = await self._ask("admission", replica, changed_at)
        return found

    async def papers(self, digest: str) -> tuple[Bundle, Verdict | None]:
        """As RegistryActor.papers."""
        found: tuple[Bundle, Verdict | None] = await self._ask("papers", digest)
        return found

    async def tried(self, tried: Tried) -> None:
        """As RegistryActor.tried."""
        await self._ask("tried", tried)

    async def served(self, at: float) -> Served:
        """As RegistryActor.served."""
        found: Served = await self._ask("served", at)
        return found

    async def rollback(self, reason: str, digest: str | None) -> Release:
        """As RegistryActor.rollback."""
        release: Release = await self._ask("rollback", reason, digest)
        return release


class ObserverActorLink(_Link):
    """The observer's actor, as a replica or the registry calls it."""

    async def append(self, steps: Steps) -> None:
        """As ObserverActor.append; raises AwayError, as `end` does."""
        await self._ask("append", steps)

    async def end(self, steps: Steps) -> Mapping[str, tuple[int, ...]]:
        """As ObserverActor.end."""
        found: Mapping[str, tuple[int, ...]] = await self._ask("end", steps)
        return found

    async def reward(self, rewards: Sequence[Reward]) -> Sequence[str]:
        """As ObserverActor.reward."""
        found: Sequence[str] = await self._ask("reward", rewards)
        return found

    async def begun(self, begun: Mapping[str, float]) -> None:
        """As ObserverActor.begun."""
        await self._ask("begun", begun)

    async def upload(self, episodes: Sequence[Episode]) -> Mapping[str, str]:
        """As ObserverActor.upload."""
        found: Mapping[str, str] = await self._ask("upload", episodes)
        return found

    async def outcomes(self, digests: Sequence[str], after: tuple[float, str]) -> list[Outcome]:
        """As ObserverActor.outcomes."""
        found: list[Outcome] = await self._ask("outcomes", digests, after)
        return found

    async def signals(self) -> tuple[Signal, ...]:
        """As ObserverActor.signals."""
        found: tuple[Signal, ...] = await self._ask("signals")
        return found

    async def release(self, release: Release, failure_bound: float) -> None:
        """As ObserverActor.release."""
        await self._ask("release", release, failure_bound)
