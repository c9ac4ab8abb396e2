"""Whether training can go on from a policy's weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from flywheel.config import TrainConfig
from flywheel.errors import Refused
from flywheel.policy import activation_of
from flywheel.records import ELSEWHERE

_AS = {"appo": "ppo"}
"""Algorithms that have another one's networks."""
_SHAPING = ("model_config", "rl_module_spec")


def network_of(config: TrainConfig) -> dict[str, Any]:
    """Return what `train.rllib` says of the network, which weights alone don't tell; empty where it is the usual."""
    found: dict[str, Any] = json.loads(json.dumps({name: config.rllib.get(name) for name in _SHAPING}))
    return {name: value for name, value in found.items() if value}


def check_start(digest: str, trained_on: Mapping[str, Any], config: TrainConfig) -> None:
    """Raise Refused for a policy that another algorithm made, or other layers, or that came as a bare network.

    `trained_on` is its manifest's. Manifests that name no algorithm are told by their weights, once they are loaded.
    """
    if trained_on.get("strategy") == ELSEWHERE:
        raise Refused(
            f"Policy {digest[:8]} was trained elsewhere and came as a network alone, without weights that training "
            "could go on from: start from another one, or afresh."
        )
    theirs = str(trained_on.get("algorithm", config.algorithm))
    if _AS.get(theirs, theirs) != _AS.get(config.algorithm, config.algorithm):
        raise Refused(
            f"Policy {digest[:8]} was trained by {theirs}, and {config.algorithm} has other networks: set "
            f"train.algorithm to {theirs}, or start afresh."
        )
    if (made := activation_of(trained_on)) != config.activation:
        raise Refused(
            f"Policy {digest[:8]} was trained with {made} between the layers, and train.activation is "
            f"{config.activation}: set it to {made}, or start afresh."
        )
    if (made_of := trained_on.get("network", {})) != (ours := network_of(config)):
        raise Refused(
            f"Policy {digest[:8]} has the network that train.rllib gave as {made_of or 'nothing'}, and here it gives "
            f"{ours or 'nothing'}: give the same, or start afresh."
        )
