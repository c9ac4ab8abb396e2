"""The policy's replicas as an application of a Serve config file; the registry and observer actors run already."""

from __future__ import annotations

from typing import Any

import msgspec
import ray
from ray import serve

from flywheel.config import DeployConfig
from flywheel.deploy import on_serve


def build(args: dict[str, Any]) -> serve.Application:
    """Return the application; `args` are the `wheel`'s name and fields of DeployConfig, never a policy.

    Its replicas are spread over the cluster's nodes, so that one of them may be lost.
    """
    fields = dict(args)
    wheel = fields.pop("wheel")
    nodes = sum(node["Alive"] for node in ray.nodes()) if ray.is_initialized() else 1
    return on_serve.build(msgspec.convert(fields, DeployConfig), wheel, nodes)
