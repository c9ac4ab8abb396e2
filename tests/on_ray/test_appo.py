"""APPO: runners that nobody waits for, whose steps are learnt from as V-trace says; rounds, exports, warm starts."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.rllib.core import DEFAULT_MODULE_ID

from flywheel.policy import MANIFEST, Policy, load, read_weights, write_files
from flywheel.records import Plan
from flywheel.task import spec_of
from flywheel.tasks.cartpole import cartpole
from flywheel.train.recipe import make_recipe
from tests.on_ray.test_train import CONFIG, SHORT, Probed, export

APPO = dataclasses.replace(CONFIG, algorithm="appo", rllib={"clip_param": 0.15})


class Inside(Probed):
    """The trainer with a look inside."""

    def inside(self) -> tuple[float, float]:
        """Return the entropy bonus and the clip of the surrogate."""
        scheduler = self._training._learner.entropy_coeff_schedulers_per_module[DEFAULT_MODULE_ID]
        return float(scheduler.get_current_value()), float(self._training._algorithm.config.clip_param)


@pytest.fixture(scope="module")
def trainer(ray_cluster: Any) -> Iterator[tuple[Any, Any]]:
    actor = ray_cluster.remote(num_cpus=0.5)(Inside).remote(cartpole, spec_of(cartpole), APPO, 1)
    yield ray_cluster, actor
    ray_cluster.get(actor.stop.remote(), timeout=60)
    ray_cluster.kill(actor)


def test_rounds_learn_export_and_start_from_digests_ppos_among_them(trainer: Any, tmp_path: Path) -> None:
    ray, actor = trainer
    ray.get(actor.begin.remote(SHORT, None), timeout=120)
    seen = [ray.get(actor.advance.remote(), timeout=60) for _ in range(4)]
    steps = np.diff([0, *(progress.num_steps for progress in seen)])
    assert (steps >= 128).all() and seen[-1].num_steps >= 900 and seen[0].network != seen[1].network
    assert 0.0 < seen[-1].losses["entropy"] < np.log(2) + 1e-6 and seen[-1].losses["vf_loss"] > 0.0
    assert seen[-1].steps_per_s == pytest.approx(steps[-1] / seen[-1].seconds)
    digest, files = export(ray, actor, 1)
    policy = load(write_files(tmp_path, digest, files))
    rows = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    assert (policy.outputs(rows) == Policy(seen[-1].network, policy.spec).outputs(rows)).all()
    ray.get(actor.advance.remote(), timeout=60)
    manifest = json.loads(files[MANIFEST])
    assert manifest["trained_on"]["algorithm"] == "appo"
    manifest["trained_on"]["algorithm"] = "ppo"
    plan = Plan(strategy="increase_exploration", reasons=(), warm_start=digest, exploration=4.0)
    ray.get(actor.begin.remote(plan, {**files, MANIFEST: json.dumps(manifest).encode()}), timeout=60)
    held, wanted = ray.get(actor.weights.remote(), timeout=60), read_weights(files)
    assert set(held) == set(wanted) and all((held[name] == value).all() for name, value in wanted.items())
    entropy, clip = ray.get(actor.inside.remote(), timeout=60)
    assert entropy == pytest.approx(4.0 * APPO.exploration_entropy) and clip == 0.15


def test_a_new_round_has_its_own_worlds_and_a_runner_that_died_comes_back(trainer: Any) -> None:
    ray, actor = trainer
    ray.get(actor.begin.remote(SHORT, None), timeout=120)
    ray.get(actor.advance.remote(), timeout=60)
    plan = Plan(strategy="retrain_prioritize_recent", reasons=(), parameters={"length": (1.9, 2.1)})
    ray.get(actor.begin.remote(plan, None), timeout=60)
    ray.get(actor.advance.remote(), timeout=60)
    before = ray.get(actor.runners.remote(), timeout=60)
    assert all(1.9 <= low <= high <= 2.1 for _, _, low, high in before)
    os.kill(before[0][0], signal.SIGKILL)
    back = before
    for _ in range(120):  # each one trains; a runner needs some seconds to come back
        assert ray.get(actor.advance.remote(), timeout=120).num_steps > 0
        back = ray.get(actor.runners.remote(), timeout=60)
        if len(back) == 2 and {pid for pid, *_ in back} != {pid for pid, *_ in before}:
            break
    assert len({pid for pid, *_ in back} - {pid for pid, *_ in before}) == 1
    ray.get(actor.advance.remote(), timeout=120)
    assert all(recipe == before[1][1] for _, recipe, *_ in ray.get(actor.runners.remote(), timeout=60))


def test_a_batch_is_of_whoever_came_first_and_only_they_get_new_weights() -> None:
    """Runner 2 never answers in time; 1 and 3 give 100 steps at every look."""
    from flywheel.train.rllib.appo import RecipeAPPO

    learnt: list[Any] = []
    synced: list[list[int]] = []
    came = [[], [(1, ([range(100)], "a"))], [(1, ([range(100)], "b")), (3, ([range(60), range(40)], "c"))]]
    group = SimpleNamespace(
        foreach_env_runner_async_fetch_ready=lambda **_: came.pop(0),
        num_healthy_remote_workers=lambda: 3,
        sync_weights=lambda **given: synced.append(given["to_worker_indices"]),
    )
    told: list[Any] = []
    metrics = SimpleNamespace(aggregate=lambda found, key: told.extend(found), peek=lambda key, default: 300)
    algorithm = SimpleNamespace(
        env_runner_group=group, metrics=metrics,
        config=SimpleNamespace(sample_timeout_s=60.0, total_train_batch_size=250, num_epochs=2, minibatch_size=64),
        learner_group=SimpleNamespace(update=lambda **given: learnt.append(given) or ["learnt"]),
    )  # fmt: skip
    algorithm._sampled = lambda: RecipeAPPO._sampled(algorithm)  # type: ignore[arg-type]
    RecipeAPPO.training_step(algorithm)  # type: ignore[arg-type]
    assert [len(chunk) for chunk in learnt[0]["episodes"]] == [100, 100, 60, 40] and synced == [[1, 3]]
    assert told == ["a", "b", "c", "learnt"] and not came
    came[:] = [[(1, ([], "d"))]]
    RecipeAPPO.training_step(algorithm)  # type: ignore[arg-type]
    assert len(learnt) == 1, "runners in trouble give nothing, and their trainer asks them why"


def test_it_learns_cartpole_from_steps_that_are_a_batch_old() -> None:
    """One process, without Ray: each batch is learnt from while the next one is sampled, by the weights before it."""
    import torch
    from ray.rllib.core.learner.training_data import TrainingData

    from flywheel.train.rllib.appo import appo_config
    from flywheel.train.rllib.env_runner import WorldsRunner

    torch.manual_seed(3)
    config = dataclasses.replace(APPO, num_runners=1, worlds_per_runner=32, steps_per_world=32, num_epochs=15, rllib={})
    ready = appo_config(cartpole, spec_of(cartpole), config, 3, {})
    runner = WorldsRunner(config=ready, worker_index=1)
    spaces = {DEFAULT_MODULE_ID: (runner.env.single_observation_space, runner.env.single_action_space)}
    learner = ready.build_learner(spaces=spaces)
    runner.tell(make_recipe(cartpole, SHORT, config))
    before: list[Any] = []
    returns = []
    for number in range(45):
        new = runner.sample(num_timesteps=1024)
        timesteps = {"num_env_steps_sampled_lifetime": 1024 * number}
        learner.update(
            training_data=TrainingData(episodes=before or new), timesteps=timesteps, num_epochs=15, minibatch_size=128
        )
        before = new
        state = learner.get_state(components=["rl_module"], inference_only=True)["rl_module"]
        runner.set_state({"rl_module": state, "weights_seq_no": 0})
        found = runner.get_metrics().get("episode_return_mean", np.nan)
        returns.append(float(getattr(found, "peek", lambda found=found: found)()))
        if returns[-1] >= 450.0:
            break
    runner.stop()
    assert max(returns) >= 450.0, returns


def test_its_update_in_numpy_is_the_one_in_torch() -> None:
    """One minibatch of all rows, from steps that another policy took: no order of rows that could differ."""
    from ray.rllib.core.learner.training_data import TrainingData

    from flywheel.train.rllib.appo import appo_config

    config = dataclasses.replace(APPO, rllib={}, entropy=0.01)
    ready = appo_config(cartpole, spec_of(cartpole), config, 3, {})
    runner = ready.env_runner_cls(config=ready, worker_index=1)
    runner.tell(make_recipe(cartpole, SHORT, config))
    parts = [runner.sample(num_timesteps=150)[0] for _ in range(2)]
    runner.stop()
    spaces = {DEFAULT_MODULE_ID: (runner.env.single_observation_space, runner.env.single_action_space)}
    in_numpy, in_torch = (ready.build_learner(spaces=spaces) for _ in range(2))
    state = in_numpy.module[DEFAULT_MODULE_ID].get_state(inference_only=False)
    before = {name: np.array(value) for name, value in state.items()}
    in_torch.module[DEFAULT_MODULE_ID].set_state(before)
    assert in_numpy._layers is not None
    in_torch._layers = None
    told, after = [], []
    for learner in (in_numpy, in_torch):
        data = TrainingData(episodes=parts)
        results = learner.update(training_data=data, timesteps={}, num_epochs=4, minibatch_size=10_000)
        told.append(
            [
                float(results[DEFAULT_MODULE_ID][name].peek())
                for name in ("policy_loss", "vf_loss", "entropy", "mean_kl_loss")
            ]
        )
        after.append(learner.module[DEFAULT_MODULE_ID].get_state(inference_only=False))
    assert told[0] == pytest.approx(told[1], rel=1e-2, abs=1e-4)
    ours, theirs = after
    for name, value in before.items():
        moved = max(float(np.abs(theirs[name] - value).max()), 1e-6)
        np.testing.assert_allclose(ours[name], theirs[name], atol=0.02 * moved, err_msg=name)
