"""DQN and SAC: they learn, export, start again from a digest, and leave bad policies' data out."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from flywheel.config import TrainConfig
from flywheel.errors import Refused
from flywheel.policy import MANIFEST, WEIGHTS, Policy, load, read_weights, to_env, write_files
from flywheel.records import Episode, Plan
from flywheel.replaying import ReplayConfig
from flywheel.store.table import Table
from flywheel.task import spec_of
from flywheel.tasks.cartpole import cartpole
from flywheel.tasks.pendulum import pendulum
from flywheel.train.on_ray import TrainerActor
from flywheel.train.recipe import spec_for
from tests.train.test_replay import production

SPEC = spec_of(cartpole)
CONFIG = TrainConfig(
    algorithm="dqn",
    num_runners=1,
    worlds_per_runner=8,
    steps_per_world=32,
    replay=ReplayConfig(begin_at=256, epsilon_steps=2000, samples_per_insert=8.0),
)
PLAN = Plan(strategy="continue_training", reasons=(), sampling="uniform")


class Probed(TrainerActor):
    """The trainer with a look inside."""

    def weights(self) -> dict[str, Any]:
        """Return the learner's weights."""
        return self._training.weights()

    def temperature(self) -> float:
        """Return the log of SAC's temperature."""
        (found,) = self._training._learner.curr_log_alpha.values()
        return float(found)

    def inside(self) -> tuple[list[float], int, dict[str, Any]]:
        """Return the runners' epsilon, the number of updates, and what a large batch is made of."""
        assert self._replay is not None
        algorithm = self._training._algorithm
        epsilon = algorithm.env_runner_group.foreach_env_runner(_epsilon, local_env_runner=False)
        batch = self._replay.table.sample(np.random.default_rng(0), 20_000, self._replay.rule)
        return list(epsilon), algorithm.num_updates, dict(batch.told())


def ppos() -> dict[str, bytes]:
    """Return weights with names of PPO's, in a manifest that doesn't say whose they are."""
    return {WEIGHTS: save({"pi.net.mlp.0.weight": np.zeros((2, 64), np.float32)})}


def _epsilon(runner: Any) -> float:
    return float(getattr(runner.module, "epsilon", 0.0))


@pytest.fixture(scope="module")
def trainer(ray_cluster: Any) -> Iterator[tuple[Any, Any]]:
    make = functools.partial(Table, SPEC, capacity=20_000, num_steps=CONFIG.replay.num_steps, gamma=CONFIG.gamma)
    actor = ray_cluster.remote(num_cpus=0.5)(Probed).remote(cartpole, SPEC, CONFIG, 1, "", "wheel", make)
    yield ray_cluster, actor
    ray_cluster.get(actor.stop.remote(), timeout=60)
    ray_cluster.kill(actor)


def test_it_learns_from_simulation_and_from_production_and_ends_in_an_artifact(trainer: Any, tmp_path: Path) -> None:
    ray, actor = trainer
    ray.get(actor.begin.remote(PLAN, None), timeout=120)
    before = ray.get(actor.weights.remote(), timeout=60)
    episodes = [production(f"p{n}", 40, digest="ab"[n % 2]) for n in range(20)]
    assert ray.get(actor.learn_from.remote(episodes), timeout=60) == 800
    progress = [ray.get(actor.advance.remote(), timeout=60) for _ in range(8)][-1]
    assert progress.losses["td_error"] > 0.0 and 0.04 <= progress.losses["epsilon"] < 0.2
    after = ray.get(actor.weights.remote(), timeout=60)
    assert any((before[name] != after[name]).any() for name in before if "target" not in name)
    assert any((before[name] != after[name]).any() for name in before if "target" in name)
    (epsilon,), num_updates, told = ray.get(actor.inside.remote(), timeout=60)
    assert 0.04 <= epsilon < 0.2
    due = progress.num_steps * 8 // 64
    assert due <= num_updates <= due + 40, "what production brought at once is made up for in part"
    assert told["share"]["a"] == pytest.approx(0.25, abs=0.05) and told["share"]["b"] == pytest.approx(0.25, abs=0.05)
    ray.get(actor.learn_from.remote([], {("policy", "b"): "it was rolled back"}), timeout=60)
    assert set(ray.get(actor.inside.remote(), timeout=60)[2]["share"]) == {"a", "train"}
    digest, files = ray.get(actor.export.remote(1, None, {"strategy": "continue_training"}, 1.0), timeout=60)
    policy = load(write_files(tmp_path, digest, files))  # golden vectors are RLlib's own answers
    rows = np.random.default_rng(0).normal(size=(500, 4)).astype(np.float32)
    assert policy.act(rows, np.random.default_rng(1).random((500, 1)))[0].shape == (500,)
    ray.get(actor.advance.remote(), timeout=60)
    warm = Plan(strategy="continue_training", reasons=(), warm_start=digest, exploration=3.0)
    ray.get(actor.begin.remote(warm, files), timeout=60)
    held, wanted = ray.get(actor.weights.remote(), timeout=60), read_weights(files)
    assert set(held) == set(wanted) and all((held[name] == value).all() for name, value in wanted.items())
    ray.get(actor.advance.remote(), timeout=60)
    assert ray.get(actor.inside.remote(), timeout=60)[0] == [pytest.approx(0.12)]
    manifest = json.loads(files[MANIFEST])
    assert manifest["trained_on"]["algorithm"] == "dqn"
    for made, theirs, said in (("ppo", files, "was trained by ppo"), ("dqn", ppos(), "another algorithm's")):
        manifest["trained_on"]["algorithm"] = made
        given = {**files, **theirs, MANIFEST: json.dumps(manifest).encode()}
        with pytest.raises(Refused, match=said):
            ray.get(actor.begin.remote(warm, given), timeout=60)
    ray.get(actor.begin.remote(PLAN, None), timeout=60)
    fresh = ray.get(actor.weights.remote(), timeout=60)
    assert set(fresh) == set(wanted) and any((fresh[name] != wanted[name]).any() for name in fresh)
    ray.get(actor.begin.remote(dataclasses.replace(warm, sampling="production"), files), timeout=60)
    changed = [production(f"n{n}", 40, digest="c", started_at=50.0) for n in range(20)]
    assert ray.get(actor.learn_from.remote(changed, {}, "", 40.0), timeout=60) == 800
    ray.get(actor.advance.remote(), timeout=60)
    _, _, told = ray.get(actor.inside.remote(), timeout=60)
    assert told["share"] == {"c": 1.0}, "where nothing explains the change, it is production since then alone"
    after = ray.get(actor.weights.remote(), timeout=60)
    assert any((after[name] != wanted[name]).any() for name in wanted)


def swung(id_: str, num: int, digest: str) -> Episode:
    """Return an episode of production's pendulum."""
    rng, made = np.random.default_rng(len(id_)), production(id_, num, digest)
    observations, actions = rng.normal(size=(num + 1, 3)), rng.uniform(-1, 1, (num, 1))
    return dataclasses.replace(
        made, observations=observations.astype(np.float32), raw_actions=actions.astype(np.float32), end="truncated"
    )


def test_sac_learns_and_its_policy_acts_within_the_bounds(ray_cluster: Any, tmp_path: Path) -> None:
    config = dataclasses.replace(
        CONFIG, algorithm="sac", activation="relu", replay=ReplayConfig(begin_at=128, samples_per_insert=16.0)
    )
    spec = spec_for(pendulum, spec_of(pendulum), config)
    make = functools.partial(Table, spec, capacity=5000)
    actor = ray_cluster.remote(num_cpus=0.5)(Probed).remote(pendulum, spec, config, 1, "", "wheel", make)
    try:
        ray_cluster.get(actor.begin.remote(dataclasses.replace(PLAN, exploration=2.0), None), timeout=120)
        before = ray_cluster.get(actor.weights.remote(), timeout=60)
        progress = [ray_cluster.get(actor.advance.remote(), timeout=60) for _ in range(3)][-1]
        assert progress.losses["td_error"] > 0.0 and 0.0 < progress.losses["temperature"] < 2.0
        after = ray_cluster.get(actor.weights.remote(), timeout=60)
        for part in ("pi.", "qf.", "target_qf."):
            assert any((before[name] != after[name]).any() for name in before if name.startswith(part)), part
        digest, files = ray_cluster.get(actor.export.remote(1, None, {"strategy": "hold"}, 1.0), timeout=60)
        policy = load(write_files(tmp_path, digest, files))
        rows = np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32)
        assert (policy.outputs(rows) == Policy(progress.network, spec).outputs(rows)).all()
        actions, logps = policy.act(rows, np.random.default_rng(1).random((500, 1)))
        assert (abs(actions) <= 1).all() and actions.std() > 0.1 and np.isfinite(logps).all()
        assert (abs(to_env(spec, actions)) <= 2).all()
        ray_cluster.get(actor.advance.remote(), timeout=60)
        episodes = [swung(f"p{n}", 60, digest="ab"[n % 2]) for n in range(10)]
        assert (
            ray_cluster.get(actor.learn_from.remote(episodes, {("policy", "b"): "it was rolled back"}), timeout=60)
            == 600
        )
        back = Plan(strategy="rollback_and_retrain", reasons=(), sampling="recent", warm_start=digest)
        ray_cluster.get(actor.begin.remote(back, files), timeout=60)
        held, wanted = ray_cluster.get(actor.weights.remote(), timeout=60), read_weights(files)
        assert set(held) == set(wanted) and all((held[name] == value).all() for name, value in wanted.items())
        told = ray_cluster.get(actor.inside.remote(), timeout=60)[2]
        assert set(told["share"]) == {"a", "train"}, "nothing of the bad policy's data is drawn"
        assert ray_cluster.get(actor.temperature.remote(), timeout=60) < 0.0
        ray_cluster.get(actor.begin.remote(PLAN, None), timeout=60)
        assert ray_cluster.get(actor.temperature.remote(), timeout=60) == 0.0, "a fresh policy begins as the first did"
    finally:
        ray_cluster.get(actor.stop.remote(), timeout=60)
        ray_cluster.kill(actor)
