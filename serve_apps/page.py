"""The page as an application of a Serve config file, beside the run directory on the head node.

Its replica is a process of its own, so that nothing that people do on the page can slow a decision.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import ray
from ray import serve
from ray.serve.schema import LoggingConfig

from flywheel.config import PageConfig
from flywheel.deploy.on_ray import REGISTRY, namespace
from flywheel.page.guard import App
from flywheel.watch import app_of
from flywheel.window import Window

HEAD = "node:__internal_head__"
"""Resource that only the head node has, where the run directory is."""


@serve.ingress()
class PageReplica:
    """One Serve replica that shows the run directory of a wheel whose registry's actor is up."""

    def __init__(self, config: PageConfig, wheel: str) -> None:
        """Find the run directory, which has to be on this node."""
        registry = ray.get_actor(REGISTRY, namespace=namespace(wheel))
        self._window = Window(Path(ray.get(registry.run_dir.remote())))
        self._config = config

    def __serve_build_asgi_app__(self) -> App:
        return app_of(self._window, self._config)


def build(args: dict[str, Any]) -> serve.Application:
    """Return the application; `args` are the `wheel`'s name and fields of PageConfig.

    `host` is the address that Serve itself listens on: on anything but loopback even reading needs a token.
    """
    fields = dict(args)
    wheel = fields.pop("wheel")
    config = msgspec.convert(fields, PageConfig)
    deployment = serve.deployment(
        PageReplica,
        name="PageReplica",
        num_replicas=1,
        # an open page holds a request for as long as it is open, beside those that it asks for
        max_ongoing_requests=2 * config.max_streams,
        graceful_shutdown_timeout_s=1.0,
        graceful_shutdown_wait_loop_s=0.1,
        ray_actor_options={"num_cpus": 0, "resources": {HEAD: 0.001}},
        logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"),
    )
    return deployment.bind(config, wheel)
