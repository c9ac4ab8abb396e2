"""`train.rllib`: what goes through to RLlib, and what is refused by which sentence. No Ray is started."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, cast

import pytest

from flywheel.config import TrainConfig
from flywheel.errors import UsageError
from flywheel.preflight import check_passed
from flywheel.task import spec_of
from flywheel.tasks.cartpole import cartpole
from flywheel.tasks.pendulum import pendulum
from flywheel.train.recipe import spec_for

Algorithm = Literal["ppo", "appo", "dqn", "sac"]


def config(algorithm: str, **rllib: Any) -> TrainConfig:
    return dataclasses.replace(TrainConfig(), algorithm=cast(Algorithm, algorithm), rllib=rllib)


@pytest.mark.parametrize(
    ("algorithm", "name", "value"),
    [
        ("ppo", "clip_param", 0.1),
        ("ppo", "grad_clip", None),
        ("appo", "clip_param", 0.15),
        ("ppo", "sample_timeout_s", 30.0),
        ("dqn", "max_num_env_runner_restarts", 3),
        ("sac", "initial_alpha", 0.2),
        ("appo", "max_requests_in_flight_per_env_runner", 2),
        ("ppo", "min_time_s_per_iteration", 1.0),
        ("ppo", "batch_mode", "complete_episodes"),
        ("dqn", "gym_env_vectorize_mode", "async"),
    ],
)
def test_what_has_an_effect_goes_through(algorithm: str, name: str, value: Any) -> None:
    from flywheel.train.rllib.learn import configure

    task, given = pendulum if algorithm == "sac" else cartpole, config(algorithm, **{name: value})
    spec = spec_for(task, spec_of(task), given)
    usual, ready = (configure(task, spec, each, 1, {}) for each in (config(algorithm), given))
    assert getattr(usual, name) != value and getattr(ready, name) == value
    assert ready.learner_class is usual.learner_class


@pytest.mark.parametrize("name", ["on_episode_step", "on_sample_end", "on_environment_created", "on_train_result"])
def test_hooks_are_named_and_those_of_episodes_bring_rllibs_runner(name: str) -> None:
    from flywheel.train.rllib.learn import configure
    from tests.on_ray import hooks

    ready = configure(cartpole, spec_of(cartpole), config("ppo", **{name: "tests.on_ray.hooks:step_seen"}), 1, {})
    assert getattr(ready, f"callbacks_{name}") is hooks.step_seen
    assert ready.env_runner_cls.__name__ == ("WorldsRunner" if name == "on_train_result" else "StockRunner")


def test_a_runner_that_came_back_is_told_its_recipe_before_a_user_hears_of_it() -> None:
    from flywheel.train.rllib.learn import configure
    from flywheel.train.rllib.recipes import _tell_again
    from tests.on_ray import hooks

    given = config(
        "ppo", on_env_runners_recreated="tests.on_ray.hooks:iterated", callbacks_class="tests.on_ray.hooks:Watching"
    )
    ready = configure(cartpole, spec_of(cartpole), given, 1, {})
    assert ready.callbacks_on_env_runners_recreated == [_tell_again, hooks.iterated]
    assert ready.callbacks_class is hooks.Watching and ready.env_runner_cls.__name__ == "StockRunner"


def test_an_insistence_on_our_own_runner_is_weighed_before_ray_is_started() -> None:
    given = dataclasses.replace(config("ppo", batch_mode="complete_episodes"), runner="own")
    with pytest.raises(UsageError, match=r"train\.runner is own, and train\.rllib wants whole episodes"):
        check_passed(given)
    check_passed(config("ppo", batch_mode="complete_episodes"))


def test_networks_of_the_users_own_are_built_and_exported() -> None:
    """In one process, without Ray: what the learner has is what the runner acts by and what is served."""
    import numpy as np
    from ray.rllib.core import DEFAULT_MODULE_ID

    from flywheel.policy import Policy
    from flywheel.train.rllib.export import Exporter, answered
    from flywheel.train.rllib.learn import _fresh
    from tests.on_ray.hooks import Same
    from tests.on_ray.learners import learner_of

    spec = spec_of(cartpole)
    rllib = {"rl_module_spec": "tests.on_ray.hooks:Same", "model_config": {"head_fcnet_hiddens": [8]}}
    learner = learner_of(cartpole, config("ppo", **rllib))
    module = learner.module[DEFAULT_MODULE_ID]
    assert type(module) is Same and learner._layers is None and learner._is_lean
    weights = _fresh(module)
    assert weights["pi.net.mlp.0.weight"].shape == (8, 64) and weights["pi.net.mlp.2.weight"].shape == (2, 8)
    module.set_state(weights)
    rows = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    policy = Policy(Exporter(module, spec).network(weights), spec)
    assert policy.outputs(rows) == pytest.approx(answered(module, rows), abs=1e-5)


def test_a_connector_of_the_learners_changes_what_is_learnt_from() -> None:
    """The critic's targets follow rewards that only the connector gives."""
    from ray.rllib.core.learner.training_data import TrainingData

    from flywheel.records import Plan
    from flywheel.train.recipe import make_recipe
    from flywheel.train.rllib.learn import configure
    from tests.on_ray.learners import learner_of

    given = config("ppo", learner_connector="tests.on_ray.hooks:curious")
    ready = configure(cartpole, spec_of(cartpole), given, 1, {})
    runner = ready.env_runner_cls(config=ready, worker_index=1)
    runner.tell(make_recipe(cartpole, Plan(strategy="continue_training", reasons=()), given))
    (played,) = runner.sample(num_timesteps=200)
    runner.stop()
    targets: list[float] = []
    for each in (given, config("ppo")):
        learner = learner_of(cartpole, each)
        assert (learner._layers is None) == (each is given), "layers alone read columns, which no connector sees"
        learner._layers = None
        learner._descend_tensors = lambda rows, *_: targets.append(float(rows["value_targets"].mean()))
        learner.update(training_data=TrainingData(episodes=[played]), timesteps={}, num_epochs=1, minibatch_size=64)
    assert targets[0] > 5.0 * targets[1] > 0.0


@pytest.mark.parametrize(
    ("algorithm", "rllib", "said"),
    [
        ("ppo", {"clip_parm": 0.1}, "no setting of RLlib's ppo: 'clip_parm'. Did you mean 'clip_param'"),
        ("sac", {"initial_alfa": 0.1}, "Did you mean 'initial_alpha'"),
        ("ppo", {"lr": 1e-4}, "can't set RLlib's lr: set train.lr"),
        ("appo", {"use_kl_loss": True}, "learner of appo doesn't read it"),
        ("dqn", {"double_q": False}, "learner of dqn doesn't read it"),
        ("ppo", {"num_learners": 2}, "the learner is the trainer's own process"),
        ("ppo", {"observation_filter": "MeanStdFilter"}, "RLlib's new stack reads none"),
        ("ppo", {"env_to_module_connector": "a:b"}, "what is served is the network alone"),
        ("ppo", {"module_to_env_connector": "a:b"}, "what is served is the network alone"),
        ("ppo", {"explore": False}, "a Plan says how much is explored"),
        ("ppo", {"rollout_fragment_length": 8}, "set train.steps_per_world"),
        ("ppo", {"restart_failed_sub_environments": True}, "a world that fails is made anew"),
        ("ppo", {"min_train_timesteps_per_iteration": 10}, "don't count those steps"),
        ("ppo", {"log_gradients": True}, "the loss's parts alone"),
        ("ppo", {"max_requests_in_flight_per_env_runner": 2}, "only APPO asks its runners ahead"),
        ("sac", {"learner_connector": "a:b"}, "only PPO's learner has"),
        ("ppo", {"episode_lookback_horizon": 5}, "only connectors and RLlib's own buffers"),
        ("ppo", {"on_evaluate_start": "a:b"}, "it would never be called"),
        ("ppo", {"gym_env_vectorize_mode": "vector_entry_point"}, "it can be sync or async"),
        ("ppo", {"batch_mode": "whole_episodes"}, "RLlib refuses batch_mode = 'whole_episodes'"),
        ("ppo", {"on_episode_step": "nowhere:hook"}, "there is no such thing .*give module:name"),
        ("ppo", {"on_episode_step": "tests.on_ray.hooks:NUMBER"}, "no function or class"),
        ("ppo", {"rl_module_spec": "tests.on_ray.hooks:Watching"}, "has to be a TorchRLModule"),
        ("appo", {"rl_module_spec": "tests.on_ray.hooks:Remembering"}, "Remembering: a policy that remembers can't"),
        ("dqn", {"rl_module_spec": "tests.on_ray.hooks:Same"}, "networks are Flywheel's"),
        ("ppo", {"model_config": {"use_lstm": True}}, "use_lstm: a policy that remembers can't be served"),
        ("ppo", {"model_config": {"conv_filters": [[8, 3, 1]]}}, "observations come as one row"),
        ("ppo", {"model_config": {"fcnet_hiddens": [8]}}, "fcnet_hiddens: set train.hidden"),
        ("ppo", {"model_config": {"hed_fcnet_hiddens": [8]}}, "Did you mean 'head_fcnet_hiddens'"),
        ("ppo", {"env_config": {}}, "the task says"),
        ("ppo", {"evaluation_interval": 1}, "the gate tries policies"),
        ("ppo", {"num_rollout_workers": 3}, "no setting of RLlib's ppo: 'num_rollout_workers'"),
        ("ppo", {"clip_param": "wide"}, "the value 'wide', where it is usually"),
        ("ppo", {"use_kl_loss": 1}, "the value 1, where it is usually True"),
    ],
)
def test_what_has_none_or_is_flywheels_own_is_refused_by_name(algorithm: str, rllib: dict[str, Any], said: str) -> None:
    from flywheel.train.rllib.passing import passed, plain

    given = config(algorithm, **rllib)
    with pytest.raises(UsageError, match=said):
        passed(plain(given), given)


def test_it_is_refused_before_ray_is_started_by_a_process_that_may_import_rllib() -> None:
    with pytest.raises(UsageError, match="Did you mean 'clip_param'"):
        check_passed(config("ppo", clip_parm=0.1))
    with pytest.raises(UsageError, match="numbers, text, lists and null only"):
        check_passed(config("ppo", clip_param=object()))
    check_passed(config("ppo"))
