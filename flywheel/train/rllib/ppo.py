"""RLlib's PPO on our runners, with our learner's loop."""

from __future__ import annotations

from collections.abc import Mapping

from ray.rllib.algorithms.ppo import PPO, PPOConfig

from flywheel.config import TrainConfig
from flywheel.records import Spec
from flywheel.task import Task
from flywheel.train.rllib.learner import LeanPPOLearner
from flywheel.train.rllib.recipes import ByRecipe, on_worlds


class RecipePPO(ByRecipe, PPO):  # type: ignore[misc]
    """PPO whose runners sample by a Recipe."""


def ppo_config(task: Task, spec: Spec, config: TrainConfig, seed: int, claims: Mapping[str, float]) -> PPOConfig:
    """Return RLlib's configuration, with small-task values instead of PPO's defaults."""
    size = config.num_runners * config.worlds_per_runner * config.steps_per_world
    return (
        on_worlds(PPOConfig(algo_class=RecipePPO), task, spec, config, seed, dict(claims))
        .learners(num_learners=0, learner_class=LeanPPOLearner)
        .rl_module(
            model_config={
                "fcnet_hiddens": list(config.hidden),
                "fcnet_activation": config.activation,
                "vf_share_layers": False,
            }
        )
        .training(
            train_batch_size_per_learner=size,
            minibatch_size=config.minibatch_size,
            num_epochs=config.num_epochs,
            lr=config.lr,
            gamma=config.gamma,
            lambda_=config.lambda_,
            entropy_coeff=config.entropy,
            clip_param=0.2,
            grad_clip=0.5,
            grad_clip_by="global_norm",
            vf_loss_coeff=0.5,
            vf_clip_param=float("inf"),
            use_kl_loss=False,
        )
    )
