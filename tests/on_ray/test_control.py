"""A control group over real HTTP: a tenth of new episodes on the policy before a quiet release, through restarts."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest

from flywheel import beside
from flywheel.client import Client
from flywheel.config import DeployConfig, ObserveConfig, StoreConfig
from flywheel.deploy.environment import claim_port
from flywheel.deploy.keys import CLIENT, OPERATE, token_file
from flywheel.deploy.on_ray import namespace
from flywheel.observe.on_ray import ObserverActor
from flywheel.store.on_ray import StoreActor
from flywheel.task import task_digest
from flywheel.tasks.cartpole import cartpole
from flywheel.testing import GOOD, write_linear_artifact
from tests.deploy.conftest import verdict_on
from tests.deploy.test_canary import alarm

# Ray Serve's own models are written for an older pydantic
pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on:DeprecationWarning")
WHEEL = "test-control"
CONFIG = DeployConfig(port=0, poll_s=0.2, settle_s=0.2)
STORE = "store-of-test-control"
NUM = 400


@dataclass
class Wheel:
    """A wheel that serves hand-made policies, each of which passed."""

    ray: Any
    run_dir: Path
    registry: Any
    observer: Any
    deployment: Any

    def ask(self, method: Any, *arguments: Any) -> Any:
        """Call an actor and wait."""
        return self.ray.get(method.remote(*arguments), timeout=60)

    def release(self, number: float) -> str:
        """Put a new policy into service everywhere, watched by the observer; return its digest."""
        artifact = write_linear_artifact(self.run_dir / "policies", cartpole, tuple(number * gain for gain in GOOD))
        self.ask(self.registry.add, artifact)
        now, champion = time.time(), self.ask(self.registry.champion)
        self.ask(self.registry.record, verdict_on(artifact, baseline=champion, judged_at=now, valid_until=now + 600))
        self.ask(self.observer.release, self.ask(self.registry.promote, artifact.digest), 0.05)
        self.deployment.confirm(artifact.digest)
        return artifact.digest

    def settled(self) -> float:
        """Return from when on the control counts, once it does."""
        deadline = time.monotonic() + 60
        while (control := self.ask(self.registry.controls)[-1]).settled_at is None:
            assert time.monotonic() < deadline, control
            time.sleep(0.05)
        time.sleep(max(0.0, control.settled_at - time.time()))
        return float(control.settled_at)

    def play(self, num_episodes: int = NUM) -> Counter[str]:
        """Play two steps of so many episodes; return how many each policy began, and went on with."""
        with Client(self.deployment.url, token_file(self.run_dir, CLIENT).read_text()) as client:
            batch = client.batch()
            ids = batch.begin(num_episodes)
            observations, rewards, fine = (
                np.zeros((num_episodes, 4)),
                np.ones(num_episodes),
                np.ones(num_episodes, bool),
            )
            batch.act(ids, observations)
            began = list(batch.digests(ids))
            batch.act(ids, observations, rewards)
            assert list(batch.digests(ids)) == began
            batch.end(ids, observations, rewards, ~fine, fine)
        return Counter(began)


def owner(ray: Any, run_dir: Path) -> Any:
    """Start the registry's owner."""
    from flywheel.deploy import on_ray

    named = {"name": on_ray.REGISTRY, "namespace": namespace(WHEEL), "num_cpus": 0}
    registry = ray.remote(on_ray.RegistryActor).options(**named).remote(
        str(run_dir), task_digest(cartpole), WHEEL, CONFIG, 0.05
    )  # fmt: skip
    ray.get(registry.run_dir.remote(), timeout=60)
    return registry


@pytest.fixture
def wheel(ray_cluster: Any, tmp_path: Path) -> Iterator[Wheel]:
    ray = ray_cluster
    from flywheel.deploy import on_ray, on_serve

    named = {"namespace": namespace(WHEEL), "num_cpus": 0}
    registry = owner(ray, tmp_path)
    store = ray.remote(StoreActor).options(name=STORE, **named).remote(str(tmp_path), StoreConfig())
    ray.get(store.count.remote(), timeout=60)
    observer = ray.remote(ObserverActor).options(name=on_ray.OBSERVER, **named).remote(
        cartpole, ObserveConfig(), STORE, WHEEL, namespace(WHEEL)
    )  # fmt: skip
    deployment = on_serve.start_serve(CONFIG, claim_port(CONFIG), WHEEL)
    wheel = Wheel(ray, tmp_path, registry, observer, deployment)
    yield wheel
    on_serve.end_app(WHEEL)
    for actor in (observer, store, wheel.registry):
        ray.kill(actor)


def test_a_tenth_of_new_episodes_stays_on_the_policy_before_a_quiet_release(
    wheel: Wheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = wheel.release(1.0)
    assert wheel.play(50).keys() == {first}, "nothing was before it"
    second = wheel.release(1.1)
    settled_at = wheel.settled()
    began = wheel.play()
    assert began.keys() == {first, second} and 10 <= began[first] <= 80, began

    (before,) = wheel.deployment.status()
    assert (before["control"], before["control_share"]) == (first, 0.1)
    os.kill(before["pid"], signal.SIGKILL)
    wheel.ray.kill(wheel.registry)
    wheel.registry = owner(wheel.ray, wheel.run_dir)
    wheel.deployment.confirm(second)
    again = wheel.play()
    assert wheel.deployment.status()[0]["pid"] != before["pid"]
    assert again.keys() == {first, second} and 10 <= again[first] <= 80, "neither restart ends it"

    monkeypatch.setattr(beside, "ask", wheel.ask)
    release = wheel.ask(wheel.registry.releases)[-1]
    rooms: Any = SimpleNamespace(registry=wheel.registry, serving=SimpleNamespace(observer=wheel.observer))
    raised = replace(alarm(digest=second, released_at=release.released_at), since_episode="")
    arms = beside.gathered(rooms, cartpole, release, [raised])
    deadline = time.monotonic() + 30
    while arms is None or sum(side.num for side in arms.beside) < 2 * NUM:
        assert time.monotonic() < deadline, arms
        arms = beside.gathered(rooms, cartpole, release, [raised])
    assert [side.num for side in arms.beside] == [began[second] + again[second], began[first] + again[first]]
    assert (arms.counted_from, arms.former.num) == (settled_at, 50)

    third = wheel.release(1.2)
    wheel.settled()
    assert wheel.play().keys() == {second, third}
    shown = {"Authorization": f"Bearer {token_file(wheel.run_dir, OPERATE).read_text()}"}
    body = {"reason": "it falls over", "digest": third}
    answer = httpx.post(f"{wheel.deployment.url}/v1/rollback", json=body, headers=shown, timeout=30)
    assert answer.json() == {"rolled_back": third, "digest": second}, answer.text
    wheel.deployment.confirm(second)
    assert wheel.play().keys() == {second}, "nobody is on the condemned one, and there is no control after a rollback"
    assert [control.ended_at is None for control in wheel.ask(wheel.registry.controls)] == [False, False]
