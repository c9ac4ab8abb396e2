"""Recovery from the store where the simulator can't follow: DQN and SAC learn from production, PPO in simulation.

    python -m experiments.store_recovery [--quick] [--only P8|store|simulation]

A world changes in a way that no parameter of its simulator makes (`flywheel.tasks.rewired`): CartPole's actions are
swapped, come late, or the reward is paid for standing near x = +1; the sign of Pendulum's torque is flipped. One step
late costs CartPole's policies nothing; four steps late is for one that remembers its last four actions
(`flywheel.remembering`), as those that are under way are a part of the state: whoever doesn't see them is looked at for
information. DQN (SAC) was trained in the simulator, and HELD transitions of its production are in the table when the
world changes. From then on it acts in production, and learns from the table as `train.replay` says, by the product's
own Table, Replay and learners; how good it is by then is looked at in 20 other episodes each 1,000 steps. It has
recovered where these bring 90 % of the old return; what may be missing is a tenth of the range of returns. PPO goes on
learning in the simulator instead, which is as it was, for as many steps; nothing tells it how good it is in production,
so the policy that it ends with counts. What remembering costs where nothing changes is told by the steps of simulation
that DQN needs before anything does.

The wheel's alarms date a change; so what is older is left out, and the rest drawn all alike. P8 asks what recent-first
sampling is worth where nobody knows the date: it counts production's steps until then against uniform sampling, over
the same table, from the same policy (a ratio for each seed; a uniform run that doesn't get there counts as MOST_P8).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from scipy.stats import binom

from experiments import report
from flywheel.config import TrainConfig
from flywheel.layers import layered, of_task
from flywheel.policy import Policy, to_env
from flywheel.records import Array, Episode, Plan, Spec
from flywheel.spaces import seen_spaces
from flywheel.store.table import Table
from flywheel.task import Task, spec_of
from flywheel.tasks.cartpole import cartpole, cartpole_remembering
from flywheel.tasks.pendulum import pendulum
from flywheel.tasks.rewired import turn, with_fault
from flywheel.train.recipe import make_recipe, spec_for
from flywheel.train.replay import Replay

HELD = 200_000
"""Transitions of the world as it was that the table holds when it changes."""
MOST = {"cartpole": 40_000, "cartpole_remembering": 40_000, "pendulum": 12_000}
"""Steps of production after which a run has not recovered,"""
MOST_P8 = 20_000
"""and after which P8 counts no further."""
AT_ONCE = 8
"""Episodes that production plays at once."""
LOOK_EVERY, LOOKED_AT = 1_000, 20
"""Steps from one look to the next, and its episodes."""
SHARE = 0.9
FIRST = Plan(strategy="continue_training", reasons=())
LAST = Plan(strategy="retrain_prioritize_recent", reasons=(), sampling="production")

Act = Callable[[Array], tuple[Array, Array]]


class Player:
    """Plays episodes of a task with a fault, several at once, and returns each when it is over."""

    def __init__(self, task: Task, spec: Spec, fault: str, num_steps: int, seed: int, num: int) -> None:
        """Begin an episode in each of `num` environments."""
        self._task, self._spec = task, spec
        self._envs = [with_fault(task.make_env(), fault, num_steps) for _ in range(num)]
        self._seeds = iter(np.random.SeedSequence(seed).generate_state(200_000).tolist())
        self._rows: list[list[tuple[Any, ...]]] = [[] for _ in range(num)]
        for env in self._envs:
            turn(env, bool(fault))
        self.seen = np.stack([self._begin(i) for i in range(num)])
        self.num_steps = self.num_ended = 0

    def _begin(self, i: int) -> Array:
        self._rows[i] = []
        return np.asarray(self._envs[i].reset(seed=next(self._seeds))[0], np.float32)

    def step(self, act: Act) -> Iterator[tuple[int, Episode]]:
        """Take a step in every environment, and yield the episodes that it ended, with the environments' numbers."""
        actions, logps = act(self.seen)
        for i, action in enumerate(to_env(self._spec, actions)):
            env = self._envs[i]
            new, reward, terminated, truncated, _ = env.step(action)
            self._rows[i].append((self.seen[i].copy(), actions[i], float(reward), float(logps[i])))
            self.seen[i] = new
            self.num_steps += 1
            if terminated or truncated or len(self._rows[i]) >= self._task.max_steps:
                yield i, self._over(i, terminated)
                self.seen[i] = self._begin(i)

    def _over(self, i: int, terminated: bool) -> Episode:
        observations, actions, rewards, logps = zip(*self._rows[i], strict=True)
        self.num_ended += 1
        return Episode(
            id=f"{id(self)}-{self.num_ended}", origin="production", task="", parameters={}, draw_key=0,
            digests=("policy",) * len(rewards), observations=np.stack([*observations, self.seen[i]]),
            raw_actions=np.stack(actions), rewards=np.array(rewards), logps=np.array(logps),
            end="terminated" if terminated else "truncated", failed=terminated,
        )  # fmt: skip


class Learner:
    """The product's learner of an algorithm, in this process, and what it does in an environment."""

    def __init__(self, task: Task, config: TrainConfig, seed: int) -> None:
        """Draw fresh weights."""
        from flywheel.train.rllib.dqn import dqn_config
        from flywheel.train.rllib.exploring import explore
        from flywheel.train.rllib.sac import sac_config

        torch.manual_seed(seed)
        self.spec = spec_for(task, spec_of(task), config)
        spaces = dict.fromkeys((DEFAULT_MODULE_ID, "__env__", "__env_single__"), seen_spaces(self.spec))
        configure = {"dqn": dqn_config, "sac": sac_config}[config.algorithm]
        self.learner = configure(task, self.spec, config, seed, {}).build_learner(spaces=spaces)
        self.learner.build()
        explore(self.learner, None, make_recipe(task, FIRST, config), 0)
        self._module = self.learner.module[DEFAULT_MODULE_ID]

    def act(self, seen: Array, epsilon: float = 0.0) -> tuple[Array, Array]:
        """Return raw actions drawn as the runners draw them, and log probabilities."""
        self._module.epsilon = epsilon
        with torch.no_grad():
            outputs = self._module.forward_exploration({"obs": torch.as_tensor(seen)})["action_dist_inputs"]
            chances = self._module.get_exploration_action_dist_cls().from_logits(outputs)
            raw = chances.sample()
            return raw.numpy().reshape(len(seen), *self.spec.action_shape), chances.logp(raw).numpy()

    def best(self, seen: Array) -> tuple[Array, Array]:
        """Return the raw actions that are thought best."""
        with torch.no_grad():
            outputs = self._module.forward_inference({"obs": torch.as_tensor(seen)})["action_dist_inputs"]
        raw = outputs.argmax(-1) if self.spec.action_kind == "discrete" else torch.tanh(outputs.chunk(2, dim=-1)[0])
        return raw.numpy().reshape(len(seen), *self.spec.action_shape), np.zeros(len(seen))

    def kept(self) -> dict[str, Array]:
        """Return all weights."""
        return {name: np.array(value) for name, value in self._module.get_state(inference_only=False).items()}

    def hold(self, weights: dict[str, Array]) -> None:
        """Take weights, and forget what the optimizers know of others."""
        self._module.set_state(weights)
        for optimizer in self.learner._named_optimizers.values():
            optimizer.state.clear()


@dataclass(frozen=True, slots=True)
class Change:
    """A task, and what happens to its world."""

    task: Task
    algorithm: str
    fault: str
    num_steps: int
    words: str
    is_asked: bool = True
    """Whether its rows have goals; the others are for information."""
    runs: int = 20
    """Seeds that learn from the store; fewer where a run that finds nothing is only for information."""

    @property
    def config(self) -> TrainConfig:
        """The product's settings."""
        config = layered(of_task(self.task.name, self.task.settings, self.algorithm)).train
        return dataclasses.replace(config, algorithm=self.algorithm)  # type: ignore[arg-type]


SWAPPED = Change(cartpole, "dqn", "swapped", 1, "CartPole, action wires swapped")
DELAYED = Change(cartpole, "dqn", "delayed", 1, "CartPole, actions late by one step, which costs nothing", False)
LATE = Change(
    cartpole_remembering, "dqn", "delayed", 4, "CartPole that remembers 4 actions, actions late by 4 steps", runs=40
)
UNSEEN = Change(cartpole, "dqn", "delayed", 4, "CartPole that remembers none, actions late by 4 steps", False, 4)
PAID = Change(cartpole, "dqn", "reward", 1, "CartPole, reward for staying near x = +1")
REVERSED = Change(pendulum, "sac", "reversed", 1, "Pendulum, the torque's sign flipped")
CHANGES = (SWAPPED, DELAYED, UNSEEN, LATE, PAID, REVERSED)


def looked_at(change: Change, spec: Spec, act: Act, fault: str, seed: int) -> float:
    """Return the mean return of fresh episodes in a world with this fault."""
    player, totals = Player(change.task, spec, fault, change.num_steps, seed, LOOKED_AT), dict[int, float]()
    while len(totals) < LOOKED_AT:
        for i, episode in player.step(act):
            totals.setdefault(i, episode.total)
    return float(np.mean([*totals.values()]))


Trained = tuple[Learner, dict[str, Array], float]
_TRAINED: dict[tuple[str, int], Trained] = {}  # by task and seed: each world that changes begins with the same ones
_TOOK: dict[tuple[str, int], int] = {}  # the steps of simulation in which they came to be as good as they are asked for


def enough(task: Task, before: float) -> float:
    """Return the return that counts as recovered."""
    assert task.return_range is not None
    low, high = task.return_range
    return before - (1.0 - SHARE) * (high - low)


def trained(change: Change, seed: int) -> Trained:
    """Return a learner, the best weights it had while it was trained in the simulator, and what return they bring."""
    if (change.task.name, seed) not in _TRAINED:
        _TRAINED[change.task.name, seed] = _trained(change, seed)
    return _TRAINED[change.task.name, seed]


def _trained(change: Change, seed: int) -> Trained:
    config = change.config
    learner, replay = Learner(change.task, config, seed), _replay(change, config, seed)
    replay.begin(FIRST, is_warm=False)
    player = Player(change.task, learner.spec, "", 1, seed + 1, AT_ONCE)
    best, kept, look_at = -np.inf, learner.kept(), 2 * LOOK_EVERY
    assert change.task.return_range is not None
    good = enough(change.task, change.task.return_range[1]) if change.algorithm == "sac" else 495.0
    while best < good and player.num_steps < 3 * MOST[change.task.name]:
        for _, e in player.step(lambda seen: learner.act(seen, replay.epsilon)):
            rewards = config.reward_scale * (e.rewards - config.step_cost)
            told = {"observations": e.observations, "actions": e.raw_actions, "logps": e.logps, "end": e.end}
            replay.simulated(SimpleNamespace(**told, rewards=rewards), "train")
        for _ in range(replay.due()):
            learner.learner.descend(replay.batch())
        if player.num_steps >= look_at:
            look_at += LOOK_EVERY
            if (mean := looked_at(change, learner.spec, learner.best, "", seed + player.num_steps)) > best:
                best, kept = mean, learner.kept()
    _TOOK[change.task.name, seed] = player.num_steps
    return learner, kept, best


def _replay(change: Change, config: TrainConfig, seed: int) -> Replay:
    spec, given = spec_for(change.task, spec_of(change.task), config), config.replay
    return Replay(Table(spec, num_steps=given.num_steps, gamma=config.gamma), config, seed)


def recovered(change: Change, seed: int, rule: str, most: int, num_held: int = HELD) -> int:
    """Return the steps of production after which the old return was there again; `most` where that never came.

    By `rule` the "recent" steps are drawn most often, or "uniform" all alike, or so while older ones are "left out".
    """
    learner, kept, before = trained(change, seed)
    config = change.config
    if rule != "recent":
        config = dataclasses.replace(config, replay=dataclasses.replace(config.replay, half_life=0.0))
    torch.manual_seed(seed + 2)
    learner.hold(kept)
    replay = _replay(change, config, seed)
    replay.begin(LAST, is_warm=True)
    old = Player(change.task, learner.spec, "", 1, seed + 3, 32)
    while rule != "left out" and replay.table.num_transitions < num_held:
        replay.produced([episode for _, episode in old.step(learner.act)])
    new, owed, look_at = Player(change.task, learner.spec, change.fault, change.num_steps, seed + 4, AT_ONCE), 0.0, 0
    wanted, held = enough(change.task, before), replay.table.num_transitions
    while new.num_steps < most:
        came = replay.produced([e for _, e in new.step(lambda seen: learner.act(seen, replay.epsilon))])
        owed += config.replay.samples_per_insert * came
        while owed >= config.replay.batch and replay.table.num_transitions >= held + 2 * config.replay.batch:
            owed -= config.replay.batch
            learner.learner.descend(replay.batch())
        if new.num_steps >= look_at + LOOK_EVERY:
            look_at += LOOK_EVERY
            if looked_at(change, learner.spec, learner.best, change.fault, seed + 5 + look_at) >= wanted:
                return new.num_steps
    return most


def from_the_store(seed: int, quick: bool) -> Iterable[dict[str, Any]]:
    """Yield in how many seeds learning from the store recovers from each change."""
    for change in CHANGES:
        num = 1 if quick else change.runs
        most = MOST[change.task.name]
        steps = [recovered(change, seed + 100 * k, "left out", most) for k in range(num)]
        found = sorted(each for each in steps if each < most)
        median = f", median {found[len(found) // 2]:,} steps" if found else ""
        name = change.algorithm.upper()
        case = f"{change.words}: {name} from the store, 90 % of the return within {most:,} steps{median}"
        yield report.share("recovery", case, np.array(steps) < most, 0.8 if change.is_asked else None, False, seed)
    for task, words in ((cartpole, "none"), (cartpole_remembering, "4 actions")):
        took = np.array([steps for (name, _), steps in _TOOK.items() if name == task.name])
        case = f"CartPole that remembers {words}, as it was: DQN's steps of simulation to a return of 495"
        yield report.median("recovery", f"{case} (at most {3 * MOST[task.name]:,})", took, None, seed)


def in_simulation(seed: int, quick: bool) -> Iterable[dict[str, Any]]:
    """Yield in how many seeds PPO recovers from each change, in as many steps of the simulator as it was."""
    import ray

    from flywheel.train.rllib.learn import Training

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        for task in (cartpole, cartpole_remembering, pendulum):
            changes = [change for change in CHANGES if change.task is task]
            config = layered(of_task(task.name, task.settings, "ppo")).train
            training = Training(task, spec_of(task), config, seed, {}, None)
            num = int(task is not pendulum) if quick else 20
            back = np.array([_trained_on(training, task, changes, seed + k) for k in range(num)], bool)
            training.stop()
            for change, hits in zip(changes, back.T, strict=True) if num else ():
                case = f"{change.words}: PPO in the unchanged simulator, 90 % of the return in as many steps of it"
                yield report.share("recovery", case, hits, 0.2 if change.is_asked else None, True, seed)
    finally:
        ray.shutdown()


def _trained_on(training: Any, task: Task, changes: list[Change], seed: int) -> list[bool]:
    """Train PPO until it is good, then for as many steps as production has; say in which changes it is good then."""
    spec = spec_of(task)
    training.begin(make_recipe(task, FIRST, training._config), None)

    def mean(fault: str, change: Change) -> float:
        policy, rng = Policy(training.network(), spec), np.random.default_rng(seed)
        return looked_at(change, spec, lambda seen: policy.act(seen, rng.random((len(seen), 1))), fault, seed)

    assert task.return_range is not None
    good = 475.0 if task is not pendulum else enough(task, task.return_range[1])
    num_steps = 0
    while (before := mean("", changes[0])) < good and num_steps < 200_000:
        num_steps = training.advance().num_steps
    until = num_steps + MOST[task.name]
    while num_steps < until:
        num_steps = training.advance().num_steps
    return [mean(change.fault, change) >= enough(task, before) for change in changes]


def recent_first(seed: int, quick: bool) -> Iterable[dict[str, Any]]:
    """Yield P8: production's steps to the old return, recent-first against uniform; for information, each by itself."""
    num, most = (1 if quick else 20), MOST_P8
    steps = {
        rule: np.array([recovered(SWAPPED, seed + 100 * k, rule, most) for k in range(num)])
        for rule in ("recent", "uniform", "left out")
    }
    case = f"{SWAPPED.words}: recent-first against uniform, {HELD:,} older transitions"
    yield _ratio(case, steps["recent"], steps["uniform"], most, 0.5, seed)
    for name, values in steps.items():
        yield report.median("P8", f"{SWAPPED.words}: steps, {name} (at most {most:,})", values, None, seed)


def _ratio(case: str, ours: Array, theirs: Array, most: int, goal: float, seed: int) -> dict[str, Any]:
    """Return a row on the median of paired ratios, with the interval that order statistics give."""
    ratios = np.sort(np.where(ours < most, ours / theirs, np.inf))
    n = len(ratios)
    low, high, bound = (ratios[min(max(int(binom.ppf(p, n, 0.5)), 0), n - 1)] for p in (0.025, 0.975, 0.95))
    return {
        "id": "P8", "case": case, "value": round(float(np.median(ratios)), 3),
        "interval": [round(float(low), 3), round(float(high), 3)], "goal": f"<= {goal:g}",
        "passed": bool(bound <= goal), "runs": n, "seed": seed,
    }  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    report.measured("store_recovery", __doc__, P8=recent_first, store=from_the_store, simulation=in_simulation)
