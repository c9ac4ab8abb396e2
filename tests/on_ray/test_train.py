"""The trainer's actor: it learns, exports, starts again from a digest, and its runners survive."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from flywheel.config import TrainConfig
from flywheel.errors import FlywheelError, LostError, Refused
from flywheel.policy import MANIFEST, Files, Policy, load, read_weights, write_files
from flywheel.records import Plan
from flywheel.task import Task, spec_of
from flywheel.tasks.cartpole import cartpole
from flywheel.train.on_ray import TrainerActor
from flywheel.train.recipe import make_recipe


class Brittle(gymnasium.Wrapper[Any, Any, Any, Any]):
    """CartPole that raises at the fifth step of each thirtieth episode of a process."""

    every, begun = 30, 0

    def reset(self, **options: Any) -> Any:
        self.t = 0
        Brittle.begun += 1
        self.bad = Brittle.begun % self.every == 0
        return self.env.reset(**options)

    def step(self, action: Any) -> Any:
        self.t += 1
        if self.t == 5 and self.bad:
            raise OSError("disk full")
        return self.env.step(action)


class Broken(Brittle):
    """It raises in every episode."""

    every = 1


def brittle() -> gymnasium.Env[Any, Any]:
    return Brittle(gymnasium.make("CartPole-v1"))


def broken() -> gymnasium.Env[Any, Any]:
    return Broken(gymnasium.make("CartPole-v1"))


CONFIG = TrainConfig(num_runners=2, worlds_per_runner=8, steps_per_world=16, num_epochs=2, minibatch_size=64)
SHORT = Plan(strategy="continue_training", reasons=())


class Probed(TrainerActor):
    """The trainer with a look inside its runners."""

    def pid(self) -> int:
        """Return this process's id."""
        return os.getpid()

    def runners(self) -> list[tuple[int, Any, float, float]]:
        """Return (pid, recipe, smallest pole, longest pole) of each runner."""
        return list(self._training._algorithm.env_runner_group.foreach_env_runner(_look, local_env_runner=False))

    def weights(self) -> dict[str, Any]:
        """Return the learner's weights."""
        return self._training.weights()

    def runners_heads(self) -> list[Any]:
        """Return the policy head's weights in each runner."""
        return list(self._training._algorithm.env_runner_group.foreach_env_runner(_head, local_env_runner=False))


def _head(runner: Any) -> Any:
    return np.array(runner.module.get_state()["pi.net.mlp.0.weight"])


def _look(runner: Any) -> tuple[int, Any, float, float]:
    length = np.atleast_1d(runner.env.unwrapped.length)
    return os.getpid(), runner._recipe, float(length.min()), float(length.max())


@pytest.fixture(scope="module")
def trainer(ray_cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any, Path]]:
    options = {"num_cpus": 0.5, "max_restarts": -1, "max_task_retries": 3}
    actor = ray_cluster.remote(**options)(Probed).remote(cartpole, spec_of(cartpole), CONFIG, 1)
    yield ray_cluster, actor, tmp_path_factory.mktemp("policies")
    ray_cluster.get(actor.stop.remote(), timeout=60)
    ray_cluster.kill(actor)


def export(ray: Any, actor: Any, version: int) -> tuple[str, Files]:
    found = ray.get(actor.export.remote(version, None, {"strategy": "continue_training"}, 1.0), timeout=60)
    digest, files = found
    return digest, files


def test_a_round_counts_its_steps_and_ends_in_an_artifact_that_proves_itself(trainer: Any) -> None:
    ray, actor, policies = trainer
    ray.get(actor.begin.remote(SHORT, None), timeout=120)
    first, second = (ray.get(actor.advance.remote(), timeout=60) for _ in range(2))
    assert (first.iteration, second.iteration) == (1, 2)
    assert 256 <= first.num_steps < 256 + 2 * 8
    assert second.num_steps - first.num_steps < 256 + 2 * 8
    assert first.network != second.network
    artifact = write_files(policies, *export(ray, actor, 1))
    rows = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    assert (load(artifact).outputs(rows) == Policy(second.network, artifact.spec).outputs(rows)).all()


def test_a_round_starts_from_the_digest_that_its_plan_names(trainer: Any) -> None:
    ray, actor, _ = trainer
    ray.get(actor.begin.remote(SHORT, None), timeout=120)
    ray.get(actor.advance.remote(), timeout=60)
    digest, files = export(ray, actor, 2)
    ray.get(actor.advance.remote(), timeout=60)
    held = ray.get(actor.weights.remote(), timeout=60)
    assert any((held[name] != value).any() for name, value in read_weights(files).items())
    plan = Plan(strategy="rollback_and_retrain", reasons=(), warm_start=digest)
    ray.get(actor.begin.remote(plan, files), timeout=60)
    held, wanted = ray.get(actor.weights.remote(), timeout=60), read_weights(files)
    assert set(held) == set(wanted)
    assert all((held[name] == value).all() for name, value in wanted.items())
    for head in ray.get(actor.runners_heads.remote(), timeout=60):
        assert (head == wanted["pi.net.mlp.0.weight"]).all()
    manifest = json.loads(files[MANIFEST])
    assert manifest["trained_on"]["activation"] == "tanh"
    manifest["trained_on"]["activation"] = "relu"
    with pytest.raises(Refused, match="trained with relu between the layers"):
        ray.get(actor.begin.remote(plan, {**files, MANIFEST: json.dumps(manifest).encode()}), timeout=60)
    ray.get(actor.begin.remote(SHORT, None), timeout=60)
    fresh = ray.get(actor.weights.remote(), timeout=60)
    assert (fresh["pi.net.mlp.0.weight"] != wanted["pi.net.mlp.0.weight"]).all()


def test_runners_get_new_worlds_without_being_built_again_and_after_a_restart(trainer: Any) -> None:
    ray, actor, _ = trainer
    ray.get(actor.begin.remote(SHORT, None), timeout=120)
    ray.get(actor.advance.remote(), timeout=60)
    before = {pid for pid, *_ in ray.get(actor.runners.remote(), timeout=60)}
    plan = Plan(strategy="retrain_prioritize_recent", reasons=(), parameters={"length": (1.9, 2.1)})
    ray.get(actor.begin.remote(plan, None), timeout=60)
    ray.get(actor.advance.remote(), timeout=60)
    found = ray.get(actor.runners.remote(), timeout=60)
    assert {pid for pid, *_ in found} == before
    assert all(1.9 <= low <= high <= 2.1 for _, _, low, high in found)
    os.kill(found[0][0], signal.SIGKILL)
    back: list[tuple[int, Any, float, float]] = []
    for _ in range(120):  # each one trains; a runner needs some seconds to come back
        assert ray.get(actor.advance.remote(), timeout=120).num_steps > 0
        back = ray.get(actor.runners.remote(), timeout=60)
        if len(back) == 2 and {pid for pid, *_ in back} != before:
            break
    assert len({pid for pid, *_ in back} - before) == 1
    ray.get(actor.advance.remote(), timeout=120)
    for _, recipe, low, high in ray.get(actor.runners.remote(), timeout=60):
        assert recipe == found[1][1] and 1.9 <= low <= high <= 2.1
    learnt = ray.get(actor.weights.remote(), timeout=60)["pi.net.mlp.0.weight"]
    for head in ray.get(actor.runners_heads.remote(), timeout=60):
        assert (head == learnt).all(), "the new runner acts by the weights that the learner has, too"


def test_a_trainer_that_was_lost_says_so_until_a_round_begins_again(trainer: Any) -> None:
    ray, actor, _ = trainer
    ray.get(actor.begin.remote(SHORT, None), timeout=120)
    ray.get(actor.advance.remote(), timeout=60)
    before = ray.get(actor.pid.remote(), timeout=60)
    os.kill(before, signal.SIGKILL)
    for lost in (actor.advance.remote, lambda: actor.export.remote(1, None, {}, 1.0)):
        with pytest.raises(LostError, match="trainer's process was lost"):
            ray.get(lost(), timeout=120)
    ray.get(actor.begin.remote(SHORT, None), timeout=120)
    assert ray.get(actor.advance.remote(), timeout=60).num_steps > 0
    assert ray.get(actor.pid.remote(), timeout=60) != before


def mean_return(runner: Any) -> float:
    """Return the mean return that a runner reports."""
    returned = runner.get_metrics()["episode_return_mean"]
    return float(getattr(returned, "peek", lambda: returned)())


def test_a_runner_scales_rewards_for_training_and_reports_returns_as_they_are(ray_cluster: Any) -> None:
    from flywheel.train.rllib.env_runner import WorldsRunner
    from flywheel.train.rllib.ppo import ppo_config

    for step_cost, learnt in ((0.0, 0.25), (3.0, -0.5)):
        config = dataclasses.replace(CONFIG, reward_scale=0.25, step_cost=step_cost)
        runner = WorldsRunner(config=ppo_config(cartpole, spec_of(cartpole), config, 1, {}), worker_index=1)
        runner.tell(make_recipe(cartpole, SHORT, config))
        (played,) = runner.sample(num_timesteps=800)
        assert set(played.rewards.tolist()) == {learnt}
        assert mean_return(runner) >= 8.0
        runner.stop()


def test_the_learning_rate_goes_down_in_a_straight_line_where_it_has_an_end() -> None:
    from flywheel.train.rllib.learn import lr_at

    config = dataclasses.replace(CONFIG, lr=1e-3, lr_end=1e-4)
    rates = [lr_at(config, share, is_warm=False) for share in (0.0, 0.5, 1.0, 2.0)]
    assert rates == pytest.approx([1e-3, 5.5e-4, 1e-4, 1e-4])
    assert lr_at(CONFIG, 0.7, is_warm=False) == lr_at(CONFIG, 0.7, is_warm=True) == CONFIG.lr
    warm = [lr_at(dataclasses.replace(config, lr_warm=2e-4), share, is_warm=True) for share in (0.0, 1.0)]
    assert warm == pytest.approx([2e-4, 1e-4])


def test_worlds_that_raise_are_made_anew_or_end_the_training_with_their_sentence(
    ray_cluster: Any, tmp_path: Path
) -> None:
    config = dataclasses.replace(CONFIG, num_runners=1, worlds_per_runner=16)
    make = ray_cluster.remote(num_cpus=0)(TrainerActor).remote  # the fixture's trainer and runners hold 1.5 CPUs
    notes = []
    for env in (brittle, broken):
        task = Task(name="brittle", env=env, failed=cartpole.failed)
        actor = make(task, spec_of(task), config, 1)
        ray_cluster.get(actor.begin.remote(SHORT, None), timeout=120)
        if env is brittle:
            notes = [ray_cluster.get(actor.advance.remote(), timeout=60).note for _ in range(12)]
        else:
            with pytest.raises(FlywheelError, match=r"episodes of task brittle broke off.*OSError\('disk full'"):
                ray_cluster.get(actor.advance.remote(), timeout=60)
        ray_cluster.get(actor.stop.remote(), timeout=60)
        ray_cluster.kill(actor)
    assert any("broke off, in one the environment raised OSError('disk full')" in note for note in notes)
    assert "" in notes
