"""What an off-policy learner learns from: steps of simulation and of production, as often as the Plan says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from flywheel.config import TrainConfig
from flywheel.records import Array, Episode, Origin, Plan
from flywheel.sampling import Barred, Batch, Floats, Sampling

PRODUCTION: Origin = "production"
SIMULATION: Origin = "train"
MOST_OFTEN = 10.0
"""How many times as often as a step of simulation one of production is drawn at most: few would be learnt by heart."""
MOST_AT_ONCE = 1_000
"""Updates of one call where production is learnt from alone, a second or two: a round tells how it is going."""
Worlds = Sequence[tuple[str, float, float]]
"""(name, low, high) of parameters of the task, as `Recipe.ranges` has them."""


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

    def lacks(self) -> bool:
        """Say whether something that it held was lost since it was asked last, so that production is to come again."""

    @property
    def excluded(self) -> Barred:
        """What is excluded from training."""

    def exclude(self, kind: str, name: str, why: str) -> None:
        """Draw nothing more of a policy, an origin or an episode."""

    def readmit(self, kind: str, name: str) -> None:
        """Draw again what was excluded."""


class Replay:
    """A table, what of it is drawn, and how many draws its inserts allow."""

    def __init__(self, table: Table, config: TrainConfig, seed: int) -> None:
        """Begin with an empty table and the default plan."""
        self.table = table
        self._config = config
        self._rng = np.random.default_rng(seed)
        self._num_chunks = self._num_inserted = self._num_simulated = self._num_fresh = 0
        self._num_drawn = self._since = 0.0
        self._plan = Plan(strategy="continue_training", reasons=())
        self._worlds: Worlds = ()
        self._names, self._num_others = set[str](), 0
        self._barred: Barred = {}
        self._last: Batch | None = None
        self.rule = Sampling()
        self.epsilon = self._least = self._from = config.replay.epsilon
        self.noise, self._begun_at, self._is_warm = 0.0, 0, True

    @property
    def is_production_alone(self) -> bool:
        """Whether nothing of simulation is learnt from, as no simulator does what production does."""
        return self._plan.sampling == "production" and self._plan.correction is None

    def begin(self, plan: Plan, *, is_warm: bool, worlds: Worlds = ()) -> None:
        """Draw as this plan says, and explore as it says: a round from fresh weights begins by chance alone.

        `worlds` are the ranges of the parameters that simulation has in this round: where they, or the plan's
        correction, are others than before, nothing more is drawn of what was simulated until now.
        """
        if _are_others(worlds, self._worlds) or plan.correction != self._plan.correction:
            for name in self._names:
                self.table.exclude("policy", name, "it was simulated in other worlds")
            self._names, self._num_others = set(), self._num_others + bool(self._names)
        self._plan, self._worlds = plan, worlds
        self._count_afresh()
        self._is_warm, self._begun_at = is_warm, self._num_simulated
        self.epsilon = self._from = 1.0
        self.explore(plan.exploration)

    def changed(self, since: float) -> None:
        """Draw nothing more of those of production's episodes that began before `since` (UTC epoch seconds)."""
        if since > self._since:
            self._since = since
            self._count_afresh()

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

        Rewards are in the learner's own units already. Where production is learnt from alone, the chunk is let go.
        """
        num = len(chunk.rewards)
        self._num_simulated += num
        self._num_fresh += num
        left = 1.0 - (self._num_simulated - self._begun_at) / max(1, self._config.replay.epsilon_steps)
        self.epsilon = self._least + max(0.0, left) * (self._from - self._least)
        if self.is_production_alone:
            return
        self._num_chunks += 1
        name = f"{policy}-{self._num_others}" if self._num_others else policy
        self._names.add(name)
        self._num_inserted += self.table.add(
            Episode(
                id=f"train-{self._num_chunks}", origin=SIMULATION, task="", parameters={}, draw_key=0,
                digests=(name,) * num, observations=chunk.observations, raw_actions=chunk.actions,
                rewards=chunk.rewards, logps=chunk.logps, end=chunk.end, failed=False, started_at=math.inf,
            )
        )  # fmt: skip

    def produced(self, episodes: Sequence[Episode]) -> int:
        """Hold production's episodes, rewards in the learner's own units, and return how many transitions they are."""
        scale, cost, came = self._config.reward_scale, self._config.step_cost, 0
        for episode in episodes:
            num = self.table.add(replace(episode, rewards=scale * (episode.rewards - cost)))
            came += num
            if episode.started_at >= self._since:
                self._num_inserted += num
        return came

    def bar(self, barred: Barred) -> None:
        """Draw nothing of this from now on, and again what was barred by an earlier call alone."""
        for key in self._barred.keys() - barred.keys():
            self.table.readmit(*key)
        for key in barred.keys() - self._barred.keys():
            self.table.exclude(*key, barred[key])
        self._barred = dict(barred)

    def due(self) -> int:
        """Return how many batches are to be drawn now (samples per insert, as in Reverb: Cassirer et al. 2021).

        Each inserted transition allows so many draws; but of a heap of production's episodes that comes at once no more
        are made up for than are due for simulation's own steps since the last call, and the rest is let go. Where
        production is learnt from alone, the rest is for later calls: there is nothing else to learn from.
        """
        replayed, fresh = self._config.replay, self._num_fresh
        self._num_fresh = 0
        self._balance()
        least = min(replayed.begin_at, self.table.num_transitions)
        if self._num_inserted < replayed.begin_at or not self.table.drawable(self.rule) >= least > 0:
            return 0
        if self.is_production_alone:
            left = replayed.samples_per_insert * self._num_inserted - self._num_drawn
            return max(0, min(MOST_AT_ONCE, math.floor(left / replayed.batch)))
        allowed = replayed.samples_per_insert * (self._num_inserted - replayed.begin_at)
        self._num_drawn = max(self._num_drawn, allowed - 2 * replayed.samples_per_insert * fresh)
        return max(0, math.floor((allowed - self._num_drawn) / replayed.batch))

    def batch(self) -> Batch:
        """Draw a batch."""
        self._num_drawn += self._config.replay.batch
        self._last = self.table.sample(self._rng, self._config.replay.batch, self.rule)
        return self._last

    def told(self) -> Mapping[str, Any]:
        """Return what the last batch was made of: `Batch.told`, and `production`'s share; {} before the first one."""
        if self._last is None:
            return {}
        told = self._last.told()
        simulated = sum(share for name, share in told["share"].items() if name in self._names)
        return {**told, "production": 1.0 - simulated}

    def learnt(self, batch: Batch, errors: Array) -> None:
        """Let TD errors float[N] of a batch say how soon its transitions are drawn again, where priorities are kept."""
        if self.rule.alpha:
            self.table.prioritize(batch, np.asarray(errors, np.float64))

    def _count_afresh(self) -> None:
        """Let production that is learnt from alone allow its draws anew: a new round knows nothing of it."""
        self._balance()
        if self.is_production_alone:
            self._num_inserted, self._num_drawn = self.table.drawable(self.rule), 0.0

    def _balance(self) -> None:
        """Make the rule of the plan, with no larger a share of production than its few steps can bear."""
        replayed, sampling = self._config.replay, self._plan.sampling
        is_recent = sampling in ("recent", "production")
        if replayed.alpha and not (is_recent or sampling == "failed" or self._plan.policies or self._since):
            self.rule = Sampling(alpha=replayed.alpha, beta=replayed.beta)
            return
        share = 0.0 if sampling == "none" else 1.0 if self.is_production_alone else replayed.production_share
        if 0.0 < share < 1.0:
            num, others = (self.table.drawable(self._only(origin)) for origin in (PRODUCTION, SIMULATION))
            share = min(share, MOST_OFTEN * num / (MOST_OFTEN * num + others)) if others else share
        self.rule = Sampling(
            half_life=replayed.half_life if is_recent and not self._since else 0.0,
            aged=(PRODUCTION,),
            failed=replayed.failure_factor if sampling == "failed" else 1.0,
            policies=self._policies(),
            quotas={PRODUCTION: share, SIMULATION: 1.0 - share},
            since=self._since,
        )

    def _only(self, origin: Origin) -> Sampling:
        return Sampling(quotas={origin: 1.0}, since=self._since, policies=self._policies())

    def _policies(self) -> tuple[str, ...]:
        """Return whose steps are drawn: the plan's policies in production, and whatever was simulated; () for all."""
        return (*self._plan.policies, *sorted(self._names)) if self._plan.policies else ()


def _are_others(worlds: Worlds, known: Worlds) -> bool:
    """Say whether two rounds' worlds have nothing in common: of a parameter that both name the ranges don't meet."""
    before = {name: (low, high) for name, low, high in known}
    return any(low > before[name][1] or high < before[name][0] for name, low, high in worlds if name in before)
