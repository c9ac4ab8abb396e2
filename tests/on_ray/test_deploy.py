"""`serve deploy serve_apps/flywheel.yaml` on a cluster: the same applications, two replicas on two nodes."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml  # type: ignore[import-untyped]

from flywheel.client import Client
from flywheel.deploy.environment import free_ports
from flywheel.store import intake
from tests.on_ray.test_cluster import ROOT, Cluster, token

FILE = ROOT / "serve_apps" / "flywheel.yaml"


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    yield cluster
    cluster.stop()


def deployed(cluster: Cluster, path: Path) -> dict[str, Any]:
    """Deploy a file as a user does it, and return Serve's applications once all of them run."""
    api = f"http://127.0.0.1:{cluster.dashboard}"
    command = [str(Path(sys.executable).parent / "serve"), "deploy", "--address", api, str(path)]
    done = subprocess.run(command, env=cluster.environment, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    shown = {"Authorization": f"Bearer {cluster.environment['RAY_AUTH_TOKEN']}"}
    until = time.monotonic() + 180
    while True:
        found = httpx.get(f"{api}/api/serve/applications/", headers=shown, trust_env=False, timeout=60.0).json()
        applications: dict[str, Any] = found["applications"]
        told = {name: (each["status"], each["message"]) for name, each in applications.items()}
        if told and all(status == "RUNNING" for status, _ in told.values()):
            return applications
        failed = any(status == "DEPLOY_FAILED" for status, _ in told.values())
        assert not failed and time.monotonic() < until, json.dumps(told, indent=1)
        time.sleep(1.0)


@pytest.mark.filterwarnings("ignore:Using extra keyword arguments on:DeprecationWarning")
def test_its_replicas_are_spread_over_the_nodes_that_are_up(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from flywheel.deploy import on_serve
    from serve_apps.policy import build

    told: list[Any] = []
    monkeypatch.setattr(on_serve, "build", lambda *given: told.append(given))
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True}, {"Alive": True}, {"Alive": False}])
    build({"wheel": "flywheel", "num_replicas": 2})
    assert [given[1:] for given in told] == [("flywheel", 2)]


def test_the_file_brings_up_two_replicas_on_two_nodes_and_the_page(cluster: Cluster, tmp_path: Path) -> None:
    run_dir = tmp_path / "flywheel"
    digest = cluster.ask("own", cluster.address, run_dir)["digest"]
    document = yaml.safe_load(FILE.read_text())
    document["http_options"]["port"] = free_ports(1)[0]
    path = tmp_path / "flywheel.yaml"
    path.write_text(yaml.safe_dump(document))

    assert deployed(cluster, path).keys() == {"policy", "page"}
    before = cluster.ask("replicas", cluster.address)
    assert len({replica["node"] for replica in before}) == len(before) == 2
    assert {replica["digest"] for replica in before} == {digest}

    url = f"http://127.0.0.1:{document['http_options']['port']}"
    with Client(url, token(run_dir)) as client:
        batch = client.batch()
        ids = batch.begin(4)
        for t in range(40):
            batch.act(ids, np.zeros((4, 4)), np.ones(4) if t else None)
        batch.end(ids, np.zeros((4, 4)), np.ones(4), [False] * 4, [True] * 4)
        assert batch.open == () and client.counters.errors == 0
    with contextlib.closing(intake.open_readonly(run_dir)) as store:
        assert {episode.digests for episode in store.read(ids)} == {(digest,) * 40}
    assert httpx.get(f"{url}/page/", timeout=30.0).status_code == 200

    assert deployed(cluster, path).keys() == {"policy", "page"}
    after = cluster.ask("replicas", cluster.address)
    assert {replica["pid"] for replica in after} == {replica["pid"] for replica in before}, (
        "the same again is no change"
    )
    answered = [replica["decisions"] for replica in after]
    assert sum(answered) >= 160 and min(answered) > 0, answered
