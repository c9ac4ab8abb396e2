"""Does a round of increase_exploration explore more, by how much, and does that go back within the round?

    python -m experiments.explore             # some half an hour
    python -m experiments.explore --quick     # two seeds, shorter rounds, and nothing is written

For each algorithm and fresh seed RLlib trains a first round from fresh weights (PPO and DQN on CartPole, SAC on
Pendulum). Two rounds then go on from its weights, in the same worlds: continue_training, and increase_exploration as
the first refused candidate asks for it (twice as much). What is measured is what runners act with: the mean entropy of
PPO's action distributions over states of the first round, the share of actions that DQN's runners took at random (by
the chance that each action had), the mean deviation with which SAC's runners draw in such states. Rows are the ratio
of the two rounds: while exploration comes down (in `train.exploration_share` of `train.max_steps`, without the first
quarter, in which a network has yet to follow), and, for information, after as many steps more. The third row is by how
much the round that explored more has come down until then, later against before.

Prints a table, writes results/explore.json and exits with 1 when a row falls short.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from experiments.report import measured
from flywheel.config import TrainConfig
from flywheel.policy import Policy
from flywheel.records import Array, Plan, Spec
from flywheel.simulate import play
from flywheel.store.table import Table
from flywheel.task import Task, spec_of
from flywheel.tasks.cartpole import cartpole
from flywheel.tasks.pendulum import pendulum
from flywheel.train.recipe import Recipe, make_recipe, spec_for
from flywheel.train.replay import Replay

NAMES = {
    "ppo": "mean entropy of the actions' distribution", "dqn": "share of random actions",
    "sac": "mean deviation of the actions",
}  # fmt: skip
FACTOR = 2.0
"""What the first refused candidate asks for."""


class Watched(Replay):
    """A replay that reads from the log chances of the runners' actions how many were random."""

    num_seen = num_random = 0

    def simulated(self, chunk: Any, policy: str) -> None:
        """Hold a chunk; an action whose chance is less than a half was drawn at random."""
        self.num_seen += len(chunk.logps)
        self.num_random += int((np.asarray(chunk.logps) < math.log(0.5)).sum())
        super().simulated(chunk, policy)

    def share(self, num_actions: int) -> float:
        """Return the share of random actions since it was last asked: one in `num_actions` is greedy by chance."""
        found = self.num_random / max(1, self.num_seen) * num_actions / (num_actions - 1)
        self.num_seen = self.num_random = 0
        return found


@dataclass
class Rounds:
    """RLlib's own Training of one algorithm, from whose first round two others go on."""

    algorithm: Any
    seed: int
    config: TrainConfig

    def __post_init__(self) -> None:
        """Build it; Ray has to be up."""
        from flywheel.train.rllib.learn import Training

        self.config = dataclasses.replace(self.config, algorithm=self.algorithm)
        self.task: Task = pendulum if self.algorithm == "sac" else cartpole
        self.spec: Spec = spec_for(self.task, spec_of(self.task), self.config)
        self.training = Training(self.task, self.spec, self.config, self.seed, {}, self._replay())
        self.rows: Array = np.zeros(0)

    def first(self, num_steps: int) -> None:
        """Train from fresh weights for so many steps, and keep the weights, and states that their policy sees."""
        self._begin(Plan(strategy="continue_training", reasons=()), None)
        network = self._course(num_steps)[-1][2]
        self.weights = self.training.weights()
        self.alpha = self._alpha().detach().clone() if self.algorithm == "sac" else None
        policy = Policy(network, self.spec)
        worlds = [self.task.nominal] * 10
        episodes = play(self.task, policy, seeds=range(10), parameters=worlds, draw_keys=range(10))
        seen = np.concatenate([episode.observations for episode in episodes])
        self.rows = seen[np.random.default_rng(self.seed).choice(len(seen), 500)]

    def go_on(self, exploration: float, num_steps: int) -> list[tuple[int, float]]:
        """Go on from the first round's weights; return (steps, level of exploration) after each iteration."""
        strategy: Any = "increase_exploration" if exploration > 1.0 else "continue_training"
        plan = Plan(strategy=strategy, reasons=(), warm_start="first", exploration=exploration)
        self._begin(plan, self.weights)
        if self.alpha is not None:
            self._alpha().data.copy_(self.alpha)
        return [(steps, level) for steps, level, _ in self._course(num_steps)]

    def recipe(self, plan: Plan) -> Recipe:
        """Return what the product's trainer makes of a plan."""
        return make_recipe(self.task, plan, self.config)

    def _begin(self, plan: Plan, weights: Any) -> None:
        self._held = self.training._replay = self.training._algorithm.replay = self._replay()
        if self._held is not None:
            self._held.begin(plan, is_warm=weights is not None)
        self.training._holds = None
        self.training.begin(self.recipe(plan), weights)

    def _course(self, num_steps: int) -> list[tuple[int, float, bytes]]:
        found: list[tuple[int, float, bytes]] = []
        while not found or found[-1][0] < num_steps:
            progress = self.training.advance()
            found.append((progress.num_steps, self._level(progress.network), progress.network))
        return found

    def _level(self, network: bytes) -> float:
        if self.algorithm == "dqn":
            assert self._held is not None
            return self._held.share(self.spec.num_actions)
        if not len(self.rows):
            return math.nan
        outputs = Policy(network, self.spec).outputs(self.rows.astype(np.float32)).astype(np.float64)
        if self.algorithm == "sac":
            group = self.training._algorithm.env_runner_group
            (noise,) = group.foreach_env_runner(noise_of, local_env_runner=False)
            return float(np.exp(outputs[:, outputs.shape[1] // 2 :] + noise).mean())
        logs = outputs - outputs.max(axis=1, keepdims=True)
        logs -= np.log(np.exp(logs).sum(axis=1, keepdims=True))
        return float(-(np.exp(logs) * logs).sum(axis=1).mean())

    def _replay(self) -> Watched | None:
        if self.algorithm == "ppo":
            return None
        num_steps = self.config.replay.num_steps
        table = Table(self.spec, capacity=50_000, num_steps=num_steps, gamma=self.config.gamma)
        return Watched(table, self.config, self.seed)

    def _alpha(self) -> Any:
        return next(iter(self.training._learner.curr_log_alpha.values()))


def noise_of(runner: Any) -> float:
    """Return what a runner adds to the logarithm of each deviation."""
    return float(runner.module.noise)


def mean(course: Sequence[tuple[int, float]], begin: float, end: float) -> float:
    """Return the mean level of a round after `begin` to `end` steps."""
    return float(np.mean([level for steps, level in course if begin < steps <= end]))


def ratio(more: Sequence[tuple[int, float]], plain: Sequence[tuple[int, float]], begin: float, end: float) -> float:
    """Return how many times as large the mean level was in one round as in the other, after `begin` to `end` steps."""
    return mean(more, begin, end) / mean(plain, begin, end)


def row(algorithm: str, when: str, ratios: Sequence[float], goal: str, seed: int) -> dict[str, Any]:
    """Return a row on the geometric mean of ratios, with Student's interval; `goal` is "> 1", "<= 1" or none."""
    logs: NDArray[np.float64] = np.log(ratios)
    spread = logs.std(ddof=1) / len(logs) ** 0.5
    middle, (wide, narrow) = logs.mean(), student.ppf([0.975, 0.95], len(logs) - 1) * spread
    passed = {
        "> 1": middle - narrow > 0.0,
        "<= 1": middle + narrow <= 0.0,
    }.get(goal, True)
    return {
        "id": "increase_exploration", "case": f"{algorithm.upper()}, {NAMES[algorithm]}, {when}",
        "value": round(float(np.exp(middle)), 3),
        "interval": [round(float(np.exp(middle + side * wide)), 3) for side in (-1, 1)],
        "goal": goal, "passed": bool(passed), "runs": len(logs), "seed": seed,
    }  # fmt: skip


def explored(seed: int, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield the rows of each algorithm."""
    import ray

    ray.init(address="local", num_cpus=2, object_store_memory=200 * 2**20, include_dashboard=False)
    seeds = np.random.SeedSequence(seed).generate_state(2 if quick else 16) % 2**30
    config = TrainConfig(num_runners=1, worlds_per_runner=32, max_steps=40_000 if quick else 100_000)
    phase = config.exploration_share * config.max_steps
    for algorithm in NAMES:
        during, later, back = [], [], []
        for each in seeds.tolist():
            rounds = Rounds(algorithm, each, config)
            rounds.first(6_000)
            plain, more = (rounds.go_on(factor, round(2.5 * phase)) for factor in (1.0, FACTOR))
            rounds.training.stop()
            during.append(ratio(more, plain, phase / 4, phase))
            later.append(ratio(more, plain, 2.0 * phase, math.inf))
            back.append(mean(more, 2.0 * phase, math.inf) / mean(more, phase / 4, phase))
        yield row(algorithm, "as it comes down", during, "> 1", seed)
        yield row(algorithm, "later in the round", later, "for information", seed)
        yield row(algorithm, "later in the round against before", back, "<= 1", seed)
    ray.shutdown()


if __name__ == "__main__":
    measured("explore", __doc__, explored)
