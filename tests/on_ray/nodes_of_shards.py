"""Shards on two nodes of a Ray cluster on this machine, in a process of its own: one dies, both do, another comes.

python -m tests.on_ray.nodes_of_shards      prints where the shards were and what was drawn from them, as JSON
"""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import ray
from ray.cluster_utils import Cluster

from flywheel.cluster import Place
from flywheel.config import TrainConfig
from flywheel.errors import FlywheelError
from flywheel.replaying import ReplayConfig
from flywheel.store import on_ray
from flywheel.task import spec_of
from flywheel.tasks.cartpole import cartpole
from tests.store.test_table import episode

CONFIG = TrainConfig(algorithm="dqn", replay=ReplayConfig(capacity=20_000, shards=2))
TOLD = [episode(number, 1 + number % 7, digest="ab"[number % 2]) for number in range(40)]
SOON = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 3}
"""Settings of Ray by which a node that died is known to be dead within two seconds."""


class Nodes:
    """A head node, and others that train."""

    def __init__(self) -> None:
        self._small = {"object_store_memory": 100 * 2**20, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args={"_system_config": SOON, **self._small})
        self.address = self._cluster.address
        self.others: list[Any] = []

    def come(self) -> None:
        """Have another one that trains."""
        self.others.append(self._cluster.add_node(num_cpus=1, resources={"sim": 1}, **self._small))

    def die(self, node_id: str) -> None:
        """Have one die, with all its processes."""
        (one,) = [each for each in self.others if each.node_id == node_id]
        self.others.remove(one)
        self._cluster.remove_node(one, allow_graceful=False)

    def end(self) -> None:
        ray.shutdown()
        self._cluster.shutdown()


class Drawing:
    """Draws from two shards, as a trainer does."""

    def __init__(self) -> None:
        (head,) = [each["NodeID"] for each in ray.nodes() if "node:__internal_head__" in each["Resources"]]
        made: Any = on_ray.make_table(spec_of(cartpole), CONFIG, Place("shards", head, "sim").worker)
        self.front, self._handles, self._rng = made(), made.args[0], np.random.default_rng(7)

    def where(self) -> list[str]:
        """Return the node of each shard."""
        asked = [each.__ray_call__.remote(lambda _: ray.get_runtime_context().get_node_id()) for each in self._handles]
        return list(ray.get(asked))

    def fill(self) -> None:
        for each in TOLD:
            self.front.add(each)

    def drawn(self) -> dict[str, list[int]]:
        """Return how often each episode was drawn: by transitions, by sequences, and as a whole one."""
        found = {
            "transitions": self.front.sample(self._rng, 4000).observations[:, 0],
            "sequences": self.front.sequences(self._rng, 4000, 3).observations[:, 0, 0],
            "whole": self.front.whole(self._rng, 4000).observations[:, 0, 0],
        }
        return {name: np.bincount(each.astype(int), minlength=len(TOLD)).tolist() for name, each in found.items()}

    def said(self) -> str:
        """Return the error of a draw."""
        try:
            self.front.sample(self._rng, 500)
        except FlywheelError as error:
            return f"{type(error).__name__}: {error}"
        return "nothing"


def main() -> dict[str, Any]:
    """Return what came of it."""
    nodes = Nodes()
    nodes.come()
    nodes.come()
    ray.init(address=nodes.address, log_to_driver=False)
    shards = Drawing()
    shards.fill()
    found: dict[str, Any] = {"sim": [each.node_id for each in nodes.others], "at first": shards.where()}
    found["all"] = shards.drawn()
    began = time.monotonic()
    nodes.die(found["at first"][0])
    found |= {"one died": shards.drawn(), "seconds": time.monotonic() - began}
    found["lacks"] = [shards.front.lacks(), shards.front.lacks()]
    shards.fill()
    found |= {"then": shards.where(), "filled": shards.drawn()}
    nodes.die(found["then"][0])
    on_ray.WAIT_S = 20.0
    found["both died"] = shards.said()
    nodes.come()
    on_ray.WAIT_S = 300.0
    found |= {"one came": shards.said(), "lost": shards.front.lacks(), "new": nodes.others[0].node_id}
    shards.fill()
    found |= {"at last": shards.where(), "filled again": shards.drawn()}
    nodes.end()
    return found


if __name__ == "__main__":
    print(json.dumps(main()))
