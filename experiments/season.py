"""Do steps of MARWIL on production's episodes, between PPO's iterations, bring a policy back sooner after a change?

    python -m experiments.season              # some forty minutes on one core
    python -m experiments.season --quick      # two seeds, and nothing is written

MARWIL (Wang et al. 2018, "Exponentially Weighted Imitation Learning") imitates the actions of episodes, the more the
better they came out: its loss is -exp(beta A / c) log pi(a | s), with the advantage A of the return over the critic's
value and c the root of a running mean of A squared. It needs no simulator and no log probabilities. Seasoning takes a
few such steps on the episodes that production has of its last policies, by an Adam of its own with a tenth of PPO's
learning rate (a factor on the loss would do nothing: Adam divides by the gradient's size), on the network that PPO
learns on.

A run is one seed: a policy is trained on CartPole until it fails in no episode of 100. Then production's pole is four
times as long, and the simulator that PPO trains in has been calibrated: its pole, too, is 1.9 to 2.1 long. In the
second case a wind also pushes the cart in production, of which no parameter knows. A round begins with 50 episodes that
production has of the policy; after each iteration the new policy is tried in 100 episodes of production's world, and is
recovered when at most 5 of them fail. Every 5 iterations one that isn't goes into service all the same, for 50 more
episodes to learn from. Seasoned and plain runs of a seed begin with the same policy. Rows are the mean differences,
seasoned less plain, of environment steps and of production's episodes until then (the last ones where a run gives up).

Prints a table, writes results/season.json and exits with 1 when a row falls short: seasoning belongs into the trainer
only where both cases show that it helps.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.report import measured, share
from flywheel.config import TrainConfig
from flywheel.policy import Policy
from flywheel.records import Array, Episode, Plan
from flywheel.simulate import play
from flywheel.spaces import seen_spaces
from flywheel.task import Task, spec_of
from flywheel.tasks.cartpole import CartPoles, cartpole
from flywheel.train.recipe import make_recipe

CONFIG = TrainConfig()
SPEC = spec_of(cartpole)
TRIED, PLAYED, RECOVERED = 100, 50, 5
"""Episodes in which a policy is tried, that production has of one, and of the former the most that may fail."""
SERVED_EVERY, MOST = 5, 40
"""Iterations after which a policy goes into service all the same, and after which a run gives up."""
POLICIES = 3
"""Policies of production that are learnt from, the last ones."""
BETA, SHARE, STEPS, ROWS, MOST_WEIGHT = 1.0, 0.1, 8, 128, 20.0
"""MARWIL's beta, its share of the learning rate, steps an iteration, rows of each, and the largest weight of a row."""
LENGTH = {"length": 2.0}
WIND = 0.75
"""N, of which no parameter knows; the motor has 10."""


class WindyPoles(CartPoles):
    """CartPoles whose cart a wind pushes."""

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """Step every world, and let the wind push those that go on."""
        begins: NDArray[np.bool_] = self.prev_done.copy()
        _, *rest = super().step(actions)
        world: Any = self
        self.state[1] += np.where(begins, 0.0, world.tau * WIND / world.total_mass)
        return self._observe(), *rest  # type: ignore[return-value]


windy = dataclasses.replace(cartpole, name="windy-cartpole", vector=WindyPoles, edge_cases=(), drift={})


@dataclass
class Season:
    """MARWIL's steps on a network of PPO."""

    module: Any
    rng: np.random.Generator
    scale: float = 0.0
    """Running mean of the advantages' squares."""
    optimizer: Any = field(init=False)

    def __post_init__(self) -> None:
        """Make an optimizer of the actor's own parameters."""
        import torch

        actor = [value for name, value in self.module.named_parameters() if name.startswith(("pi.", "encoder.actor"))]
        self.optimizer = torch.optim.Adam(actor, lr=SHARE * CONFIG.lr)

    def learn(self, episodes: Sequence[Episode]) -> None:
        """Take the steps on minibatches drawn from these episodes."""
        import torch

        seen = torch.as_tensor(np.concatenate([each.observations[:-1] for each in episodes]))
        acted = torch.as_tensor(np.concatenate([each.raw_actions for each in episodes]))
        returns = torch.as_tensor(np.concatenate([self._returns(each) for each in episodes]))
        for _ in range(STEPS):
            some = torch.as_tensor(self.rng.integers(len(seen), size=ROWS))
            outputs = self.module._forward_train({"obs": seen[some]})
            with torch.no_grad():
                gained = returns[some] - self.module.compute_values({"obs": seen[some]})
                size = float((gained**2).mean())
                self.scale = 0.95 * self.scale + 0.05 * size if self.scale else size
                weights = torch.exp(BETA * gained / (self.scale**0.5 + 1e-8)).clamp(max=MOST_WEIGHT)
            chances = self.module.get_train_action_dist_cls().from_logits(outputs["action_dist_inputs"])
            self.optimizer.zero_grad()
            (-(weights * chances.logp(acted[some])).mean()).backward()
            self.optimizer.step()

    def _returns(self, episode: Episode) -> NDArray[np.float32]:
        """Return float32[T]: discounted rewards to come, and the critic's value where the episode was cut off."""
        import torch

        ahead = 0.0
        if episode.end == "truncated":
            with torch.no_grad():
                ahead = float(self.module.compute_values({"obs": torch.as_tensor(episode.observations[-1:])})[0])
        found = np.empty(episode.num_steps, np.float32)
        for t in reversed(range(episode.num_steps)):
            found[t] = ahead = episode.rewards[t] + CONFIG.gamma * ahead
        return found


class Lone:
    """The product's env runner and learner in this process, without Ray: an iteration at a time."""

    def __init__(self, seed: int) -> None:
        """Build both, with fresh weights."""
        import torch
        from ray.rllib.core import DEFAULT_MODULE_ID

        from flywheel.train.rllib.env_runner import WorldsRunner
        from flywheel.train.rllib.export import Exporter
        from flywheel.train.rllib.ppo import ppo_config

        torch.manual_seed(seed)
        num = CONFIG.num_runners * CONFIG.worlds_per_runner
        made = ppo_config(cartpole, SPEC, CONFIG, seed, {}).env_runners(num_envs_per_env_runner=num)
        self.runner = WorldsRunner(config=made, worker_index=1)
        spaces = seen_spaces(SPEC)
        self.learner = made.build_learner(spaces={"__env__": spaces, DEFAULT_MODULE_ID: spaces})
        self.module = self.learner.module[DEFAULT_MODULE_ID]
        self.exporter, self.num_steps, self.size = Exporter(self.module, SPEC), 0, num * CONFIG.steps_per_world

    def begin(self, worlds: dict[str, tuple[float, float]], weights: dict[str, Array] | None = None) -> None:
        """Begin a round in these worlds, from these weights."""
        if weights is not None:
            self.module.set_state(weights)
            for optimizer in self.learner._named_optimizers.values():
                optimizer.state.clear()
        plan = Plan(strategy="retrain_prioritize_recent", reasons=(), parameters=worlds)
        self.runner.tell(make_recipe(cartpole, plan, CONFIG))
        self.num_steps = 0

    def advance(self) -> None:
        """Sample and learn once."""
        from ray.rllib.core.learner.training_data import TrainingData

        self.runner.module.set_state(self.module.get_state(inference_only=True))
        chunks = self.runner.sample(num_timesteps=self.size)
        self.num_steps += sum(len(chunk) for chunk in chunks)
        self.learner.update(
            training_data=TrainingData(episodes=chunks), timesteps={"num_env_steps_sampled_lifetime": 0},
            num_epochs=CONFIG.num_epochs, minibatch_size=CONFIG.minibatch_size,
        )  # fmt: skip

    def weights(self) -> dict[str, Array]:
        """Return all weights."""
        return {name: np.array(value) for name, value in self.module.get_state(inference_only=False).items()}

    def policy(self) -> Policy:
        """Return the policy as it would be served."""
        return Policy(self.exporter.network(self.weights()), SPEC)


def played(task: Task, policy: Policy, worlds: dict[str, float], num: int, root: int) -> list[Episode]:
    """Return fresh episodes of a policy."""
    keys = np.random.SeedSequence(root).generate_state(num).tolist()
    return play(task, policy, seeds=keys, parameters=[{**task.nominal, **worlds}] * num, draw_keys=keys)


def recover(lone: Lone, weights: dict[str, Array], task: Task, seed: int, *, is_seasoned: bool) -> tuple[int, int, int]:
    """Return steps and production's episodes until a policy recovers, and whether it does."""
    lone.begin({name: (0.95 * value, 1.05 * value) for name, value in LENGTH.items()}, weights)
    season = Season(lone.module, np.random.default_rng(seed))
    production: deque[list[Episode]] = deque(maxlen=POLICIES)
    num_episodes = 0
    for iteration in range(MOST):
        if iteration % SERVED_EVERY == 0:
            production.append(played(task, lone.policy(), LENGTH, PLAYED, seed + 1_000 + iteration))
            num_episodes += PLAYED
        lone.advance()
        if is_seasoned:
            season.learn([episode for some in production for episode in some])
        tried = played(task, lone.policy(), LENGTH, TRIED, seed + iteration)
        if sum(episode.failed for episode in tried) <= RECOVERED:
            return lone.num_steps, num_episodes, 1
    return lone.num_steps, num_episodes, 0


def seasoned(seed: int, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield what seasoning changes, of both kinds of change."""
    seeds = (np.random.SeedSequence(seed).generate_state(2 if quick else 12) % 2**30).tolist()
    cases = {"a longer pole, which a parameter explains": cartpole, "and a wind, which none explains": windy}
    found: dict[str, list[NDArray[np.float64]]] = {name: [] for name in cases}
    for each in seeds:
        lone = Lone(each)
        lone.begin({})
        while lone.num_steps < CONFIG.min_steps or any(
            episode.failed for episode in played(cartpole, lone.policy(), {}, TRIED, each + lone.num_steps)
        ):
            lone.advance()
        weights = lone.weights()
        for name, task in cases.items():
            runs = [recover(lone, weights, task, each, is_seasoned=is_seasoned) for is_seasoned in (False, True)]
            print(f"{each}  {name}: plain {runs[0]}, seasoned {runs[1]}", flush=True)
            found[name].append(np.array(runs, np.float64))
    for name, every in found.items():
        runs_ = np.array(every)
        for column, what in ((0, "environment steps"), (1, "episodes of production")):
            yield row(f"{name}: {what}, seasoned less plain", runs_[:, :, column], seed)
        for arm, which in enumerate(("plain", "seasoned")):
            yield share("seasoning", f"{name}: {which} runs that recover", runs_[:, arm, 2] > 0, None, False, seed)


def row(case: str, both: NDArray[np.float64], seed: int) -> dict[str, Any]:
    """Return a row on the mean difference of pairs float64[N, 2], with Student's interval."""
    from scipy.stats import t as student

    less = both[:, 1] - both[:, 0]
    spread = less.std(ddof=1) / len(less) ** 0.5
    wide, narrow = student.ppf([0.975, 0.95], len(less) - 1) * spread
    return {
        "id": "seasoning", "case": case, "value": round(float(less.mean()), 1),
        "interval": [round(float(less.mean() + side * wide), 1) for side in (-1, 1)],
        "goal": "< 0", "passed": bool(less.mean() + narrow < 0), "runs": len(less), "seed": seed,
    }  # fmt: skip


if __name__ == "__main__":
    measured("season", __doc__, seasoned)
