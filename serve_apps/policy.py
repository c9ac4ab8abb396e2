"""The policy's replicas as an application of a Serve config file; the registry and observer actors run already."""

from __future__ import annotations

from typing import Any

import msgspec
from ray import serve

from flywheel.config import DeployConfig
from flywheel.deploy import on_serve


def build(args: dict[str, Any]) -> serve.Application:
    """Return the application; `args` are the `wheel`'s name and fields of DeployConfig, never a policy."""
    fields = dict(args)
    wheel = fields.pop("wheel")
    return on_serve.build(msgspec.convert(fields, DeployConfig), wheel)
