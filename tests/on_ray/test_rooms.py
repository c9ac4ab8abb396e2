"""Gate, registry, Serve, observer and store together, with hand-made policies: what is refused never serves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from flywheel.client import Client
from flywheel.config import DeployConfig, GateConfig, ObserveConfig, StoreConfig
from flywheel.deploy.environment import claim_port
from flywheel.deploy.on_ray import namespace
from flywheel.errors import Refused
from flywheel.gate.on_ray import GateActor
from flywheel.observe.on_ray import ObserverActor
from flywheel.policy import bundle, load
from flywheel.records import Artifact, Outcome
from flywheel.store.on_ray import StoreActor
from flywheel.task import task_digest
from flywheel.tasks.cartpole import cartpole
from flywheel.testing import BAD, GOOD, write_linear_artifact
from tests.test_readme import block

# Ray Serve's own models are written for an older pydantic
pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on:DeprecationWarning")
NAMESPACE = namespace("test")
CONFIG = DeployConfig(port=0)
STORE = "store-of-test-rooms"


@dataclass
class Rooms:
    """Every room that a policy meets after training."""

    ray: Any
    run_dir: Path
    gate: Any
    registry: Any
    store: Any
    observer: Any
    deployment: Any
    token: str

    def ask(self, method: Any, *arguments: Any, **named: Any) -> Any:
        """Call an actor and wait."""
        return self.ray.get(method.remote(*arguments, **named), timeout=60)

    def submit(self, gains: tuple[float, ...]) -> tuple[Artifact, Outcome]:
        """Register a policy and let the gate judge it against the one in service."""
        artifact = write_linear_artifact(self.run_dir / "policies", cartpole, gains)
        self.ask(self.registry.add, artifact)
        champion = self.ask(self.registry.champion)
        baseline = self.ask(self.registry.bundle, champion) if champion else None
        verdict = self.ask(self.registry.record, self.ask(self.gate.judge, bundle(artifact), baseline, None, 7))
        return artifact, verdict.outcome

    def promote(self, artifact: Artifact) -> None:
        """Put a policy into service, watched by the observer, on every replica."""
        release = self.ask(self.registry.promote, artifact.digest)
        self.ask(self.observer.release, release, 0.05)
        assert {status["digest"] for status in self.deployment.reload()} == {artifact.digest}

    def play(self, num_episodes: int, num_steps: int = 20) -> set[str]:
        """Play short episodes over HTTP and return the digests that answered."""
        seen: set[str] = set()
        with Client(self.deployment.url, self.token) as client:
            batch = client.batch()
            ids = batch.begin(num_episodes)
            observations = np.zeros((num_episodes, 4))
            for _ in range(num_steps):
                batch.act(ids, observations, np.ones(num_episodes))
                seen.update(batch.digests(ids))
            over = np.ones(num_episodes, bool)
            batch.end(ids, observations, np.ones(num_episodes), over, ~over)
        return seen


@pytest.fixture(scope="module")
def rooms(ray_cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rooms]:
    ray = ray_cluster
    from flywheel.deploy import on_ray, on_serve

    run_dir = tmp_path_factory.mktemp("run")
    named = {"namespace": NAMESPACE, "num_cpus": 0}
    gate = ray.remote(GateActor).options(num_cpus=0).remote(cartpole, GateConfig())
    registry = ray.remote(on_ray.RegistryActor).options(name=on_ray.REGISTRY, **named).remote(
        str(run_dir), task_digest(cartpole)
    )  # fmt: skip
    store = ray.remote(StoreActor).options(name=STORE, num_cpus=0).remote(str(run_dir), StoreConfig())
    ray.get(store.count.remote(), timeout=60)
    observer = ray.remote(ObserverActor).options(name=on_ray.OBSERVER, **named).remote(cartpole, ObserveConfig(), STORE)
    secrets = ray.get(registry.secrets.remote(), timeout=60)
    deployment = on_serve.start_serve(CONFIG, claim_port(CONFIG), "test")
    yield Rooms(ray, run_dir, gate, registry, store, observer, deployment, secrets.token)
    on_serve.end_app("test")
    for actor in (observer, store, registry, gate):
        ray.kill(actor)


def test_a_refused_candidate_never_serves_and_the_old_policy_goes_on(rooms: Rooms) -> None:
    good, outcome = rooms.submit(GOOD)
    assert outcome == "pass"
    rooms.promote(good)
    assert rooms.play(8) == {good.digest}

    bad, outcome = rooms.submit(BAD)
    assert outcome == "fail"
    with pytest.raises(Refused, match=bad.digest[:12]):
        rooms.ask(rooms.registry.promote, bad.digest)
    rooms.deployment.reload()
    assert rooms.play(8) == {good.digest}
    assert rooms.ask(rooms.registry.champion) == good.digest
    assert rooms.ask(rooms.registry.verdict, bad.digest).outcome == "fail"
    assert rooms.ask(rooms.store.count, good.digest, "production") == 16


def test_every_stored_action_can_be_computed_again(rooms: Rooms) -> None:
    from flywheel.draws import draws

    rooms.play(4)
    for episode in rooms.ask(rooms.store.recent, 4):
        artifact = rooms.ask(rooms.registry.artifact, episode.digests[0])
        uniform = draws([episode.draw_key] * episode.num_steps, range(episode.num_steps), artifact.spec.num_draws)
        actions, logps = load(artifact).act(episode.observations[:-1], uniform)
        assert np.array_equal(actions, episode.raw_actions)
        assert np.array_equal(logps, episode.logps)


def test_the_clients_example_in_the_readme_runs(rooms: Rooms) -> None:
    text = block("client.episode()").replace("http://127.0.0.1:8000", rooms.deployment.url)
    before = rooms.ask(rooms.store.count)
    exec(
        compile(text, "README.md", "exec"),
        {"token": rooms.token, "observation": [0.0] * 4, "last_observation": [0.0] * 4},
    )
    assert rooms.ask(rooms.store.count) == before + 1


@pytest.mark.parametrize(
    "observation",
    [[0.0] * 3, [[0.0] * 4], "0000", [0.0, 0.0, 0.0, True], [0.0, 0.0, None, 0.0], "NaN", "Infinity", "1e999"],
)
def test_a_wrong_observation_is_422_by_name_and_nothing_is_stored(rooms: Rooms, observation: object) -> None:
    before = rooms.ask(rooms.observer.status)
    text = {"NaN": "[0, 0, 0, NaN]", "Infinity": "[0, Infinity, 0, 0]", "1e999": "[1e999, 0, 0, 0]"}.get(
        str(observation), httpx.Request("POST", "http://x", json=observation).content.decode()
    )
    answer = httpx.post(
        f"{rooms.deployment.url}/v1/act",
        content=f'{{"steps": [{{"episode": "poison", "t": 0, "observation": {text}}}]}}',
        headers={"Authorization": f"Bearer {rooms.token}"},
    )
    assert answer.status_code == 422, answer.text
    assert "observation" in answer.text
    after = rooms.ask(rooms.observer.status)
    assert (after["counts"], after["open"]) == (before["counts"], before["open"])
