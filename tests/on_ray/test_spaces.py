"""Nested observations and actions of several parts, over the real thing: trained, exported, served, stored."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from flywheel.client import Client
from flywheel.config import DeployConfig, ObserveConfig, StoreConfig, TrainConfig
from flywheel.deploy.environment import claim_port
from flywheel.deploy.keys import CLIENT, token_file
from flywheel.draws import draws
from flywheel.observe.on_ray import ObserverActor
from flywheel.policy import Policy, load, write_files
from flywheel.records import Artifact, Plan
from flywheel.store.on_ray import StoreActor
from flywheel.task import Task, spec_of, task_digest
from flywheel.train.on_ray import TrainerActor
from tests.deploy.conftest import verdict_on
from tests.rooms import NUM_STEPS, room, steered

# Ray Serve's own models are written for an older pydantic
pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on:DeprecationWarning")
CONFIG = TrainConfig(
    num_runners=1, worlds_per_runner=8, steps_per_world=32, num_epochs=2, minibatch_size=64, hidden=(16,)
)
PLAN = Plan(strategy="continue_training", reasons=())


class Asked(TrainerActor):
    """The trainer, whose module can be asked."""

    def answers(self, rows: Any) -> Any:
        """Return what RLlib's own module answers to flat observations."""
        import torch

        with torch.no_grad():
            given = self._training._module.forward_inference({"obs": torch.as_tensor(rows, dtype=torch.float32)})
        return given["action_dist_inputs"].numpy()


def trained(ray: Any, task: Task, policies: Path) -> tuple[Artifact, Any, Any]:
    """Train for three iterations; return the artifact, observations, and the module's own answers to them."""
    trainer = ray.remote(num_cpus=0.5)(Asked).remote(task, spec_of(task), CONFIG, 1)
    ray.get(trainer.begin.remote(PLAN, None), timeout=120)
    for _ in range(3):
        assert ray.get(trainer.advance.remote(), timeout=60).num_steps >= 256
    exported = ray.get(trainer.export.remote(1, None, {"strategy": "continue_training"}, 1.0), timeout=60)
    artifact = write_files(policies, *exported)
    rows = np.random.default_rng(0).normal(size=(200, 5))
    answers = ray.get(trainer.answers.remote(rows), timeout=60)
    ray.get(trainer.stop.remote(), timeout=60)
    ray.kill(trainer)
    return artifact, rows, answers


class Production:
    """Registry, store, observer and Serve around one judged policy."""

    def __init__(self, ray: Any, task: Task, artifact: Artifact, run_dir: Path) -> None:
        from flywheel.deploy import on_ray, on_serve

        self._ray, self._wheel, store = ray, task.name, f"store-of-{task.name}"
        named = {"namespace": on_ray.namespace(task.name), "num_cpus": 0}
        registry = ray.remote(on_ray.RegistryActor).options(name=on_ray.REGISTRY, **named).remote(
            str(run_dir), task_digest(task)
        )  # fmt: skip
        self.store = ray.remote(StoreActor).options(name=store, num_cpus=0).remote(str(run_dir), StoreConfig())
        ray.get(self.store.count.remote(), timeout=60)
        observer = ray.remote(ObserverActor).options(name=on_ray.OBSERVER, **named).remote(task, ObserveConfig(), store)
        self._actors = (observer, self.store, registry)
        now = time.time()
        verdict = verdict_on(artifact, task=task_digest(task), judged_at=now, valid_until=now + 600)
        ray.get(registry.add.remote(artifact), timeout=60)
        ray.get(registry.record.remote(verdict), timeout=60)
        release = ray.get(registry.promote.remote(artifact.digest), timeout=60)
        ray.get(observer.release.remote(release, 0.05), timeout=60)
        self.token = token_file(run_dir, CLIENT).read_text()
        config = DeployConfig(port=0)
        self.deployment = on_serve.start_serve(config, claim_port(config), task.name)

    def stop(self) -> None:
        """End all of it."""
        from flywheel.deploy import on_serve

        on_serve.end_app(self._wheel)
        for actor in self._actors:
            self._ray.kill(actor)


@pytest.fixture(params=[room, steered], ids=["multi_discrete", "box"])
def wheel(request: Any, ray_cluster: Any, tmp_path: Path) -> Iterator[tuple[Task, Artifact, Any]]:
    task = request.param
    artifact, rows, answers = trained(ray_cluster, task, tmp_path / "policies")
    assert load(artifact).outputs(rows) == pytest.approx(answers, abs=1e-5)
    production = Production(ray_cluster, task, artifact, tmp_path)
    yield task, artifact, production
    production.stop()


def played(task: Task, url: str, token: str) -> dict[str, tuple[list[Any], list[float]]]:
    """Play three episodes at once, the worlds' own observations in their own shape; return what came, by id."""
    from flywheel.spaces import flatten_each

    envs = [task.make_env() for _ in range(3)]
    leaves = spec_of(task).observation_leaves
    with Client(url, token) as client:
        batch = client.batch()
        ids = batch.begin(3)
        tracks: dict[str, tuple[list[Any], list[float]]] = {id: ([], []) for id in ids}
        seen = [env.reset(seed=i)[0] for i, env in enumerate(envs)]
        rewards = None
        for _ in range(NUM_STEPS - 1):
            for id, row in zip(ids, flatten_each(leaves, seen), strict=True):
                tracks[id][0].append(row)
            actions = batch.act(ids, seen, rewards)
            steps = [env.step(action) for env, action in zip(envs, actions, strict=True)]
            seen, rewards = [step[0] for step in steps], [float(step[1]) for step in steps]
            for id, reward in zip(ids, rewards, strict=True):
                tracks[id][1].append(reward)
        batch.end(ids, seen, rewards, [False] * 3, [True] * 3)
        assert client.counters.errors == 0
    return tracks


def test_it_is_trained_exported_served_and_every_stored_action_can_be_computed_again(
    wheel: tuple[Task, Artifact, Production], ray_cluster: Any
) -> None:
    task, artifact, production = wheel
    policy, spec = load(artifact), artifact.spec
    assert isinstance(policy, Policy) and spec == spec_of(task)
    url = production.deployment.url
    tracks = played(task, url, production.token)
    episodes = ray_cluster.get(production.store.read.remote(list(tracks)), timeout=60)
    for episode, (rows, rewards) in zip(episodes, tracks.values(), strict=True):
        assert np.array_equal(episode.observations[:-1], rows) and episode.observations.dtype == np.float64
        assert episode.rewards.tolist() == rewards
        uniform = draws([episode.draw_key] * episode.num_steps, range(episode.num_steps), spec.num_draws)
        actions, logps = policy.act(episode.observations[:-1], uniform)
        assert np.array_equal(actions, episode.raw_actions) and actions.dtype == episode.raw_actions.dtype
        assert np.array_equal(logps, episode.logps)
    body = {"steps": [{"episode": "x", "t": 0, "observation": {"position": [0, "1"], "mode": 1}}]}
    answer = httpx.post(f"{url}/v1/act", json=body, headers={"Authorization": f"Bearer {production.token}"})
    assert (answer.status_code, answer.json()["field"]) == (422, "steps[0].observation.position[1]")
