"""What an off-policy learner learns from: steps of simulation and of production, as often as the Plan says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from flywheel.config import TrainConfig
from flywheel.records import Array, Episode, Origin, Plan
from flywheel.sampling import Batch, Floats, Sampling

PRODUCTION: Origin = "production"
SIMULATION: Origin = "train"


class Table(Protocol):
    """Where the steps are held; the store's own, handed over by whoever builds the trainer."""

    num_transitions: int

    def add(self, episode: Episode) -> int:
        """Hold an episode and return how many of its transitions are held."""

    def sample(self, rng: np.random.Generator, num: int, rule: Sampling | None = None) -> Batch:
        """Return transitions drawn by a rule."""

    def drawable(self, rule: Sampling | None = None) -> int:
        """Return how many transitions a rule may draw."""

    def prioritize(self, batch: Batch, errors: Floats) -> None:
        """Set the priorities of a batch's transitions."""

    def exclude(self, kind: str, name: str, why: str) -> None:
        """Draw nothing more of a policy, an origin or an episode."""


class Replay:
    """A table, what of it is drawn, and how many draws its inserts allow."""

    def __init__(self, table: Table, config: TrainConfig, seed: int) -> None:
        """Begin with an empty table and the default plan."""
        self.table = table
        self._config = config
        self._rng = np.random.default_rng(seed)
        self._num_inserted = self._num_simulated = self._num_fresh = 0
        self._num_drawn = 0.0
        self.rule = Sampling()
        self.epsilon = config.replay.epsilon
        self.noise = 0.0

    def begin(self, plan: Plan, *, is_warm: bool) -> None:
        """Draw as this plan says, and explore as it says: a round from fresh weights begins by chance alone."""
        replayed = self._config.replay
        share = replayed.production_share if plan.sampling != "none" else 0.0
        self.rule = Sampling(
            half_life=replayed.half_life if plan.sampling == "recent" else 0.0,
            quotas={PRODUCTION: share, SIMULATION: 1.0 - share},
        )
        if replayed.alpha and plan.sampling != "recent":
            self.rule = Sampling(alpha=replayed.alpha, beta=replayed.beta)
        self._is_warm = is_warm
        self._least = min(1.0, replayed.epsilon * plan.exploration)
        self._from, self._begun_at = (self._least if is_warm else 1.0), self._num_simulated
        self.epsilon = self._from

    def explore(self, factor: float) -> None:
        """Let so many times as many actions as `replay.epsilon` be random ones, besides those of a fresh beginning.

        Where a policy's own deviations are what explores, their squares are so many times as large.
        """
        self.noise = 0.5 * math.log(factor)
        self._least = min(1.0, self._config.replay.epsilon * factor)
        if self._is_warm:
            self._from = self.epsilon = self._least

    def simulated(self, chunk: Any, policy: str) -> None:
        """Hold a chunk of a training episode: `observations` [T + 1, *o], `actions`, `rewards`, `logps` [T], its end.

        Rewards are in the learner's own units already.
        """
        num = len(chunk.rewards)
        self._num_simulated += num
        self._num_fresh += num
        self._insert(
            Episode(
                id=f"train-{self._num_inserted}", origin=SIMULATION, task="", parameters={}, draw_key=0,
                digests=(policy,) * num, observations=chunk.observations, raw_actions=chunk.actions,
                rewards=chunk.rewards, logps=chunk.logps, end=chunk.end, failed=False,
            )
        )  # fmt: skip
        left = 1.0 - (self._num_simulated - self._begun_at) / max(1, self._config.replay.epsilon_steps)
        self.epsilon = self._least + max(0.0, left) * (self._from - self._least)

    def produced(self, episodes: Sequence[Episode]) -> int:
        """Hold production's episodes, rewards in the learner's own units, and return how many transitions they are."""
        scale, cost = self._config.reward_scale, self._config.step_cost
        return sum(self._insert(replace(e, rewards=scale * (e.rewards - cost))) for e in episodes)

    def _insert(self, episode: Episode) -> int:
        num = self.table.add(episode)
        self._num_inserted += num
        return num

    def due(self) -> int:
        """Return how many batches are to be drawn now (samples per insert, as in Reverb: Cassirer et al. 2021).

        Each inserted transition allows so many draws; but of a heap of production's episodes that comes at once no more
        are made up for than are due for simulation's own steps since the last call, and the rest is let go.
        """
        replayed, fresh = self._config.replay, self._num_fresh
        self._num_fresh = 0
        if self._num_inserted < replayed.begin_at or not self.table.drawable(self.rule):
            return 0
        allowed = replayed.samples_per_insert * (self._num_inserted - replayed.begin_at)
        most = 2 * replayed.samples_per_insert * fresh
        self._num_drawn = max(self._num_drawn, allowed - most)
        return max(0, math.floor((allowed - self._num_drawn) / replayed.batch))

    def batch(self) -> Batch:
        """Draw a batch."""
        self._num_drawn += self._config.replay.batch
        return self.table.sample(self._rng, self._config.replay.batch, self.rule)

    def learnt(self, batch: Batch, errors: Array) -> None:
        """Let TD errors float[N] of a batch say how soon its transitions are drawn again, where priorities are kept."""
        if self.rule.alpha:
            self.table.prioritize(batch, np.asarray(errors, np.float64))
