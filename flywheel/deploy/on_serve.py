"""The policy's replicas on Ray Serve, and how Serve is started and ended. Importing this reads Serve's environment."""

from __future__ import annotations

import logging
import os
import time
from typing import Any

import ray
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.context import _get_global_client
from ray.serve.schema import LoggingConfig

from flywheel.config import DeployConfig
from flywheel.deploy.door import Door
from flywheel.deploy.on_ray import OBSERVER, REGISTRY, ObserverActorLink, RegistryActorLink
from flywheel.deploy.service import Service


@serve.ingress()
class PolicyReplica:
    """One Serve replica: the door and the service behind it. Changing the policy never restarts it."""

    def __init__(self, config: DeployConfig, namespace: str) -> None:
        """Link to the registry and the observer of a namespace; keys and policy come when ASGI's lifespan starts."""
        registry, observer = RegistryActorLink(REGISTRY, namespace), ObserverActorLink(OBSERVER, namespace)
        self._service = Service(config, registry, observer, time.time)

    def __serve_build_asgi_app__(self) -> Door:
        return Door(self._service)

    async def reload(self) -> dict[str, Any]:
        """Follow the registry now; return who answers here."""
        await self._service.reload()
        return await self.status()

    async def status(self) -> dict[str, Any]:
        """Return who answers here, what waits, this process's id and its node's."""
        return {**self._service.status(), "pid": os.getpid(), "node": ray.get_runtime_context().get_node_id()}


def build(config: DeployConfig, namespace: str) -> serve.Application:
    """Return the Serve application of the replicas of the wheel whose actors are in this namespace of Ray."""
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
    return deployment.bind(config, namespace)


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


def start_serve(config: DeployConfig, port: int, app: str, namespace: str, route: str = "/") -> Deployment:
    """Start Serve, unless the cluster has it already, and the replicas as application `app` under `route`.

    An application of that name that runs already is left as it is. `port` is from `claim_port`, and counts only where
    Serve is started. The registry's actor has to be there; a policy may come later (until then: 503).
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(proxy_location="HeadOnly", http_options=HTTPOptions(host=config.host, port=port))
    if app not in serve.status().applications:
        serve.run(build(config, namespace), name=app, route_prefix=route)
    return running(app, route)


def is_up() -> bool:
    """Say whether the cluster has Serve already."""
    return bool(serve.status().proxies)


def running(app: str, route: str) -> Deployment:
    """Return the application `app` that runs already."""
    options = _get_global_client().http_config
    host = f"[{options.host}]" if ":" in options.host else options.host
    return Deployment(serve.get_app_handle(app), f"http://{host}:{options.port}{route.rstrip('/')}")


def end_app(app: str) -> None:
    """End an application's replicas, and Serve with the last one; what they had logged is handed over first."""
    serve.delete(app)
    if not serve.status().applications:
        serve.shutdown()
