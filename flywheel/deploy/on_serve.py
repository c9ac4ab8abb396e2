"""The policy's replicas on Ray Serve, and how Serve is started and ended. Importing this reads Serve's environment."""

from __future__ import annotations

import asyncio
import csv
import dataclasses
import fcntl
import logging
import math
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import ray
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.context import _get_global_client
from ray.serve.schema import LoggingConfig

from flywheel.config import DeployConfig, TraceConfig
from flywheel.deploy.door import Door
from flywheel.deploy.on_ray import OBSERVER, REGISTRY, ObserverActorLink, RegistryActorLink, namespace
from flywheel.deploy.requests import Requests
from flywheel.deploy.service import Service
from flywheel.deploy.shortcut import open_to
from flywheel.deploy.traces import TOLD, Traces
from flywheel.errors import FlywheelError
from flywheel.meters import readings
from flywheel.meters.on_ray import Recorder
from flywheel.trace import on_ray as trace

log = logging.getLogger(__name__)
_AGAIN_S = 0.25
"""Seconds until replicas are asked again that did not answer as they should."""


@serve.ingress()
class PolicyReplica:
    """One Serve replica: the door and the service behind it. Changing the policy never restarts it."""

    def __init__(self, config: DeployConfig, wheel: str, tracing: TraceConfig) -> None:
        """Link to the wheel's registry and observer; keys and policy come when ASGI's lifespan starts."""
        self._config, self._meters, space = config, Recorder(wheel), namespace(wheel)
        self._requests = Requests()
        registry, observer = RegistryActorLink(REGISTRY, space), ObserverActorLink(OBSERVER, space)
        told = trace.outlet(dataclasses.replace(tracing, max_waiting=TOLD), space)
        self._traces = Traces(tracing.sample_share, trace.outlet(tracing, space), told)
        self._service = Service(config, registry, observer, time.time, self._traces)

    def __serve_build_asgi_app__(self) -> Any:
        return open_to(Door(self._service, self._requests))

    async def check_health(self) -> None:
        """Report the replica's numbers; Serve asks every few seconds."""
        if self._service.is_started:
            self._meters.record(readings.of_replica(self._service.status()))
            self._meters.record(self._requests.take())
            spans = self._traces.counts
            self._meters.record(readings.of_spans(spans.sent, spans.lost))

    async def settings(self) -> DeployConfig:
        """Return the configuration that it was started with."""
        return self._config

    async def reload(self) -> dict[str, Any]:
        """Follow the registry now; return who answers here."""
        await self._service.reload()
        return await self.status()

    async def flush(self, timeout_s: float) -> None:
        """Hand over the spans that wait, as far as time allows."""
        self._traces.make()
        await asyncio.to_thread(self._traces.flush, timeout_s)

    async def status(self) -> dict[str, Any]:
        """Return who answers here, what waits, this process's id and its node's."""
        return {**self._service.status(), "pid": os.getpid(), "node": ray.get_runtime_context().get_node_id()}


def build(
    config: DeployConfig, wheel: str, num_nodes: int = 1, tracing: TraceConfig | None = None
) -> serve.Application:
    """Return the Serve application of the replicas of a wheel, spread over so many nodes, one of which may be lost."""
    deployment = serve.deployment(
        PolicyReplica,
        name="PolicyReplica",
        num_replicas=config.num_replicas,
        max_replicas_per_node=math.ceil(config.num_replicas / max(1, num_nodes - 1)),
        max_ongoing_requests=1000,
        max_surge_percent=100,
        graceful_shutdown_timeout_s=1.0,
        graceful_shutdown_wait_loop_s=0.1,
        health_check_period_s=5.0,
        ray_actor_options={"num_cpus": 0},
        logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"),
    )
    return deployment.bind(config, wheel, tracing or TraceConfig())


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

    def confirm(self, digest: str, timeout_s: float = 60.0) -> None:
        """Return when every replica answers with this policy: one that died is waited for, and asked again.

        Raises FlywheelError when time is over; the release stands, and replicas follow by themselves.
        """
        until = time.monotonic() + timeout_s
        while trouble := self._otherwise(digest):
            if time.monotonic() > until:
                raise FlywheelError(trouble)
            time.sleep(_AGAIN_S)  # Serve tells nobody when a replica is back

    def _otherwise(self, digest: str) -> str:
        """Make every replica follow the registry now; return why not all answer with this policy, "" where they do."""
        try:
            statuses = self.reload()
        except Exception as error:  # Ray's, Serve's or a room's
            return f"Replicas could not be told of policy {digest[:8]}: {error}"
        if not statuses:
            return f"No replica is up that could take policy {digest[:8]}."
        others = [status for status in statuses if status["digest"] != digest]
        return f"A replica did not take policy {digest[:8]}: {others[0]['trouble']}" if others else ""

    def status(self, timeout_s: float = 30.0) -> list[dict[str, Any]]:
        """Return each replica's status."""
        statuses: list[dict[str, Any]] = self._handle.broadcast("status").results(timeout_s=timeout_s)
        return statuses

    def flush(self, timeout_s: float) -> None:
        """Let every replica hand over its spans, as far as time allows."""
        self._handle.broadcast("flush", timeout_s).results(timeout_s=timeout_s + 1.0)

    def settings(self, timeout_s: float = 30.0) -> DeployConfig | None:
        """Return the replicas' configuration, with Serve's own host and port; None while no replica is up."""
        found: list[DeployConfig] = self._handle.broadcast("settings").results(timeout_s=timeout_s)
        listening = _get_global_client().http_config
        return dataclasses.replace(found[0], host=listening.host, port=listening.port) if found else None


def start_serve(
    config: DeployConfig, port: int, wheel: str, route: str = "/", tracing: TraceConfig | None = None
) -> Deployment:
    """Start Serve, unless the cluster has it already, and the replicas as an application of the wheel's name.

    An application of that name that runs already is left as it is. `port` is from `claim_port`, and counts only where
    Serve is started. The registry's actor has to be there; a policy may come later (until then: 503).
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    with _alone():
        serve.start(proxy_location="HeadOnly", http_options=HTTPOptions(host=config.host, port=port))
        if wheel not in serve.status().applications:
            nodes = sum(node["Alive"] for node in ray.nodes())
            serve.run(build(config, wheel, nodes, tracing), name=wheel, route_prefix=route)
            _wait_for_haproxy(wheel)
    return running(wheel, route)


def _wait_for_haproxy(wheel: str, timeout_s: float = 15.0) -> None:
    """Return when HAProxy here passes requests on to all replicas, or when time is over.

    Serve says that all are up some moments before: each one that HAProxy takes in then restarts it, and so cuts off the
    requests of those moments.
    """
    (deployment,) = serve.status().applications[wheel].deployments.values()
    num, until = deployment.replica_states.get("RUNNING", 0), time.monotonic() + timeout_s
    while (known := num_taken_in(wheel)) is not None and known < num:
        if time.monotonic() > until:
            log.warning("HAProxy passes requests on to %d of %d replicas.", known, num)
            return
        time.sleep(_AGAIN_S)  # nobody tells


def num_taken_in(wheel: str) -> int | None:
    """Return how many of a wheel's replicas HAProxy passes requests on to; None where it isn't this process's own."""
    port = os.environ.get("RAY_SERVE_HAPROXY_STATS_PORT")
    if not port:
        return None
    try:
        page = httpx.get(f"http://127.0.0.1:{port}/stats;csv", timeout=5.0).text
    except httpx.HTTPError:
        return None
    rows = csv.DictReader(page.removeprefix("# ").splitlines())
    mine = [row for row in rows if row["pxname"] == f"http-{wheel}" and row["svname"].startswith("SERVE_REPLICA")]
    num: int = sum(row["status"].startswith("UP") for row in mine)
    return num


@contextmanager
def _alone() -> Iterator[None]:
    """Let one process at a time start or end Serve: the end of one wheel must not take away what another starts.

    All of them are on the cluster's head, beside the run directories, so that a locked file there is enough.
    """
    address = ray.get_runtime_context().gcs_address.replace(":", "-")
    with open(Path(tempfile.gettempdir()) / f"flywheel-serve-{os.getuid()}-{address}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def is_up() -> bool:
    """Say whether the cluster has Serve already."""
    return bool(serve.status().proxies)


def running(wheel: str, route: str) -> Deployment:
    """Return the application of a wheel that runs already."""
    options = _get_global_client().http_config
    host = f"[{options.host}]" if ":" in options.host else options.host
    return Deployment(serve.get_app_handle(wheel), f"http://{host}:{options.port}{route.rstrip('/')}")


def end_app(wheel: str) -> None:
    """End a wheel's replicas, and Serve with the last one; what they had logged is handed over first."""
    with _alone():
        serve.delete(wheel)
        if not serve.status().applications:
            serve.shutdown()
