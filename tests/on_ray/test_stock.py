"""Rounds on RLlib's own env runner: counted right, in the Plan's worlds, exported as any other, sturdy."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flywheel.errors import FlywheelError
from flywheel.policy import MANIFEST, Policy, load, read_weights, write_files
from flywheel.records import Plan
from flywheel.replaying import ReplayConfig
from flywheel.store.table import Table
from flywheel.task import Task, spec_of
from flywheel.tasks.cartpole import cartpole
from tests.on_ray.hooks import Counting, counting
from tests.on_ray.test_train import CONFIG, SHORT, Probed, broken, export

HOOKED = dataclasses.replace(
    CONFIG, rllib={"on_episode_step": "tests.on_ray.hooks:step_seen", "on_train_result": "tests.on_ray.hooks:iterated"}
)
COUNTED = Task(
    name="counted", env=counting, failed=cartpole.failed, parameters=cartpole.parameters,
    set_parameters=cartpole.set_parameters,
)  # fmt: skip
LONG = Plan(strategy="retrain_prioritize_recent", reasons=(), parameters={"length": (1.9, 2.1)})


class Stock(Probed):
    """The trainer with a look inside RLlib's own runners."""

    def inside(self) -> list[tuple[Any, ...]]:
        """Return (pid, recipe, pole of each world, steps taken, episodes begun, steps that the hook saw) of each."""
        group = self._training._algorithm.env_runner_group
        return list(group.foreach_env_runner(_look, local_env_runner=False))

    def told(self) -> tuple[int, Any]:
        """Return how often the user's hook on iterations was called, and the algorithm's runners' class."""
        algorithm = self._training._algorithm
        return algorithm.num_told, algorithm.config.env_runner_cls.__name__


def _look(runner: Any) -> tuple[Any, ...]:
    poles = [env.unwrapped.world.unwrapped.length for env in runner.env.unwrapped.envs]
    return os.getpid(), runner._recipe, poles, Counting.stepped, Counting.begun, getattr(runner, "num_seen", 0)


@pytest.fixture(scope="module")
def trainer(ray_cluster: Any) -> Iterator[tuple[Any, Any]]:
    options = {"num_cpus": 0.5, "max_restarts": -1, "max_task_retries": 3}
    actor = ray_cluster.remote(**options)(Stock).remote(COUNTED, spec_of(COUNTED), HOOKED, 1)
    yield ray_cluster, actor
    ray_cluster.get(actor.stop.remote(), timeout=60)
    ray_cluster.kill(actor)


def test_a_round_counts_what_its_worlds_stepped_and_ends_in_a_policy_like_any_other(
    trainer: Any, tmp_path: Path
) -> None:
    ray, actor = trainer
    ray.get(actor.begin.remote(SHORT, None), timeout=120)
    seen = [ray.get(actor.advance.remote(), timeout=120) for _ in range(4)]
    inside = ray.get(actor.inside.remote(), timeout=60)
    stepped, begun, hooked = (sum(each[k] for each in inside) for k in (3, 4, 5))
    assert seen[-1].num_steps == stepped == hooked and begun > 32, "beginning again is no step"
    assert 4 * 256 <= stepped < 4 * (256 + 2 * 8) and 8.0 < seen[-1].mean_return < 200.0
    assert ray.get(actor.told.remote(), timeout=60) == (4, "StockRunner")
    assert seen[0].network != seen[1].network and seen[-1].losses["vf_loss"] > 0.0
    digest, files = export(ray, actor, 1)
    assert json.loads(files[MANIFEST])["trained_on"]["runner"] == "rllib"
    policy = load(write_files(tmp_path, digest, files))
    rows = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    assert (policy.outputs(rows) == Policy(seen[-1].network, policy.spec).outputs(rows)).all()
    assert policy.act(rows, np.random.default_rng(1).random((20, 1)))[0].shape == (20,)
    ray.get(actor.advance.remote(), timeout=60)
    ray.get(actor.begin.remote(dataclasses.replace(LONG, warm_start=digest), files), timeout=60)
    held, wanted = ray.get(actor.weights.remote(), timeout=60), read_weights(files)
    assert set(held) == set(wanted) and all((held[name] == value).all() for name, value in wanted.items())


def test_every_world_has_parameters_of_its_own_also_in_a_runner_that_died(trainer: Any) -> None:
    ray, actor = trainer
    ray.get(actor.begin.remote(LONG, None), timeout=120)
    ray.get(actor.advance.remote(), timeout=120)
    before = ray.get(actor.inside.remote(), timeout=60)
    poles = [pole for each in before for pole in each[2]]
    assert len(set(poles)) == 16 and 1.9 <= min(poles) <= max(poles) <= 2.1
    os.kill(before[0][0], signal.SIGKILL)
    back = before
    for _ in range(120):  # each one trains; a runner needs some seconds to come back
        assert ray.get(actor.advance.remote(), timeout=120).num_steps > 0
        back = ray.get(actor.inside.remote(), timeout=60)
        if len(back) == 2 and {each[0] for each in back} != {each[0] for each in before}:
            break
    assert len({each[0] for each in back} - {each[0] for each in before}) == 1
    ray.get(actor.advance.remote(), timeout=120)
    for _, recipe, poles, *_ in ray.get(actor.inside.remote(), timeout=60):
        assert recipe == before[1][1] and 1.9 <= min(poles) <= max(poles) <= 2.1
    learnt = ray.get(actor.weights.remote(), timeout=60)["pi.net.mlp.0.weight"]
    for head in ray.get(actor.runners_heads.remote(), timeout=60):
        assert (head == learnt).all(), "the new runner acts by the weights that the learner has, too"


def test_a_broken_task_ends_the_training_with_its_sentence(ray_cluster: Any) -> None:
    task = Task(name="brittle", env=broken, failed=cartpole.failed)
    config = dataclasses.replace(CONFIG, runner="rllib", num_runners=1)
    actor = ray_cluster.remote(num_cpus=0)(Stock).remote(task, spec_of(task), config, 1)
    ray_cluster.get(actor.begin.remote(SHORT, None), timeout=120)
    with pytest.raises(FlywheelError, match=r"episodes of task brittle broke off.*OSError\('disk full'"):
        ray_cluster.get(actor.advance.remote(), timeout=60)
    ray_cluster.get(actor.stop.remote(), timeout=60)
    ray_cluster.kill(actor)


@pytest.mark.parametrize("algorithm", ["appo", "dqn"])
def test_other_algorithms_learn_from_it_in_whole_episodes(ray_cluster: Any, algorithm: Any) -> None:
    config = dataclasses.replace(
        CONFIG, algorithm=algorithm, num_runners=1, rllib={"batch_mode": "complete_episodes"},
        replay=ReplayConfig(begin_at=100, samples_per_insert=8.0),
    )  # fmt: skip
    spec = spec_of(cartpole)
    make = functools.partial(Table, spec, capacity=5000) if algorithm == "dqn" else None
    actor = ray_cluster.remote(num_cpus=0)(Stock).remote(cartpole, spec, config, 1, "", "wheel", make)
    ray_cluster.get(actor.begin.remote(SHORT, None), timeout=120)
    before = ray_cluster.get(actor.weights.remote(), timeout=60)
    progress = [ray_cluster.get(actor.advance.remote(), timeout=120) for _ in range(3)][-1]
    after = ray_cluster.get(actor.weights.remote(), timeout=60)
    assert progress.num_steps >= 300 and progress.mean_return > 8.0
    assert any((before[name] != after[name]).any() for name in before)
    ray_cluster.get(actor.stop.remote(), timeout=60)
    ray_cluster.kill(actor)
