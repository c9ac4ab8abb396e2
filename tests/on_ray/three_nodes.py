"""A Ray cluster of a head and two workers on this machine, in a process of its own; and a look into it from another.

python -m tests.on_ray.three_nodes up DASHBOARD_PORT      prints the address; SIGTERM ends it
python -m tests.on_ray.three_nodes look RUN_DIR           prints who runs where, as JSON
python -m tests.on_ray.three_nodes end RUN_DIR            ends the wheel of a run directory
python -m tests.on_ray.three_nodes judge ADDRESS          judges with four workers, and prints who played what
python -m tests.on_ray.three_nodes own ADDRESS RUN_DIR    starts the owners that `serve deploy` doesn't, and a policy
python -m tests.on_ray.three_nodes replicas ADDRESS       prints the status of each replica that was deployed
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from flywheel.records import Episode
from tests.uneven import BACK, UNEVEN

MIB = 2**20


def up(dashboard_port: int) -> None:
    """Start the three nodes and wait for SIGTERM."""
    from flywheel.config import DeployConfig
    from flywheel.deploy.environment import free_ports, serve_environment

    os.environ.update(serve_environment(DeployConfig()))
    from ray.cluster_utils import Cluster

    # jobs are submitted to a node's agent, whose port is a fixed one by default: another Ray may have it
    first, *others = ({"dashboard_agent_listen_port": port} for port in free_ports(3))
    head = {"num_cpus": 1, "dashboard_port": dashboard_port, "include_dashboard": True, **first}
    cluster = Cluster(initialize_head=True, head_node_args={**head, "object_store_memory": 150 * MIB})
    for agent in others:
        cluster.add_node(num_cpus=2, resources={"sim": 2}, object_store_memory=100 * MIB, **agent)
    cluster.wait_for_nodes()
    print(cluster.address, flush=True)
    signal.sigwait([signal.SIGTERM])
    cluster.shutdown()


def look(run_dir: Path) -> dict[str, Any]:
    """Return the nodes, the wheel's replicas with their nodes, and every living actor's class, namespace and node."""
    from flywheel.attach import attach

    attached = attach(run_dir)
    assert attached is not None
    import ray
    from ray.util.state import list_actors

    from flywheel.deploy import on_serve

    actors = [actor for actor in list_actors(detail=True, limit=200) if actor.state == "ALIVE"]
    deployment = on_serve.running(attached.place.name, attached.route)
    found = {
        "url": deployment.url,
        "sim": [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("sim")],
        "replicas": deployment.status(),
        "actors": [[actor.class_name, actor.ray_namespace, actor.node_id] for actor in actors],
    }
    attached.close()
    return found


def player(_: Episode) -> float:
    """Return the process that played an episode, in the place of its margin."""
    return float(os.getpid())


def judge(address: str) -> dict[str, Any]:
    """Return each trial's chain, length and process, the node of each process, and those that simulate."""
    import ray
    from ray.util.state import list_actors

    from flywheel.config import GateConfig
    from flywheel.gate.on_ray import GateActor
    from flywheel.policy import bundle
    from flywheel.testing import write_linear_artifact

    ray.init(address=address, namespace="judge", log_to_driver=False)
    task = dataclasses.replace(UNEVEN, margin=player)
    actor = ray.remote(GateActor).options(num_cpus=0, resources={"sim": 0.001})
    gate = actor.remote(task, GateConfig(workers=4, num_sims=200), claims={"sim": 0.001})
    with tempfile.TemporaryDirectory() as directory:
        policy = bundle(write_linear_artifact(Path(directory), task, BACK))
    verdict = ray.get(gate.judge.remote(policy, None, None, 7))
    players = [actor for actor in list_actors(detail=True, limit=200) if actor.class_name == "Worker"]
    return {
        "trials": [[trial.chain, trial.length, int(trial.margin)] for trial in verdict.trials],
        "nodes": {actor.pid: actor.node_id for actor in players if actor.state == "ALIVE"},
        "sim": [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("sim")],
    }


WHEEL = "flywheel"
"""As serve_apps/flywheel.yaml names it."""


def own(address: str, run_dir: Path) -> dict[str, Any]:
    """Start a wheel's registry, store and observer on the head node, and put a policy into service; return its digest.

    They go on when this process has ended, as those of a submitted loop do.
    """
    import ray

    from flywheel import archive
    from flywheel.cluster import STORE, Place
    from flywheel.config import Config, DeployConfig, ObserveConfig, StoreConfig
    from flywheel.deploy.on_ray import OBSERVER, REGISTRY, RegistryActor
    from flywheel.observe.on_ray import ObserverActor
    from flywheel.policy import read_files
    from flywheel.store.on_ray import StoreActor
    from flywheel.task import task_digest
    from flywheel.tasks.cartpole import cartpole
    from flywheel.testing import write_linear_artifact
    from tests.deploy.conftest import verdict_on

    run_dir.mkdir()
    (run_dir / archive.CONFIG).write_text(archive._configuration(Config(), "cartpole", task_digest(cartpole)))
    ray.init(address=address, namespace=Place(WHEEL).namespace, log_to_driver=False)
    (head,) = [node["NodeID"] for node in ray.nodes() if "node:__internal_head__" in node["Resources"]]
    place = Place(WHEEL, head)
    task = task_digest(cartpole)
    registry = place.owner(RegistryActor, REGISTRY).remote(str(run_dir), task, WHEEL, DeployConfig(), 0.05)
    place.owner(StoreActor, STORE).remote(str(run_dir), StoreConfig(), WHEEL)
    observer = place.owner(ObserverActor, OBSERVER).remote(cartpole, ObserveConfig(), STORE, WHEEL, place.namespace)
    with tempfile.TemporaryDirectory() as directory:
        artifact = write_linear_artifact(Path(directory), cartpole)
        ray.get(registry.write.remote(artifact.digest, read_files(Path(artifact.uri))))
    now = time.time()
    ray.get(registry.record.remote(verdict_on(artifact, judged_at=now, valid_until=now + 600.0)))
    ray.get(observer.release.remote(ray.get(registry.promote.remote(artifact.digest)), 0.05))
    return {"digest": artifact.digest}


def replicas(address: str) -> list[dict[str, Any]]:
    """Return the status of each replica of the application that the file calls policy."""
    import ray

    from flywheel.deploy import on_serve

    ray.init(address=address, log_to_driver=False)
    return on_serve.running("policy", "/").status()


if __name__ == "__main__":
    word, argument, *more = sys.argv[1:]
    if word == "up":
        up(int(argument))
    elif word == "look":
        print(json.dumps(look(Path(argument))))
    elif word == "judge":
        print(json.dumps(judge(argument)))
    elif word == "own":
        print(json.dumps(own(argument, Path(more[0]))))
    elif word == "replicas":
        print(json.dumps(replicas(argument)))
    else:
        from flywheel.attach import end

        end(Path(argument))
