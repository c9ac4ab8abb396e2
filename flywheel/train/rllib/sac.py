"""RLlib's SAC on our runners and our replay table (Haarnoja et al. 2018): box actions, squashed into their bounds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from ray.rllib.algorithms.sac import SACConfig
from ray.rllib.algorithms.sac.torch.default_sac_torch_rl_module import DefaultSACTorchRLModule
from ray.rllib.algorithms.sac.torch.sac_torch_learner import SACTorchLearner
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

LOG_DEVIATIONS = (-5.0, 2.0)
"""Between which RLlib holds the log of a deviation; the exported network holds it there, too."""


class PiModule(DefaultSACTorchRLModule):  # type: ignore[misc]
    """RLlib's actor and critics, whose actor answers with deviations as they are drawn with."""

    noise = 0.0
    """What runners add to the logarithm of each deviation."""

    def _forward_inference(self, batch: dict[str, Any]) -> dict[str, Any]:
        mean, log_deviation = super()._forward_inference(batch)[Columns.ACTION_DIST_INPUTS].chunk(2, dim=-1)
        outputs = torch.cat([mean, log_deviation.clamp(*LOG_DEVIATIONS)], dim=-1)
        return {Columns.ACTION_DIST_INPUTS: outputs}

    _forward = _forward_inference

    def _forward_exploration(self, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        mean, log_deviation = self._forward_inference(batch)[Columns.ACTION_DIST_INPUTS].chunk(2, dim=-1)
        outputs = torch.cat([mean, (log_deviation + self.noise).clamp(*LOG_DEVIATIONS)], dim=-1)
        return {Columns.ACTION_DIST_INPUTS: outputs}


class LeanSACLearner(SACTorchLearner):  # type: ignore[misc]
    """Soft actor-critic with two critics and a learnt temperature, on one CPU, without metrics in the loop."""

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """Register Adam for both critics together, for the actor and for the temperature."""
        module = self._module[module_id]
        critics = [module.qf_encoder, module.qf, module.qf_twin_encoder, module.qf_twin]
        groups = {
            "qf": [p for net in critics for p in net.parameters()],
            "policy": [*module.pi_encoder.parameters(), *module.pi.parameters()],
            "alpha": [self.curr_log_alpha[module_id]],
        }
        for name, parameters in groups.items():
            self.register_optimizer(
                module_id=module_id, optimizer_name=name, optimizer=torch.optim.Adam(parameters, fused=True),
                params=parameters, lr_or_lr_schedule=config.actor_lr,
            )  # fmt: skip

    def descend(self, batch: Batch) -> Array:
        """Take one step each for critics, actor and temperature, and return TD errors float32[N]."""
        module, log_alpha = self.module[DEFAULT_MODULE_ID], self.curr_log_alpha[DEFAULT_MODULE_ID]
        given = self.config.env_config["train"].replay
        seen, later = torch.as_tensor(rows(batch.observations)), torch.as_tensor(rows(batch.next_observations))
        alpha = log_alpha.detach().exp()
        with torch.no_grad():
            actions, logps = self._drawn(later).sample_and_logp()
            ahead = module.forward_target({"obs": later, "actions": actions}) - alpha * logps
            wanted = torch.as_tensor(batch.rewards) + torch.as_tensor(batch.discounts) * ahead
        acted = {"obs": seen, "actions": torch.as_tensor(batch.actions.reshape(len(seen), -1))}
        errors = [q - wanted for q in self._critics(acted)]
        weights = torch.as_tensor(batch.weights)
        self._step("qf", sum(((weights * error**2).mean() for error in errors), torch.zeros(())))
        actions, logps = self._drawn(seen).rsample_and_logp()
        for parameter in (frozen := self.get_optimizer(DEFAULT_MODULE_ID, "qf").param_groups[0]["params"]):
            parameter.requires_grad_(False)
        values = torch.minimum(*self._critics({"obs": seen, "actions": actions}))
        self._step("policy", (alpha * logps - values).mean())
        for parameter in frozen:
            parameter.requires_grad_(True)
        self._step("alpha", -(log_alpha * (logps.detach() + self.entropy)).mean())
        for main, target in module.get_target_network_pairs():
            update_target_network(main_net=main, target_net=target, tau=given.target_rate)
        found: Array = errors[0].detach().numpy()
        return found

    def explore(self, factor: float) -> None:
        """Aim at an entropy per number of the action that is higher by half the log of a Plan's exploration."""
        size = int(np.prod(self.module[DEFAULT_MODULE_ID].action_space.shape))
        self.entropy = size * (-1.0 + 0.5 * math.log(factor))

    def _drawn(self, observations: Any) -> Any:
        module = self.module[DEFAULT_MODULE_ID]
        outputs = module.pi(module.pi_encoder({"obs": observations})["encoder_out"])
        return module.get_train_action_dist_cls().from_logits(outputs)

    def _critics(self, batch: dict[str, Any]) -> tuple[Any, Any]:
        """Return both critics' values float32[N]."""
        module = self.module[DEFAULT_MODULE_ID]
        return (
            module._qf_forward_train_helper(batch, module.qf_encoder, module.qf),
            module._qf_forward_train_helper(batch, module.qf_twin_encoder, module.qf_twin),
        )

    def _step(self, name: str, loss: Any) -> None:
        optimizer = self.get_optimizer(DEFAULT_MODULE_ID, name)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def sac_config(task: Task, spec: Spec, config: TrainConfig, seed: int, claims: Mapping[str, float]) -> SACConfig:
    """Return RLlib's configuration."""
    module = RLModuleSpec(
        module_class=PiModule,
        model_config={
            "fcnet_hiddens": list(config.hidden),
            "fcnet_activation": config.activation,
            "head_fcnet_hiddens": [],
            "twin_q": True,
        },
    )
    return (
        on_worlds(SACConfig(algo_class=FromReplay), task, spec, config, seed, dict(claims))
        .learners(num_learners=0, learner_class=LeanSACLearner)
        .rl_module(rl_module_spec=module)
        .training(
            actor_lr=config.lr, critic_lr=config.lr, alpha_lr=config.lr, lr=None, gamma=config.gamma,
            initial_alpha=1.0, twin_q=True,
        )
    )  # fmt: skip
