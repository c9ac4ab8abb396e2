"""APPO: PPO that waits for no runner (Luo et al. 2020), on RLlib's runners and with our learner's loop.

Runners sample on while the learner learns, by weights that are an update or two old; V-trace makes up for that, and the
surrogate is about the policy before the update. RLlib's own APPO learner has a thread, which may be in the middle of an
update when a policy is read, and took 20 ms for a minibatch of 128 rows. Here it learns when it is called, as PPO's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from ray.rllib.algorithms.ppo import PPO, PPOConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, LEARNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME

from flywheel.config import TrainConfig
from flywheel.records import Spec
from flywheel.task import Task
from flywheel.train.heads import spread
from flywheel.train.nets import Floats, answers
from flywheel.train.recipe import Recipe
from flywheel.train.rllib.env_runner import RecipeRunner
from flywheel.train.rllib.learner import LeanPPOLearner
from flywheel.train.rllib.ppo import ppo_config
from flywheel.train.rllib.recipes import ByRecipe
from flywheel.train.surrogate import rows_of
from flywheel.train.tape import Played, joined

_NAMES = {
    "obs": "observations", "actions": "actions", "action_logp": "logps", "advantages": "advantages",
    "value_targets": "targets",
}  # fmt: skip
"""RLlib's names of what the loss reads, and ours."""
_TAG = "sample"
_LOOK_S = 0.02
"""Seconds that samples of all runners are waited for before those that are there are taken."""


class LeanAPPOLearner(LeanPPOLearner):
    """PPO's loops over rows whose advantages are V-trace's."""

    def update(self, *, training_data: Any, timesteps: Any, **given: Any) -> Any:
        """Learn from what was played for `num_epochs` passes, each in a new order, and return RLlib's metrics."""
        self.before_gradient_based_update(timesteps=timesteps)
        self._weights_seq_no += 1
        training_data.solve_refs()
        played, counts = joined(training_data.episodes), (given["num_epochs"], given["minibatch_size"])
        if self._layers is not None:
            self._descend_rows(self._rows(played, *self._answered(played)), *counts)
        else:
            found = self._rows(played, *self._computed(played))
            rows = {theirs: torch.as_tensor(found[ours]) for theirs, ours in _NAMES.items()}
            self._descend_tensors(rows, *counts)
            self.metrics.log_dict(self._measured(rows), key=DEFAULT_MODULE_ID, window=1)
        self.after_gradient_based_update(timesteps=timesteps)
        return self.metrics.reduce()

    def _rows(self, played: Played, values: Floats, logps: Floats) -> dict[str, Any]:
        return rows_of(played, values, self.config.gamma, self.config.lambda_, logps)

    def _answered(self, played: Played) -> tuple[Floats, Floats]:
        """Return every row's value and the log probabilities of the actions, by the layers as they are now."""
        assert self._layers is not None
        actor, critic = self._layers
        outputs = answers(actor.layers, actor.activation, played.observations[played.before])
        logps = spread(self._spec, outputs, actor.widest).logps(played.actions)
        return answers(critic.layers, critic.activation, played.observations)[:, 0], logps

    def _computed(self, played: Played) -> tuple[Floats, Floats]:
        """Return the same of a network that is more than layers."""
        module, seen = self.module[DEFAULT_MODULE_ID], torch.as_tensor(played.observations)
        with torch.no_grad():
            outputs = module._forward_train({"obs": seen[played.before]})["action_dist_inputs"]
            logps = module.get_train_action_dist_cls().from_logits(outputs).logp(torch.as_tensor(played.actions))
            return module.compute_values({"obs": seen}).numpy(), logps.numpy()

    def _measured(self, rows: Mapping[str, Any]) -> dict[str, float]:
        """Return the parts of the loss as the weights are now, and how far the policy moved (in nats)."""
        module, clip = self.module[DEFAULT_MODULE_ID], self.config.clip_param
        with torch.no_grad():
            outputs = module._forward_train({"obs": rows["obs"]})
            values = module.compute_values({"obs": rows["obs"]}, embeddings=outputs.get("embeddings"))
            chances = module.get_train_action_dist_cls().from_logits(outputs["action_dist_inputs"])
            ratios = torch.exp(chances.logp(rows["actions"]) - rows["action_logp"])
        kept = torch.min(rows["advantages"] * ratios, rows["advantages"] * ratios.clamp(1 - clip, 1 + clip))
        return {
            "policy_loss": -float(kept.mean()),
            "vf_loss": float(torch.square(values - rows["value_targets"]).mean()),
            "entropy": float(chances.entropy().mean()),
            "mean_kl_loss": float((ratios - 1.0 - torch.log(ratios)).mean()),
        }


class RecipeAPPO(ByRecipe, PPO):  # type: ignore[misc]
    """PPO whose runners sample by a Recipe, each at its own pace."""

    def tell(self, recipe: Recipe) -> None:
        """Let all runners begin by this recipe; what they sampled by the one before is thrown away."""
        manager = self.env_runner_group._worker_manager
        manager.fetch_ready_async_reqs(tags=_TAG, timeout_seconds=self.config.sample_timeout_s)
        super().tell(recipe)

    def training_step(self) -> None:
        """Take samples as they come until they are a batch, learn from it, and give those runners the new weights."""
        chunks, came = self._sampled()
        if not chunks:
            return
        steps = self.metrics.peek((ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME), default=0)
        results = self.learner_group.update(
            episodes=chunks,
            timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: steps},
            num_epochs=self.config.num_epochs,
            minibatch_size=self.config.minibatch_size,
        )
        self.metrics.aggregate(results, key=LEARNER_RESULTS)
        self.env_runner_group.sync_weights(
            from_worker_or_learner_group=self.learner_group, inference_only=True, to_worker_indices=sorted(came)
        )

    def _sampled(self) -> tuple[list[Any], set[int]]:
        """Return a batch of chunks, or what came in time, and which runners they are of; each samples on at once."""
        group, chunks, came, num_steps = self.env_runner_group, [], set(), 0
        for _ in range(int(self.config.sample_timeout_s / _LOOK_S)):
            found = group.foreach_env_runner_async_fetch_ready(
                func=_sample, tag=_TAG, timeout_seconds=_LOOK_S, return_actor_ids=True
            )
            self.metrics.aggregate([metrics for _, (_, metrics) in found], key=ENV_RUNNER_RESULTS)
            for index, (episodes, _) in found:
                came.add(index)
                chunks += episodes
                num_steps += sum(map(len, episodes))
            is_mute = bool(found) and not num_steps  # runners in trouble give nothing, and say why when they are asked
            if num_steps >= self.config.total_train_batch_size or is_mute or not group.num_healthy_remote_workers():
                break
        return chunks, came


def _sample(runner: RecipeRunner) -> tuple[list[Any], Any]:
    return runner.sample(), runner.get_metrics()


def appo_config(task: Task, spec: Spec, config: TrainConfig, seed: int, claims: Mapping[str, float]) -> PPOConfig:
    """Return RLlib's configuration: PPO's, with another learner."""
    ready = ppo_config(task, spec, config, seed, claims)
    ready.algo_class = RecipeAPPO
    return ready.learners(learner_class=LeanAPPOLearner)
