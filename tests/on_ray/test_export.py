"""The exported policy acts as RLlib's module does, and its rows don't depend on the batch they are in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from flywheel.errors import Refused
from flywheel.policy import Policy, to_env
from flywheel.records import Array, Spec
from flywheel.spaces import seen_spaces
from flywheel.task import Task, spec_of
from flywheel.tasks.cartpole import cartpole, failed
from tests.rooms import room

pendulum = Task(name="pendulum", env="Pendulum-v1", failed=failed)
TASKS = pytest.mark.parametrize("task", [cartpole, pendulum, room], ids=["discrete", "continuous", "multi_discrete"])
NETWORKS = pytest.mark.parametrize("network", [(64, "tanh"), (128, "relu")], ids=["tanh", "relu"])


def make_module(spec: Spec, seed: int, hidden: int = 64, activation: str = "tanh") -> Any:
    from ray.rllib.algorithms.ppo.ppo_catalog import PPOCatalog
    from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
    from ray.rllib.core.rl_module.rl_module import RLModuleSpec

    torch.manual_seed(seed)
    observation_space, action_space = seen_spaces(spec)
    return RLModuleSpec(
        module_class=DefaultPPOTorchRLModule,
        observation_space=observation_space,
        action_space=action_space,
        model_config={"fcnet_hiddens": [hidden] * 2, "fcnet_activation": activation, "vf_share_layers": False},
        catalog_class=PPOCatalog,
    ).build()


def weights_of(module: Any) -> dict[str, Array]:
    return {name: np.array(value) for name, value in module.get_state(inference_only=False).items()}


def observations_for(spec: Spec, num_rows: int) -> Array:
    return np.random.default_rng(1).normal(size=(num_rows, *spec.observation_shape)).astype(np.float32)


@TASKS
@NETWORKS
def test_the_exported_policy_answers_as_the_module_does_on_1000_observations(
    task: Task, network: tuple[int, str]
) -> None:
    from flywheel.train.rllib.export import Exporter

    spec = spec_of(task)
    exporter = Exporter(make_module(spec, 1, *network), spec)
    for seed in (2, 3):
        module = make_module(spec, seed, *network)
        policy = Policy(exporter.network(weights_of(module)), spec)
        rows = observations_for(spec, 1000)
        with torch.no_grad():
            expected = module.forward_inference({"obs": torch.as_tensor(rows)})["action_dist_inputs"]
        assert policy.outputs(rows) == pytest.approx(expected.numpy(), abs=1e-5)


@TASKS
def test_actions_have_the_modules_probability_and_reach_the_environment_as_rllib_sends_them(task: Task) -> None:
    from ray.rllib.utils.spaces.space_utils import unsquash_action

    from flywheel.train.rllib.export import Exporter

    spec = spec_of(task)
    module = make_module(spec, seed=4)
    policy = Policy(Exporter(module, spec).network(weights_of(module)), spec)
    rows = observations_for(spec, 1000)
    actions, logps = policy.act(rows, np.random.default_rng(2).uniform(size=(1000, spec.num_draws)))
    with torch.no_grad():
        inputs = module.forward_exploration({"obs": torch.as_tensor(rows)})["action_dist_inputs"]
        chances = module.get_exploration_action_dist_cls().from_logits(inputs)
        assert logps == pytest.approx(chances.logp(torch.as_tensor(actions)).numpy(), abs=1e-5)
    if spec.action_kind == "box":
        env = task.make_env()
        assert to_env(spec, actions) == pytest.approx(unsquash_action(actions, env.action_space), abs=1e-6)
        env.close()  # type: ignore[no-untyped-call]


def test_draws_follow_the_modules_distribution() -> None:
    from flywheel.train.rllib.export import Exporter

    spec = spec_of(cartpole)
    module = make_module(spec, seed=5)
    policy = Policy(Exporter(module, spec).network(weights_of(module)), spec)
    row = observations_for(spec, 1)
    actions, _ = policy.act(np.repeat(row, 256, axis=0), ((np.arange(256) + 0.5) / 256)[:, None])
    with torch.no_grad():
        inputs = module.forward_exploration({"obs": torch.as_tensor(row)})["action_dist_inputs"]
    assert abs(actions.mean() - torch.softmax(inputs, dim=1)[0, 1].item()) <= 1 / 256


@TASKS
@NETWORKS
def test_rows_do_not_depend_on_their_batch(task: Task, network: tuple[int, str]) -> None:
    from flywheel.train.rllib.export import Exporter

    spec = spec_of(task)
    module = make_module(spec, 6, *network)
    policy = Policy(Exporter(module, spec).network(weights_of(module)), spec)
    rows = observations_for(spec, 256)
    alone = np.concatenate([policy.outputs(row[None]) for row in rows])
    for size in range(1, 257):
        assert (policy.outputs(rows[:size]) == alone[:size]).all(), size


@TASKS
def test_golden_vectors_are_the_modules_own_answers(task: Task) -> None:
    from flywheel.train.rllib.export import Exporter, golden

    spec = spec_of(task)
    module = make_module(spec, seed=7)
    observations, outputs = golden(module, spec)
    assert observations.shape == (16, *spec.observation_shape) and str(observations.dtype) == spec.observation_dtype
    assert (observations >= np.array(spec.observation_low)).all()
    assert (observations <= np.array(spec.observation_high)).all()
    policy = Policy(Exporter(module, spec).network(weights_of(module)), spec)
    assert policy.outputs(observations) == pytest.approx(outputs, abs=1e-5)


def test_weights_of_another_architecture_are_refused_by_name() -> None:
    from flywheel.train.rllib.learn import check_weights

    ours = weights_of(make_module(spec_of(cartpole), seed=8))
    check_weights(ours, weights_of(make_module(spec_of(cartpole), seed=9)))
    with pytest.raises(Refused, match=r"pi\.net\.mlp\.0\.weight"):
        check_weights(ours, weights_of(make_module(spec_of(cartpole), seed=8, hidden=32)))
    with pytest.raises(Refused, match=r"vf\.net\.mlp\.0\.bias"):
        check_weights(ours, {name: value for name, value in ours.items() if name != "vf.net.mlp.0.bias"})


def test_a_policy_that_remembers_is_refused() -> None:
    from ray.rllib.algorithms.ppo.ppo_catalog import PPOCatalog

    from flywheel.train.rllib.export import Exporter

    module = make_module(spec_of(cartpole), seed=1)
    lasting = type(module)(
        observation_space=module.observation_space, action_space=module.action_space, catalog_class=PPOCatalog,
        model_config={**module.model_config, "use_lstm": True},
    )  # fmt: skip
    with pytest.raises(Refused, match="remembers what it saw"):
        Exporter(lasting, spec_of(cartpole))
