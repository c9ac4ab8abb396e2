"""RLlib's SAC on our runners and our replay table (Haarnoja et al. 2018): box actions, squashed into their bounds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from ray.rllib.algorithms.sac import SACConfig
from ray.rllib.algorithms.sac.sac_catalog import SACCatalog
from ray.rllib.algorithms.sac.torch.sac_torch_learner import SACTorchLearner
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from flywheel.config import TrainConfig
from flywheel.records import Array, Spec
from flywheel.sampling import Batch
from flywheel.task import Task
from flywheel.train.rllib.from_replay import FromReplay, rows
from flywheel.train.rllib.recipes import on_worlds
from flywheel.train.rllib.twins import PiModule


class LeanSACLearner(SACTorchLearner):  # type: ignore[misc]
    """Soft actor-critic with two critics and a learnt temperature, on one CPU, without metrics in the loop."""

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """Register Adam for both critics together, for the actor and for the temperature."""
        module = self._module[module_id]
        groups = {
            "qf": [*module.qf.parameters()],
            "policy": [*module.pi.parameters()],
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
        seen, later = torch.as_tensor(rows(batch.observations)), torch.as_tensor(rows(batch.next_observations))
        alpha = log_alpha.detach().exp()
        with torch.no_grad():
            actions, logps = module.drawn(later)
            ahead = module.forward_target({"obs": later, "actions": actions}) - alpha * logps
            wanted = torch.as_tensor(batch.rewards) + torch.as_tensor(batch.discounts) * ahead
        acted = torch.cat([seen, torch.as_tensor(rows(batch.actions))], dim=-1)
        errors = module.qf(acted) - wanted
        self._step("qf", (torch.as_tensor(batch.weights) * errors**2).mean(dim=1).sum())
        actions, logps = module.drawn(seen)
        for parameter in (frozen := self.get_optimizer(DEFAULT_MODULE_ID, "qf").param_groups[0]["params"]):
            parameter.requires_grad_(False)
        self._step("policy", (alpha * logps - module.compute_q_values({"obs": seen, "actions": actions})).mean())
        for parameter in frozen:
            parameter.requires_grad_(True)
        self._step("alpha", -(log_alpha * (logps.detach() + self.entropy).mean()).sum())
        with torch.no_grad():
            rate = self.config.env_config["train"].replay.target_rate
            torch._foreach_lerp_([*module.target_qf.parameters()], frozen, rate)
        found: Array = errors[0].detach().numpy()
        return found

    def explore(self, factor: float) -> None:
        """Aim at an entropy per number of the action that is higher by half the log of a Plan's exploration."""
        size = int(np.prod(self.module[DEFAULT_MODULE_ID].action_space.shape))
        self.entropy = size * (-1.0 + 0.5 * math.log(factor))

    def _step(self, name: str, loss: torch.Tensor) -> None:
        """Take one step of Adam down a loss."""
        optimizer = self.get_optimizer(DEFAULT_MODULE_ID, name)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def sac_config(task: Task, spec: Spec, config: TrainConfig, seed: int, claims: Mapping[str, float]) -> SACConfig:
    """Return RLlib's configuration."""
    module = RLModuleSpec(
        module_class=PiModule,
        catalog_class=SACCatalog,
        model_config={
            "fcnet_hiddens": list(config.hidden),
            "fcnet_activation": config.activation,
            "head_fcnet_hiddens": [],
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
