"""RLlib's own env runner over the Plan's worlds, without a cluster: what it counts, where it plays, what it tells."""

from __future__ import annotations

import dataclasses
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from flywheel.config import Config, TrainConfig
from flywheel.policy import to_env
from flywheel.records import Plan
from flywheel.replaying import OFF_POLICY, ReplayConfig
from flywheel.store.table import Table
from flywheel.task import Task, spec_of
from flywheel.tasks.cartpole import cartpole
from flywheel.tasks.pendulum import pendulum
from flywheel.train.recipe import make_recipe, spec_for
from flywheel.train.replay import Replay
from tests.on_ray.hooks import Counting, counting
from tests.on_ray.test_train import Broken, broken

CONFIG = TrainConfig(runner="rllib", worlds_per_runner=8, steps_per_world=16, hidden=(16, 8))
COUNTED = Task(
    name="counted", env=counting, failed=cartpole.failed, parameters=cartpole.parameters,
    set_parameters=cartpole.set_parameters,
)  # fmt: skip


def plan(**parameters: tuple[float, float]) -> Plan:
    return Plan(strategy="continue_training", reasons=(), parameters=parameters)


def untold(task: Task, config: TrainConfig = CONFIG) -> Any:
    from flywheel.train.rllib.learn import configure

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # RLlib builds its modules by what it deprecates, and one runner a process
        ready = configure(task, spec_for(task, spec_of(task), config), config, 3, {})
        return ready.env_runner_cls(config=ready, worker_index=1)


def runner_of(task: Task, config: TrainConfig = CONFIG, told: Plan | None = None) -> Any:
    runner = untold(task, config)
    runner.tell(make_recipe(task, told or plan(), config))
    return runner


def count(runner: Any) -> int:
    counted = runner.get_metrics()["num_env_steps_sampled"]
    return int(getattr(counted, "peek", lambda: counted)())


def test_beginning_again_is_no_step_by_anybodys_count() -> None:
    rllib = {"on_episode_step": "tests.on_ray.hooks:step_seen", "callbacks_class": "tests.on_ray.hooks:Watching"}
    runner = runner_of(COUNTED, dataclasses.replace(CONFIG, runner="auto", rllib=rllib))
    Counting.stepped = Counting.begun = 0
    total = ended = 0
    for _ in range(4):
        (played,) = runner.sample()
        assert 8 * 16 <= len(played) < 8 * 17 and count(runner) == len(played)
        assert len(played) == played.lengths.sum() == len(played.observations) - len(played.lengths)
        total, ended = total + len(played), ended + int((played.terminated | played.truncated).sum())
    assert Counting.stepped == runner.num_seen == total
    assert runner.num_ended == ended > 8 and ended - 8 <= Counting.begun - 8 <= ended
    runner.stop()


def test_columns_are_what_the_policy_answers_to_what_the_worlds_showed() -> None:
    import torch

    for task in (cartpole, pendulum):
        runner = runner_of(task)
        (played,) = runner.sample()
        with torch.no_grad():
            seen = torch.as_tensor(played.observations[played.before])
            outputs = runner.module.forward_exploration({"obs": seen})["action_dist_inputs"]
            chances = runner.module.get_exploration_action_dist_cls().from_logits(outputs)
        np.testing.assert_allclose(played.outputs, outputs.numpy(), rtol=1e-4, atol=1e-5)
        found = chances.logp(torch.as_tensor(played.actions)).numpy()
        np.testing.assert_allclose(played.logps, found, rtol=1e-3, atol=1e-4)
        runner.stop()


def test_raw_actions_reach_the_worlds_as_our_own_runner_sends_them() -> None:
    """What a pendulum shows after a step follows from what it showed before and the torque that it was given."""
    runner = runner_of(dataclasses.replace(pendulum, edge_cases=()))
    (played,) = runner.sample()
    assert pendulum.observed_state is not None and pendulum.set_state is not None
    env, at = pendulum.make_env(), played.before
    env.reset(seed=0)
    torques = to_env(spec_of(pendulum), played.actions)
    for t in range(0, len(played), 17):
        pendulum.set_state(env, pendulum.observed_state(played.observations[at[t]].astype(np.float64)))
        shown, reward, *_ = env.step(torques[t])
        assert played.observations[at[t] + 1] == pytest.approx(shown, abs=1e-4)
        assert played.rewards[t] == pytest.approx(float(reward), abs=1e-3)
    runner.stop()


def test_worlds_have_their_own_parameters_from_the_first_episode_of_a_round_on() -> None:
    runner = runner_of(COUNTED)
    runner.sample()
    runner.tell(make_recipe(COUNTED, plan(length=(1.9, 2.1)), CONFIG))
    begun = Counting.begun
    runner.sample()
    assert Counting.begun >= begun + 8, "a round begins with fresh episodes"
    poles = [env.unwrapped.world.unwrapped.length for env in runner.env.unwrapped.envs]
    assert len(set(poles)) == 8 and 1.9 <= min(poles) <= max(poles) <= 2.1
    begun, Counting.begun = Counting.begun, 0
    recipe = dataclasses.replace(make_recipe(COUNTED, plan(length=(0.3, 0.4)), CONFIG))
    runner.tell(recipe, afresh=False)
    assert [env.unwrapped.world.unwrapped.length for env in runner.env.unwrapped.envs] == poles
    for _ in range(12):
        runner.sample()
    poles = [env.unwrapped.world.unwrapped.length for env in runner.env.unwrapped.envs]
    assert sum(0.3 <= pole <= 0.4 for pole in poles) >= 6
    runner.stop()


def test_whole_episodes_come_where_a_user_wants_them() -> None:
    runner = runner_of(cartpole, dataclasses.replace(CONFIG, runner="auto", rllib={"batch_mode": "complete_episodes"}))
    (played,) = runner.sample()
    assert (played.terminated | played.truncated).all() and len(played.lengths) == 8
    assert count(runner) >= len(played), "RLlib lets go of the steps of those that are under way then"
    runner.stop()


def test_rewards_are_scaled_for_training_and_returns_told_as_they_are() -> None:
    runner = runner_of(cartpole, dataclasses.replace(CONFIG, reward_scale=0.25, step_cost=3.0))
    (played,) = runner.sample(num_timesteps=400)
    returned = runner.get_metrics()["episode_return_mean"]
    assert set(played.rewards.tolist()) == {-0.5} and float(returned.peek()) >= 8.0
    runner.stop()


def test_environments_may_have_processes_of_their_own() -> None:
    config = dataclasses.replace(CONFIG, runner="auto", worlds_per_runner=2, rllib={"gym_env_vectorize_mode": "async"})
    runner = runner_of(cartpole, config, plan(length=(1.9, 2.1)))
    (played,) = runner.sample()
    assert type(runner.env.unwrapped).__name__ == "AsyncVectorEnv" and 32 <= len(played) <= 33
    assert runner.told() == (0, "", "")
    firsts = played.observations[[0, played.lengths[0] + 1]]
    assert (firsts[0] != firsts[1]).any()
    runner.stop()


def test_a_runner_that_was_not_told_its_recipe_raises_and_one_in_trouble_says_what_it_is() -> None:
    fresh = untold(cartpole)
    with pytest.raises(RuntimeError, match="has not been told its recipe"):
        fresh.sample()
    fresh.stop()
    task = Task(name="brittle", env=broken, failed=cartpole.failed)
    Broken.begun = 0
    runner = runner_of(task)
    assert runner.sample() == [] and count(runner) >= 8 * 16
    num, last, trouble = runner.told()
    assert num > 10 and "disk full" in last and "episodes of task brittle broke off" in trouble
    runner.stop()


def test_the_run_says_which_runner_samples_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    from flywheel import cluster

    told: list[str] = []
    none = SimpleNamespace(remote=lambda *_: None)
    for train in (TrainConfig(), CONFIG, dataclasses.replace(TrainConfig(), rllib={"batch_mode": "complete_episodes"})):
        rooms: Any = object.__new__(cluster.Rooms)
        rooms._task, rooms._config = cartpole, Config(train=train)
        rooms.say = lambda stage, text: told.append(text)
        rooms.place = SimpleNamespace(resource="", claims={}, name="w", worker=lambda *_: none)
        monkeypatch.setattr(cluster.ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 2.0}}])
        rooms.begin_training()
    assert len(told) == 2 and all(text.startswith("RLlib's own env runner samples, as train.r") for text in told)
    assert "train.runner says so" in told[0] and "wants whole episodes" in told[1]


@pytest.mark.parametrize("algorithm", ["ppo", "appo", "dqn", "sac"])
def test_every_algorithm_learns_from_its_columns(algorithm: Any) -> None:
    from ray.rllib.core.learner.training_data import TrainingData

    from flywheel.train.rllib.exploring import explore
    from flywheel.train.rllib.from_replay import runs_of
    from tests.on_ray.learners import learner_of

    task = pendulum if algorithm == "sac" else cartpole
    config = dataclasses.replace(CONFIG, algorithm=algorithm, replay=ReplayConfig(begin_at=10, batch=32))
    runner, learner = runner_of(task, config), learner_of(task, config)
    (played,) = runner.sample()
    runner.stop()
    module = learner.module["default_policy"]
    before = {name: np.array(value) for name, value in module.get_state(inference_only=False).items()}
    if algorithm in OFF_POLICY:
        replay = Replay(Table(spec_for(task, spec_of(task), config), capacity=1000), config, 1)
        recipe = make_recipe(task, plan(), config)
        replay.begin(plan(), is_warm=False, worlds=recipe.ranges)
        explore(learner, replay, recipe, 0)
        for chunk in runs_of(played):
            replay.simulated(chunk, "train")
        assert replay.due() > 0
        assert np.isfinite(learner.descend(replay.batch())).all()
    else:
        learner.update(training_data=TrainingData(episodes=[played]), timesteps={}, num_epochs=1, minibatch_size=64)
    after = module.get_state(inference_only=False)
    assert any((after[name] != value).any() for name, value in before.items())
