"""Our PPO inside RLlib, without a cluster: the same loss, batch and metrics, and RLlib's own loop where it is asked."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from flywheel.config import TrainConfig
from flywheel.records import Plan, Spec
from flywheel.spaces import seen_spaces
from flywheel.task import Task, spec_of
from flywheel.tasks.cartpole import cartpole
from flywheel.train.nets import answers
from flywheel.train.recipe import make_recipe
from flywheel.train.surrogate import rows_of
from flywheel.train.tape import Played, joined

DEFAULT_MODULE_ID = "default_policy"


@functools.cache
def rl() -> SimpleNamespace:
    """Return what is RLlib's, and ours in it: imported no sooner than the cluster's environment may be set."""
    from ray.rllib.algorithms.ppo.torch import ppo_torch_learner
    from ray.rllib.core.learner import training_data
    from ray.rllib.env import single_agent_env_runner

    from flywheel.train.rllib import dense, env_runner, learner, ppo

    modules = ppo_torch_learner, training_data, single_agent_env_runner, dense, env_runner, learner, ppo
    return SimpleNamespace(**{name: value for module in modules for name, value in vars(module).items()})


CONFIG = TrainConfig(worlds_per_runner=8, steps_per_world=16, hidden=(16, 8))
PLAN = Plan(strategy="continue_training", reasons=())
GIVEN = {"timesteps": {}, "num_epochs": 3, "minibatch_size": 10_000, "shuffle_batch_per_epoch": True}
STEPS = "num_env_steps_sampled_lifetime"
pendulum = Task(name="pendulum", env="Pendulum-v1", failed=lambda _: False, version="1")
TASKS = {"discrete": cartpole, "box": pendulum}


def config_of(task: Task, **changes: Any) -> Any:
    config = rl().ppo_config(task, spec_of(task), dataclasses.replace(CONFIG, entropy=0.01), 3, {})
    return config.training(**changes) if changes else config


def learner_of(task: Task, config: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # RLlib builds its modules by what it deprecates
        learner: Any = config.build_learner(env=None, spaces={DEFAULT_MODULE_ID: seen_spaces(spec_of(task))})
    return learner


def runner_of(task: Task) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runner = rl().WorldsRunner(config=config_of(task), worker_index=1)
    runner.tell(make_recipe(task, PLAN, CONFIG))
    return runner


def weights_of(learner: Any) -> dict[str, Any]:
    return {k: v.copy() for k, v in learner.module[DEFAULT_MODULE_ID].get_state(inference_only=False).items()}


def updated(learner: Any, episodes: list[Any], **changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = learner.update(training_data=rl().TrainingData(episodes=episodes), **{**GIVEN, **changes})
    return found


@pytest.fixture(scope="module", params=sorted(TASKS))
def case(request: pytest.FixtureRequest) -> tuple[Task, Spec, Played]:
    task = TASKS[request.param]
    (played,) = runner_of(task).sample(num_timesteps=200)
    return task, spec_of(task), played


def test_the_layers_answer_as_the_module_does_also_after_it_got_other_weights(case: Any) -> None:
    task, _, played = case
    module = learner_of(task, config_of(task)).module[DEFAULT_MODULE_ID]
    actor, critic = rl().actor_of(module), rl().critic_of(module)
    assert actor and critic
    for _ in range(2):
        with torch.no_grad():
            seen = {"obs": torch.as_tensor(played.observations)}
            outputs, values = module._forward(seen)["action_dist_inputs"], module.compute_values(seen)
        found = answers(actor.layers, actor.activation, played.observations)
        np.testing.assert_allclose(found, outputs.numpy(), rtol=1e-5, atol=1e-6)
        found = answers(critic.layers, critic.activation, played.observations)[:, 0]
        np.testing.assert_allclose(found, values.numpy(), rtol=1e-5, atol=1e-6)
        module.set_state({k: v + 0.1 for k, v in module.get_state(inference_only=False).items()})


def test_what_the_runner_noted_of_its_actions_is_what_rllibs_distribution_says(case: Any) -> None:
    task, _, played = case
    module = runner_of(task).module
    chances = module.get_exploration_action_dist_cls().from_logits(torch.as_tensor(played.outputs))
    found = chances.logp(torch.as_tensor(played.actions)).numpy()
    np.testing.assert_allclose(found, played.logps, rtol=1e-4, atol=1e-5)


def test_the_batch_has_the_targets_that_rllibs_connectors_make(case: Any) -> None:
    task, spec, played = case
    learner = learner_of(task, config_of(task))
    theirs = learner._make_batch_if_necessary(
        training_data=rl().TrainingData(episodes=rl().episodes_of(played, *seen_spaces(spec)))
    )[DEFAULT_MODULE_ID]
    real = theirs["loss_mask"]
    critic = rl().critic_of(learner.module[DEFAULT_MODULE_ID])
    assert critic
    values = answers(critic.layers, critic.activation, played.observations)[:, 0]
    ours = rows_of(played, values, learner.config.gamma, learner.config.lambda_)
    for name, name_of_theirs in (("observations", "obs"), ("actions", "actions"), ("targets", "value_targets")):
        np.testing.assert_allclose(ours[name], theirs[name_of_theirs][real].numpy(), rtol=1e-4, atol=1e-4)
    # RLlib standardizes together with the steps that it adds for bootstrap values and masks afterwards.
    advantages = theirs["advantages"][real].numpy().astype(np.float64)
    advantages = (advantages - advantages.mean()) / advantages.std()
    np.testing.assert_allclose(ours["advantages"], advantages, rtol=1e-3, atol=1e-3)


def test_an_update_in_numpy_is_the_one_that_rllibs_loss_and_torchs_adam_make(case: Any) -> None:
    task, _, played = case
    ours, theirs = learner_of(task, config_of(task)), learner_of(task, config_of(task))
    theirs.module[DEFAULT_MODULE_ID].set_state(weights_of(ours))
    critic, config = rl().critic_of(ours.module[DEFAULT_MODULE_ID]), ours.config
    assert critic
    values = answers(critic.layers, critic.activation, played.observations)[:, 0]
    rows = rows_of(played, values, config.gamma, config.lambda_)
    batch = {
        "obs": rows["observations"], "actions": rows["actions"], "action_logp": rows["logps"],
        "advantages": rows["advantages"], "value_targets": rows["targets"], "action_dist_inputs": played.outputs,
    }  # fmt: skip
    batch = {name: torch.as_tensor(column) for name, column in batch.items()}
    module, optimizer = theirs.module[DEFAULT_MODULE_ID], theirs.get_optimizer(DEFAULT_MODULE_ID)
    before = weights_of(ours)
    for _ in range(2 * GIVEN["num_epochs"]):
        optimizer.zero_grad()
        loss = rl().PPOTorchLearner.compute_loss_for_module(
            theirs, module_id=DEFAULT_MODULE_ID, config=config, batch=batch, fwd_out=module._forward_train(batch)
        )
        assert theirs.loss(batch).item() == pytest.approx(loss.item(), rel=1e-4, abs=1e-5)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), config.grad_clip)
        optimizer.step()
    assert ours._layers is not None
    for _ in range(2):  # the second one goes on with the moments of the first, on the same rows
        ours._descend_rows(rows, GIVEN["num_epochs"], GIVEN["minibatch_size"])
    for name, value in weights_of(theirs).items():
        moved = max(np.abs(value - before[name]).max(), 1e-6)
        np.testing.assert_allclose(weights_of(ours)[name], value, atol=0.02 * moved, err_msg=name)


def test_moments_are_kept_from_update_to_update_and_forgotten_when_asked(case: Any) -> None:
    task, _, played = case
    learner = learner_of(task, config_of(task))
    optimizer = learner.get_optimizer(DEFAULT_MODULE_ID)
    found = updated(learner, [played], minibatch_size=len(played))
    assert {"policy_loss", "vf_loss", "entropy", "mean_kl_loss"} <= set(found[DEFAULT_MODULE_ID])
    assert {float(state["step"]) for state in optimizer.state.values()} == {3.0}
    updated(learner, [played], minibatch_size=len(played))
    assert {float(state["step"]) for state in optimizer.state.values()} == {6.0}
    optimizer.state.clear()
    updated(learner, [played], minibatch_size=len(played))
    assert {float(state["step"]) for state in optimizer.state.values()} == {3.0}


@pytest.mark.parametrize(
    ("changes", "loop"),
    [
        ({}, "layers"),
        ({"vf_loss_coeff": 0.25}, "layers"),
        ({"use_kl_loss": True}, "RLlib"),
        ({"vf_clip_param": 10.0}, "RLlib"),
    ],
)
def test_rllibs_own_loop_learns_where_a_setting_asks_for_more(
    changes: Any, loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, taken = learner_of(cartpole, config_of(cartpole, **changes)), []
    (played,) = runner_of(cartpole).sample(num_timesteps=100)
    for owner, name, called in (
        (rl().LeanPPOLearner, "_descend_layers", "layers"),
        (rl().PPOTorchLearner, "update", "RLlib"),
    ):
        original = getattr(owner, name)

        def watched(*a: Any, original: Any = original, called: str = called, **k: Any) -> Any:
            taken.append(called)
            return original(*a, **k)

        monkeypatch.setattr(owner, name, watched)
    before = weights_of(learner)
    found = updated(learner, [played], num_epochs=1, minibatch_size=32, timesteps={STEPS: len(played)})
    assert taken == [loop]
    assert all((weights_of(learner)[name] != value).any() for name, value in before.items() if "mlp" in name)
    assert np.isfinite(float(found[DEFAULT_MODULE_ID]["policy_loss"].peek()))


def test_a_network_with_common_layers_is_learnt_in_torch() -> None:
    config = config_of(cartpole).rl_module(model_config={"fcnet_hiddens": [16], "vf_share_layers": True})
    learner = learner_of(cartpole, config)
    assert learner._layers is None and learner._is_lean
    parts = [runner_of(cartpole).sample(num_timesteps=100)[0] for _ in range(2)]
    before = weights_of(learner)
    updated(learner, parts, num_epochs=1, minibatch_size=32)
    assert all((weights_of(learner)[name] != value).any() for name, value in before.items() if "mlp" in name)


def test_columns_and_episodes_are_the_same_steps() -> None:
    (columns,) = runner_of(cartpole).sample(num_timesteps=300)
    chunks = rl().episodes_of(columns, *seen_spaces(spec_of(cartpole)))
    assert sum(map(len, chunks)) == len(columns) >= 300
    assert [chunk.is_terminated for chunk in chunks] == columns.terminated.tolist()
    np.testing.assert_array_equal(np.concatenate([c.get_observations() for c in chunks]), columns.observations)
    np.testing.assert_array_equal(np.concatenate([c.get_actions() for c in chunks]), columns.actions)
    back = rl().played_of(chunks)
    for name in Played.__slots__:
        np.testing.assert_array_equal(getattr(back, name), getattr(columns, name))
    assert len(joined([columns, columns])) == 2 * len(columns)


def test_episodes_are_told_at_once_as_rllib_tells_them_one_by_one() -> None:
    ours, theirs = runner_of(cartpole), runner_of(cartpole)
    rng = np.random.default_rng(0)
    for num in (1, 7, 200):  # the last one is more than the window
        lengths = rng.integers(5, 500, num).astype(float)
        returns = lengths * 0.5
        ours._log_episodes(lengths, returns)
        for length, value in zip(lengths, returns, strict=True):
            rl().SingleAgentEnvRunner._log_episode_metrics(theirs, length, value, 0.0)
        found, wanted = ours.get_metrics(), theirs.get_metrics()
        wanted.pop("episode_duration_sec_mean")
        for name in [name for name in wanted if name.startswith("episode_")]:
            assert float(found[name].peek()) == pytest.approx(float(wanted[name].peek())), name
