"""RLlib's DQN on our runners and our replay table: double Q-learning, several steps ahead.

RLlib's own buffer gives one-step episodes that connectors then take apart (20 ms for 256 transitions), and its learner
takes 10 ms for a minibatch; here a batch is six arrays, and an update one forward and one backward pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from ray.rllib.algorithms.dqn import DQN, DQNConfig
from ray.rllib.algorithms.dqn.torch.default_dqn_torch_rl_module import DefaultDQNTorchRLModule
from ray.rllib.algorithms.dqn.torch.dqn_torch_learner import DQNTorchLearner
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.utils import update_target_network
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.execution.rollout_ops import synchronous_parallel_sample
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS

from flywheel.config import TrainConfig
from flywheel.errors import UsageError
from flywheel.records import Spec
from flywheel.sampling import Batch
from flywheel.task import Task
from flywheel.train.replay import Replay
from flywheel.train.rllib.recipes import ByRecipe, on_worlds

MOST_GRADIENT = 10.0
"""Length to which a gradient is cut (Mnih et al. 2015 cut each error; values here are as large as returns)."""


class QModule(DefaultDQNTorchRLModule):  # type: ignore[misc]
    """RLlib's Q-network whose answers are what an action is drawn from, as every other policy's."""

    epsilon = 0.0

    def _forward_inference(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return values over the temperature: their softmax is what a policy that isn't greedy draws from."""
        values = self.compute_q_values(batch)["qf_preds"]
        return {Columns.ACTION_DIST_INPUTS: values / self.model_config["temperature"]}

    _forward = _forward_inference

    def _forward_exploration(self, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Return log chances of the epsilon-greedy choice."""
        values = self.compute_q_values(batch)["qf_preds"]
        best = torch.nn.functional.one_hot(values.argmax(dim=-1), values.shape[-1])
        return {
            Columns.ACTION_DIST_INPUTS: torch.log(
                best * (1.0 - self.epsilon) + max(self.epsilon, 1e-6) / values.shape[-1]
            )
        }


class LeanDQNLearner(DQNTorchLearner):  # type: ignore[misc]
    """Double Q-learning (van Hasselt et al. 2016) over windows of n steps, on one CPU, without metrics in the loop."""

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """Register Adam in its fused form, which updates all tensors in one call."""
        parameters = [*self._module[module_id].encoder.parameters(), *self._module[module_id].af.parameters()]
        optimizer = torch.optim.Adam(parameters, fused=True)
        self.register_optimizer(
            module_id=module_id, optimizer=optimizer, params=parameters, lr_or_lr_schedule=config.lr
        )

    def descend(self, batch: Batch) -> Any:
        """Take one step of Adam down the Huber loss of a batch's TD errors, and return these, float32[N]."""
        module = self.module[DEFAULT_MODULE_ID]
        observations = torch.as_tensor(_rows(batch.observations))
        later = torch.as_tensor(_rows(batch.next_observations))
        with torch.no_grad():
            best = module.compute_q_values({"obs": later})["qf_preds"].argmax(dim=-1, keepdim=True)
            ahead = module.forward_target({"obs": later})["qf_preds"].gather(-1, best).squeeze(-1)
            target = torch.as_tensor(batch.rewards) + torch.as_tensor(batch.discounts) * ahead
        values = module.compute_q_values({"obs": observations})["qf_preds"]
        chosen = values.gather(-1, torch.as_tensor(batch.actions).long().unsqueeze(-1)).squeeze(-1)
        losses = torch.nn.functional.huber_loss(chosen, target, reduction="none")
        optimizer = self.get_optimizer(DEFAULT_MODULE_ID)
        optimizer.zero_grad()
        (torch.as_tensor(batch.weights) * losses).mean().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], MOST_GRADIENT, error_if_nonfinite=True)
        optimizer.step()
        return (chosen.detach() - target).numpy()

    def follow(self) -> None:
        """Copy the network into its target."""
        for main, target in self.module[DEFAULT_MODULE_ID].get_target_network_pairs():
            update_target_network(main_net=main, target_net=target, tau=1.0)


def _rows(observations: Any) -> Any:
    return np.asarray(observations, np.float32).reshape(len(observations), -1)


class StoreDQN(ByRecipe, DQN):  # type: ignore[misc]
    """DQN that learns from a Replay."""

    replay: Replay
    """Set by whoever built it, before the first round."""
    _num_updates = 0

    def training_step(self) -> None:
        """Sample once, and take as many updates as what came since allows."""
        self.adapt(epsilon=round(self.replay.epsilon, 3))
        chunks, results = synchronous_parallel_sample(
            worker_set=self.env_runner_group,
            concat=True,
            sample_timeout_s=self.config.sample_timeout_s,
            _uses_new_env_runners=True,
            _return_metrics=True,
        )
        self.metrics.aggregate(results, key=ENV_RUNNER_RESULTS)
        for chunk in chunks:
            self.replay.simulated(_told(chunk), "train")
        learner: LeanDQNLearner = self.learner_group._learner
        for _ in range(self.replay.num_due):
            batch = self.replay.batch()
            self.replay.learnt(batch, learner.descend(batch))
            self._num_updates += 1
            if self._num_updates % self.config.env_config["train"].replay.target_every == 0:
                learner.follow()
        # Runners take only weights with a higher number than the ones they have.
        learner._weights_seq_no += 1
        self.env_runner_group.sync_weights(from_worker_or_learner_group=self.learner_group, inference_only=True)


def _told(chunk: Any) -> SimpleNamespace:
    """Return an RLlib episode's arrays."""
    outputs = chunk.get_extra_model_outputs("action_logp")
    return SimpleNamespace(
        observations=chunk.get_observations(),
        actions=chunk.get_actions(),
        rewards=np.asarray(chunk.get_rewards(), np.float64),
        logps=np.asarray(outputs),
        end="terminated" if chunk.is_terminated else "truncated",
    )


def dqn_config(task: Task, spec: Spec, config: TrainConfig, seed: int, claims: Mapping[str, float]) -> DQNConfig:
    """Return RLlib's configuration. Raises UsageError for a task whose actions aren't discrete."""
    if spec.action_kind != "discrete":
        raise UsageError(
            f"DQN learns a value for each of a few actions, and task {task.name} has {spec.action_kind} ones: leave "
            "train.algorithm at ppo."
        )
    return (
        on_worlds(DQNConfig(algo_class=StoreDQN), task, spec, config, seed, dict(claims))
        .learners(num_learners=0, learner_class=LeanDQNLearner)
        .rl_module(
            rl_module_spec=RLModuleSpec(
                module_class=QModule,
                model_config={
                    "fcnet_hiddens": list(config.hidden),
                    "fcnet_activation": config.activation,
                    "head_fcnet_hiddens": [],
                    "temperature": config.replay.temperature,
                    "dueling": False,
                    "double_q": True,
                    "num_atoms": 1,
                    "epsilon": config.replay.epsilon,
                },
            )
        )
        .training(lr=config.lr, gamma=config.gamma, dueling=False, num_atoms=1, grad_clip=None)
    )
