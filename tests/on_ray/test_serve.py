"""Ray Serve over real HTTP: policies change under load, nothing unjudged answers, nothing listens to the outside."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from flywheel.client import Client, RejectedError
from flywheel.config import Config, DeployConfig, ObserveConfig, StoreConfig
from flywheel.deploy.environment import claim_port
from flywheel.deploy.keys import CLIENT, token_file
from flywheel.deploy.on_ray import namespace
from flywheel.errors import FlywheelError, Refused
from flywheel.records import Steps
from flywheel.task import task_digest
from flywheel.tasks.cartpole import cartpole
from flywheel.testing import GOOD, write_linear_artifact
from tests.deploy.conftest import verdict_on

# Ray Serve's own models are written for an older pydantic
pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on:DeprecationWarning")
NAMESPACE = namespace("test-serve")
CONFIG = DeployConfig(port=0, poll_s=0.5)


class FakeObserver:
    """Counts rows; an end is durable when all of its steps came."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, int], str] = {}

    async def append(self, steps: Steps) -> None:
        for episode, t, digest in zip(steps.episodes, steps.t.tolist(), steps.digests, strict=True):
            self._rows.setdefault((episode, t), digest)

    async def end(self, steps: Steps) -> dict[str, tuple[int, ...]]:
        ends = zip(steps.episodes, steps.t.tolist(), strict=True)
        return {episode: tuple(t for t in range(n) if (episode, t) not in self._rows) for episode, n in ends}

    async def lose_everything(self) -> None:
        self._rows.clear()

    async def digests(self) -> set[str]:
        return set(self._rows.values())


@dataclasses.dataclass
class Served:
    """A running application with its registry and a fake observer."""

    deployment: Any
    registry: Any
    observer: Any
    run_dir: Path
    token: str

    def judged(self, number: float, outcome: str = "pass") -> str:
        """Return the digest of a registered policy with this outcome."""
        import ray

        gains = tuple(number * gain for gain in GOOD)
        artifact = write_linear_artifact(self.run_dir / "policies", cartpole, gains, version=int(number * 100))
        ray.get(self.registry.add.remote(artifact), timeout=30)
        now = time.time()
        verdict = verdict_on(artifact, outcome, judged_at=now, valid_until=now + 600)  # type: ignore[arg-type]
        ray.get(self.registry.record.remote(verdict), timeout=30)
        return artifact.digest

    def promote(self, digest: str) -> None:
        """Put a digest into service and see every replica confirm it."""
        import ray

        artifact, champion = (
            ray.get(ask, timeout=30) for ask in (self.registry.artifact.remote(digest), self.registry.champion.remote())
        )
        now = time.time()
        verdict = verdict_on(artifact, baseline=champion, judged_at=now, valid_until=now + 600)
        if champion != digest:
            ray.get(self.registry.record.remote(verdict), timeout=30)
        ray.get(self.registry.promote.remote(digest), timeout=30)
        assert {status["digest"] for status in self.deployment.reload()} == {digest}


@pytest.fixture(scope="module")
def served(ray_cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    ray = ray_cluster
    from flywheel.deploy import on_ray, on_serve

    run_dir = tmp_path_factory.mktemp("run")
    named = {"namespace": NAMESPACE, "num_cpus": 0}
    registry = ray.remote(on_ray.RegistryActor).options(name=on_ray.REGISTRY, **named).remote(
        str(run_dir), task_digest(cartpole)
    )  # fmt: skip
    observer = ray.remote(FakeObserver).options(name=on_ray.OBSERVER, **named).remote()
    ray.get(registry.run_dir.remote(), timeout=60)
    deployment = on_serve.start_serve(CONFIG, claim_port(CONFIG), "test-serve")
    assert on_serve.num_taken_in("test-serve") == 1, "HAProxy restarts no more"
    served = Served(deployment, registry, observer, run_dir, token_file(run_dir, CLIENT).read_text())
    assert httpx.get(f"{deployment.url}/v1/health").status_code == 503, "no policy yet"
    served.promote(served.judged(1.0))
    yield served
    on_serve.end_app("test-serve")
    ray.kill(registry)
    ray.kill(served.observer)


def play(client: Client, num_episodes: int, num_steps: int, seen: set[str]) -> None:
    """Play whole episodes on made-up observations and note which digests answered."""
    rng = np.random.default_rng(0)
    batch = client.batch()
    ids = batch.begin(num_episodes)
    for t in range(num_steps):
        batch.act(ids, rng.normal(0, 0.05, (num_episodes, 4)), np.ones(num_episodes) if t else None)
        seen.update(batch.digests(ids))
    batch.end(
        ids,
        np.zeros((num_episodes, 4)),
        np.ones(num_episodes),
        np.ones(num_episodes, bool),
        np.zeros(num_episodes, bool),
    )


def wait_for_requests(clients: list[Client], before: list[int]) -> None:
    """Return when each client, in a thread of its own, has made 20 more requests."""
    until = time.monotonic() + 60
    while not all(client.counters.requests > n + 20 for client, n in zip(clients, before, strict=True)):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_policies_change_under_load_without_a_lost_request(served: Served) -> None:
    import ray

    pids = {status["pid"] for status in served.deployment.status()}
    allowed = {served.deployment.status()[0]["digest"]}
    stop, seen, trouble = threading.Event(), set[str](), list[BaseException]()
    clients = [Client(served.deployment.url, served.token) for _ in range(3)]

    def load(client: Client) -> None:
        try:
            while not stop.is_set():
                play(client, 8, 20, seen)
        except BaseException as error:
            trouble.append(error)

    threads = [threading.Thread(target=load, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    refused = served.judged(9.0, "fail")
    for number in range(2, 8):
        answered = [client.counters.requests for client in clients]
        digest = served.judged(float(number))
        allowed.add(digest)
        served.promote(digest)
        with pytest.raises(Refused):
            ray.get(served.registry.promote.remote(refused), timeout=30)
        wait_for_requests(clients, answered)
    stop.set()
    for thread in threads:
        thread.join(60)
    assert not trouble
    for client in clients:
        counters = client.counters
        assert (counters.errors, counters.not_2xx, counters.not_answered) == (0, 0, 0)
        assert counters.requests == counters.attempts > 0
        client.close()
    assert seen <= allowed
    assert len(seen) > 1
    assert ray.get(served.observer.digests.remote(), timeout=30) <= allowed
    assert {status["pid"] for status in served.deployment.status()} == pids, "no replica was restarted"


def test_episodes_outlive_an_observer_that_forgets(served: Served) -> None:
    import ray

    with Client(served.deployment.url, served.token) as client:
        batch = client.batch()
        ids = batch.begin(3)
        for t in range(5):
            batch.act(ids, np.zeros((3, 4)), np.ones(3) if t else None)
        ray.get(served.observer.lose_everything.remote(), timeout=30)
        batch.end(ids, np.zeros((3, 4)), np.ones(3), [True] * 3, [False] * 3)
        assert batch.open == ()
        assert client.counters.errors == 0


def test_episodes_outlive_a_replica_that_is_killed(served: Served) -> None:
    (before,) = served.deployment.status()
    with Client(served.deployment.url, served.token) as client:
        batch = client.batch()
        ids = batch.begin(4)
        for t in range(6):
            if t == 3:
                os.kill(before["pid"], signal.SIGKILL)
            batch.act(ids, np.full((4, 4), 0.01 * t), np.ones(4) if t else None)
        batch.end(ids, np.zeros((4, 4)), np.ones(4), [True] * 4, [False] * 4)
        assert batch.open == ()
        assert client.counters.errors == 0
    (after,) = served.deployment.status()
    assert after["pid"] != before["pid"]
    assert after["digest"] == before["digest"]


def test_a_promotion_waits_for_a_replica_that_died(served: Served) -> None:
    (before,) = served.deployment.status()
    other = served.judged(3.0)
    served.promote(other)
    os.kill(before["pid"], signal.SIGKILL)
    served.deployment.confirm(other)
    (after,) = served.deployment.status()
    assert (after["digest"], after["pid"] != before["pid"]) == (other, True)
    with pytest.raises(FlywheelError, match=r"A replica did not take policy 00000000"):
        served.deployment.confirm("0" * 64, timeout_s=0.0)


def test_a_rollback_reaches_the_replicas(served: Served) -> None:
    import ray

    before = served.deployment.status()[0]["digest"]
    worse = served.judged(20.0)
    served.promote(worse)
    release = ray.get(served.registry.rollback.remote(), timeout=30)
    assert (release.digest, release.previous) == (before, worse)
    (status,) = served.deployment.reload()
    assert status["digest"] == before
    assert worse not in status["admissible"]


def test_the_door_over_http(served: Served) -> None:
    url = served.deployment.url
    with Client(url, "wrong") as client, pytest.raises(RejectedError) as caught:
        client.policy()
    assert caught.value.status == 401
    headers = {"Authorization": f"Bearer {served.token}"}
    body = '{"steps": [{"episode": "x", "t": 0, "observation": [0, NaN, 0, 0]}]}'
    response = httpx.post(f"{url}/v1/act", content=body, headers=headers)
    assert (response.status_code, response.json()["field"]) == (422, "steps[0].observation[1]")
    response = httpx.post(f"{url}/v1/act", content=b" " * (CONFIG.max_body + 1), headers=headers)
    assert response.status_code == 413


def test_a_token_counts_from_the_next_look_on_and_ends_with_the_one_after_it_is_revoked(served: Served) -> None:
    import ray

    def wait_for(client: Client, status: int) -> None:
        until, found = time.monotonic() + 30, 0
        while found != status:
            assert time.monotonic() < until, found
            found = 200
            try:
                client.policy()
            except RejectedError as error:
                found = error.status

    secret = ray.get(served.registry.add_token.remote("robot", ["read"], 5.0), timeout=30)
    with Client(served.deployment.url, secret) as client:
        wait_for(client, 200)
        with pytest.raises(RejectedError, match="scope read, and this takes act") as caught:
            client.act([{"episode": "x", "t": 0, "observation": [0.0] * 4}])
        assert caught.value.status == 403
        before = client.counters.not_2xx
        for _ in range(12):  # two seconds of its quota, and more
            client.policy()
        assert client.counters.not_2xx > before, "it was over its quota, and waited"
        ray.get(served.registry.revoke_token.remote("robot"), timeout=30)
        wait_for(client, 401)
    with Client(served.deployment.url, served.token) as client:
        assert client.policy()["digest"], "the others go on"


def test_nothing_of_serve_listens_to_the_outside(served: Served) -> None:
    port = int(served.deployment.url.rpartition(":")[2])
    names = ("METRICS_PORT", "STATS_PORT")
    ours = {port} | {int(os.environ[f"RAY_SERVE_HAPROXY_{name}"]) for name in names} | set(range(30_000, 31_001))
    ours.add(int(os.environ["RAY_SERVE_FALLBACK_PROXY_HTTP_PORT"]))
    doors = [line.split()[3].rpartition(":") for line in _listening()]
    found = {int(number): host for host, _, number in doors if int(number) in ours}
    assert port in found
    assert set(found.values()) == {"127.0.0.1"}, found


def _listening() -> list[str]:
    done = subprocess.run(["ss", "-ltnH"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_another_observer_takes_over_and_what_is_acknowledged_is_stored(served: Served) -> None:
    import ray

    from flywheel.deploy import on_ray
    from flywheel.observe.on_ray import ObserverActor
    from flywheel.store.on_ray import StoreActor

    store = ray.remote(StoreActor).options(name="store", num_cpus=0).remote(str(served.run_dir), StoreConfig())
    ray.get(store.count.remote(), timeout=60)
    with Client(served.deployment.url, served.token) as client:
        batch = client.batch()
        ids = batch.begin(8)
        for t in range(30):
            if t == 15:
                ray.kill(served.observer)
            batch.act(ids, np.full((8, 4), 0.001 * t), np.ones(8) if t else None)
        served.observer = (
            ray.remote(ObserverActor)
            .options(name=on_ray.OBSERVER, namespace=NAMESPACE, num_cpus=0)
            .remote(cartpole, ObserveConfig(), "store")
        )
        batch.end(ids, np.zeros((8, 4)), np.ones(8), [True] * 8, [False] * 8)
        assert client.counters.errors == 0
    assert set(ray.get(store.ids.remote(), timeout=30)) == set(ids)
    for episode in ray.get(store.read.remote(ids), timeout=30):
        assert episode.num_steps == 30
        assert set(episode.digests) == {served.deployment.status()[0]["digest"]}
        assert episode.rewards.tolist() == [1.0] * 30
        np.testing.assert_allclose(episode.observations[:30, 0], 0.001 * np.arange(30), rtol=1e-6)
    ray.kill(store)


def test_a_replica_holds_no_torch_and_no_rllib(served: Served) -> None:
    for status in served.deployment.status():
        mapped = Path(f"/proc/{status['pid']}/maps").read_text()
        assert "libtorch" not in mapped
        assert "onnxruntime" in mapped


def test_a_port_in_use_is_named_before_anything_starts(served: Served) -> None:
    from flywheel.errors import UsageError

    port = int(served.deployment.url.rpartition(":")[2])
    with pytest.raises(UsageError, match=str(port)):
        claim_port(dataclasses.replace(CONFIG, port=port))
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        with pytest.raises(UsageError):
            claim_port(dataclasses.replace(CONFIG, port=door.getsockname()[1]))


def test_the_config_file_of_serve_is_valid() -> None:
    import yaml  # type: ignore[import-untyped]
    from ray.serve.schema import ServeDeploySchema

    path = Path(__file__).parents[2] / "serve_apps" / "flywheel.yaml"
    applications = ServeDeploySchema.model_validate(yaml.safe_load(path.read_text())).applications
    assert [application.name for application in applications] == ["policy", "page"]
    for application in applications:
        module, _, name = application.import_path.partition(":")
        application_of = getattr(importlib.import_module(module), name)
        assert application_of(application.args) is not None


def test_the_page_is_a_deployment_of_its_own_and_open_pages_hold_up_nobody(served: Served) -> None:
    from ray import serve

    from flywheel import archive
    from serve_apps.page import build

    config = archive._configuration(Config(task="cartpole"), "cartpole", task_digest(cartpole))
    (served.run_dir / archive.CONFIG).write_text(config)
    serve.run(build({"wheel": "test-serve", "host": "127.0.0.1"}), name="page", route_prefix="/page")
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(httpx.Client(base_url=served.deployment.url, timeout=20.0))
        page = client.get("/page", follow_redirects=True)
        assert page.status_code == 200 and page.url.path == "/page/" and 'src="static/js/main.js"' in page.text
        assert client.get("/page/static/js/main.js").headers["content-type"].startswith("text/javascript")
        for _ in range(8):
            stream = stack.enter_context(client.stream("GET", "/page/api/v1/events"))
            assert next(stream.iter_lines()) == "retry: 1000"
        now = client.get("/page/api/v1/now").json()
        assert now["about"]["run"] == served.run_dir.name and now["role"] == "read"
        assert client.get("/page/api/v1/now", headers={"host": "evil.example"}).status_code == 421
        wrong = client.post("/page/api/v1/session", json={"token": "x"})
        assert wrong.status_code == 403
    serve.delete("page")
