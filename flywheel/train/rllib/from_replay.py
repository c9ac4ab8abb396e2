"""What algorithms that learn from a table of steps share: sample once, then learn as much as what came allows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Protocol

import numpy as np
from ray.rllib.algorithms.dqn import DQN
from ray.rllib.execution.rollout_ops import synchronous_parallel_sample
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS

from flywheel.records import Array
from flywheel.sampling import Batch
from flywheel.train.replay import Replay
from flywheel.train.rllib.recipes import ByRecipe
from flywheel.train.tape import Played


class Descending(Protocol):
    """A learner that takes batches as they are."""

    _weights_seq_no: int

    def descend(self, batch: Batch) -> Array:
        """Take one step down the loss of a batch, and return its TD errors float32[N]."""


class FromReplay(ByRecipe, DQN):  # type: ignore[misc]
    """An algorithm that learns from a Replay."""

    replay: Replay
    """Set by whoever built it, before the first round."""
    num_updates = 0
    td_error = math.nan
    """Mean size of the last batch's TD errors, NaN before the first update."""

    def training_step(self) -> None:
        """Sample once, and take as many updates as what came since allows."""
        self.adapt(epsilon=round(self.replay.epsilon, 3), noise=round(self.replay.noise, 3))
        parts, results = synchronous_parallel_sample(
            worker_set=self.env_runner_group,
            concat=True,
            sample_timeout_s=self.config.sample_timeout_s,
            _uses_new_env_runners=True,
            _return_metrics=True,
        )
        self.metrics.aggregate(results, key=ENV_RUNNER_RESULTS)
        for chunk in (run for played in parts for run in runs_of(played)):
            self.replay.simulated(chunk, "train")
        learner: Descending = self.learner_group._learner
        for _ in range(self.replay.due()):
            batch = self.replay.batch()
            errors = learner.descend(batch)
            self.replay.learnt(batch, errors)
            self.num_updates += 1
            self.td_error = float(np.abs(errors).mean())
        # Runners take only weights with a higher number than the ones they have.
        learner._weights_seq_no += 1
        self.env_runner_group.sync_weights(from_worker_or_learner_group=self.learner_group, inference_only=True)


def runs_of(played: Played) -> Iterator[SimpleNamespace]:
    """Yield each run of what was played by itself."""
    for run, (end, length) in enumerate(zip((played.last + 1).tolist(), played.lengths.tolist(), strict=True)):
        steps = slice(end - length, end)
        yield SimpleNamespace(
            observations=played.observations[end - length + run : end + run + 1],
            actions=played.actions[steps],
            rewards=played.rewards[steps],
            logps=played.logps[steps],
            end="terminated" if played.terminated[run] else "truncated",
        )


def rows(observations: Array) -> Array:
    """Return observations as the networks read them, float32[N, D]."""
    return np.asarray(observations, np.float32).reshape(len(observations), -1)
