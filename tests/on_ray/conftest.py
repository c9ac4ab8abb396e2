"""One local Ray cluster of 2 CPUs for all tests in this folder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Any]:
    """Start Ray once, with Serve's environment set before it, and end it with the session."""
    import os

    from flywheel.config import DeployConfig
    from flywheel.deploy.environment import serve_environment

    os.environ.update(serve_environment(DeployConfig()))
    import ray

    ray.init(address="local", num_cpus=2, object_store_memory=200 * 2**20, include_dashboard=False)
    yield ray
    ray.shutdown()
