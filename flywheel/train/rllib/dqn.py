"""RLlib's DQN on our runners and our replay table: double Q-learning, several steps ahead.

RLlib's own buffer gives one-step episodes that connectors then take apart (20 ms for 256 transitions), and its learner
takes 10 ms for a minibatch; here a batch is a few arrays, and an update one forward and one backward pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from ray.rllib.algorithms.dqn import DQNConfig
from ray.rllib.algorithms.dqn.torch.default_dqn_torch_rl_module import DefaultDQNTorchRLModule
from ray.rllib.algorithms.dqn.torch.dqn_torch_learner import DQNTorchLearner
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.utils import update_target_network
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from flywheel.config import TrainConfig
from flywheel.records import Array, Spec
from flywheel.sampling import Batch
from flywheel.task import Task
from flywheel.train.rllib.from_replay import FromReplay, rows
from flywheel.train.rllib.recipes import on_worlds

MOST_GRADIENT = 10.0
"""Length to which a gradient is cut (Mnih et al. 2015 cut each error; values here are as large as returns)."""
_LEAST_CHANCE = 1e-6  # of an action that greedy runners never take: its logarithm is a number


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
        chances = best * (1.0 - self.epsilon) + max(self.epsilon, _LEAST_CHANCE) / values.shape[-1]
        return {Columns.ACTION_DIST_INPUTS: torch.log(chances)}


class LeanDQNLearner(DQNTorchLearner):  # type: ignore[misc]
    """Double Q-learning (van Hasselt et al. 2016) over windows of n steps, on one CPU, without metrics in the loop."""

    _num_updates = 0

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """Register Adam in its fused form, which updates all tensors in one call."""
        parameters = [*self._module[module_id].encoder.parameters(), *self._module[module_id].af.parameters()]
        optimizer = torch.optim.Adam(parameters, fused=True)
        self.register_optimizer(
            module_id=module_id, optimizer=optimizer, params=parameters, lr_or_lr_schedule=config.lr
        )

    def descend(self, batch: Batch) -> Array:
        """Take one step of Adam down the Huber loss of a batch's TD errors, and return these, float32[N].

        The target network is a copy of the network as it was up to `replay.target_every` updates before, or follows it.
        """
        module, given = self.module[DEFAULT_MODULE_ID], self.config.env_config["train"].replay
        if given.target_every == 0 or self._num_updates % given.target_every == 0:
            for main, target in module.get_target_network_pairs():
                rate = 1.0 if given.target_every else given.target_rate
                update_target_network(main_net=main, target_net=target, tau=rate)
        self._num_updates += 1
        seen, later = torch.as_tensor(rows(batch.observations)), torch.as_tensor(rows(batch.next_observations))
        with torch.no_grad():
            best = module.compute_q_values({"obs": later})["qf_preds"].argmax(dim=-1, keepdim=True)
            ahead = module.forward_target({"obs": later})["qf_preds"].gather(-1, best).squeeze(-1)
            wanted = torch.as_tensor(batch.rewards) + torch.as_tensor(batch.discounts) * ahead
        values = module.compute_q_values({"obs": seen})["qf_preds"]
        chosen = values.gather(-1, torch.as_tensor(batch.actions).long().unsqueeze(-1)).squeeze(-1)
        losses = torch.nn.functional.huber_loss(chosen, wanted, reduction="none", delta=given.huber_delta)
        optimizer = self.get_optimizer(DEFAULT_MODULE_ID)
        optimizer.zero_grad()
        (torch.as_tensor(batch.weights) * losses).mean().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], MOST_GRADIENT, error_if_nonfinite=True)
        optimizer.step()
        errors: Array = (chosen.detach() - wanted).numpy()
        return errors


def dqn_config(task: Task, spec: Spec, config: TrainConfig, seed: int, claims: Mapping[str, float]) -> DQNConfig:
    """Return RLlib's configuration."""
    module = RLModuleSpec(
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
    return (
        on_worlds(DQNConfig(algo_class=FromReplay), task, spec, config, seed, dict(claims))
        .learners(num_learners=0, learner_class=LeanDQNLearner)
        .rl_module(rl_module_spec=module)
        .training(lr=config.lr, gamma=config.gamma, dueling=False, num_atoms=1, grad_clip=None)
    )
