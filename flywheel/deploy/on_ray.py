"""Deploy's bodies on Ray: the registry's owner, the replicas on Ray Serve, and how Serve is started and ended."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Awaitable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import HTTPOptions
from ray.serve.schema import LoggingConfig

from flywheel.config import DeployConfig
from flywheel.deploy.admission import Admission
from flywheel.deploy.door import Door
from flywheel.deploy.registry import Registry
from flywheel.deploy.service import AwayError, Secrets, Service
from flywheel.errors import Refused
from flywheel.records import Artifact, Release, Steps, Verdict

NAMESPACE = "flywheel"
"""Ray namespace of the named actors that replicas look for."""
REGISTRY = "registry"
OBSERVER = "observer"
APP = "policy"
T = TypeVar("T")


class RegistryActor:
    """Owns the run's Registry; one process, one call at a time. Named REGISTRY in NAMESPACE."""

    def __init__(self, run_dir: str, task: str) -> None:
        """Open the registry of a run directory; `task` is the task's digest."""
        self._registry = Registry(Path(run_dir), task)

    def secrets(self) -> Secrets:
        """Return what replicas need of the run's keys."""
        keys = self._registry.keys
        return Secrets(public=keys.public, run=keys.run, token=keys.token, task=self._registry.task)

    def admission(self) -> Admission:
        """Return who answers clients."""
        return self._registry.admission()

    def papers(self, digest: str) -> tuple[Artifact, Verdict | None]:
        """Return a digest's artifact and newest verdict."""
        return self._registry.artifact(digest), self._registry.verdict(digest)

    def add(self, artifact: Artifact) -> None:
        """Register an artifact."""
        self._registry.add(artifact)

    def record(self, verdict: Verdict) -> Verdict:
        """Sign and keep a verdict; return the signed one."""
        return self._registry.record(verdict)

    def promote(self, digest: str) -> Release:
        """Put a judged digest into service; raises Refused, changing nothing, otherwise."""
        return self._registry.promote(digest, time.time())

    def rollback(self) -> Release:
        """Condemn the digest in service and put the one before it back."""
        return self._registry.rollback(time.time())

    def condemn(self, digest: str, reason: str) -> None:
        """Bar a digest from coming back."""
        self._registry.condemn(digest, reason, time.time())

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

    def verdict(self, digest: str) -> Verdict | None:
        """Return the newest verdict on a digest."""
        return self._registry.verdict(digest)

    def releases(self) -> list[Release]:
        """Return every release, oldest first."""
        return self._registry.releases()

    def next_version(self) -> int:
        """Return the version of the next artifact."""
        return self._registry.next_version()


class _Link:
    """A named actor that may be away, or come back as another process."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._handle: Any = None

    async def _ask(self, method: str, *args: Any) -> Any:
        try:
            if self._handle is None:
                self._handle = ray.get_actor(self._name, namespace=NAMESPACE)
            answer: Awaitable[Any] = getattr(self._handle, method).remote(*args)
            return await answer
        except Refused:
            raise
        except (RayError, ValueError) as error:
            self._handle = None
            raise AwayError(f"actor {self._name!r}: {type(error).__name__}") from error


class _RegistryLink(_Link):
    async def secrets(self) -> Secrets:
        found: Secrets = await self._ask("secrets")
        return found

    async def admission(self) -> Admission:
        found: Admission = await self._ask("admission")
        return found

    async def papers(self, digest: str) -> tuple[Artifact, Verdict | None]:
        found: tuple[Artifact, Verdict | None] = await self._ask("papers", digest)
        return found


class _ObserverLink(_Link):
    async def append(self, steps: Steps) -> None:
        await self._ask("append", steps)

    async def end(self, steps: Steps) -> Mapping[str, tuple[int, ...]]:
        found: Mapping[str, tuple[int, ...]] = await self._ask("end", steps)
        return found


@serve.ingress()
class PolicyReplica:
    """One Serve replica: the door and the service behind it. Changing the policy never restarts it."""

    def __init__(self, config: DeployConfig) -> None:
        """Link to the registry and the observer by their names; keys and policy come when ASGI's lifespan starts."""
        self._service = Service(config, _RegistryLink(REGISTRY), _ObserverLink(OBSERVER), time.time)

    def __serve_build_asgi_app__(self) -> Door:
        return Door(self._service)

    async def reload(self) -> dict[str, Any]:
        """Follow the registry now; return who answers here."""
        await self._service.reload()
        return await self.status()

    async def status(self) -> dict[str, Any]:
        """Return who answers here, what waits, and this process's id."""
        return {**self._service.status(), "pid": os.getpid()}


def build(config: DeployConfig) -> serve.Application:
    """Return the Serve application of the policy's replicas."""
    deployment = serve.deployment(
        PolicyReplica,
        name="PolicyReplica",
        num_replicas=config.num_replicas,
        max_ongoing_requests=1000,
        max_surge_percent=100,
        graceful_shutdown_timeout_s=1.0,
        graceful_shutdown_wait_loop_s=0.1,
        health_check_period_s=5.0,
        ray_actor_options={"num_cpus": 0},
        logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"),
    )
    return deployment.bind(config)


class Deployment:
    """The running application, from the driver: tells replicas to look at the registry, and ends Serve."""

    def __init__(self, handle: Any, url: str) -> None:
        """Hold Serve's handle and the URL that clients use."""
        self._handle = handle
        self.url = url

    def reload(self, timeout_s: float = 30.0) -> list[dict[str, Any]]:
        """Make every replica follow the registry now; return each one's status."""
        statuses: list[dict[str, Any]] = self._handle.broadcast("reload").results(timeout_s=timeout_s)
        return statuses

    def status(self, timeout_s: float = 30.0) -> list[dict[str, Any]]:
        """Return each replica's status."""
        statuses: list[dict[str, Any]] = self._handle.broadcast("status").results(timeout_s=timeout_s)
        return statuses

    def stop(self) -> None:
        """End Serve and its replicas; what they had logged is handed over first."""
        serve.shutdown()


def start_serve(config: DeployConfig, port: int) -> Deployment:
    """Start Serve and the replicas on config.host and `port` (from `claim_port`), once for a whole run.

    The registry's actor has to be there; a policy may come later (until then everything is answered by 503).
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(proxy_location="HeadOnly", http_options=HTTPOptions(host=config.host, port=port))
    handle = serve.run(build(config), name=APP, route_prefix="/")
    host = f"[{config.host}]" if ":" in config.host else config.host
    return Deployment(handle, f"http://{host}:{port}")
