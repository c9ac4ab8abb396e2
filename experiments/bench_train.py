"""How fast training is, beside RLlib's own runner and learner and beside Stable-Baselines3.

    python -m experiments.bench_train             # some half an hour on 2 quiet cores
    python -m experiments.bench_train --quick     # a rough answer, and nothing is written

P1  sampling: steps of CartPole-v1 per CPU second, without learning, ours (the runner that PPO's Algorithm is given) ÷
    RLlib's default runner, 8, 32 and 64 environments, the same networks
P2  whole PPO: steps of CartPole-v1 a second, ours ÷ SB3's, batches of 2,048 steps and 10 epochs of minibatches of 64;
    SB3 with its defaults (one environment) and with 8 environments. RL Zoo's values for information
P3  wall-clock from the first step to the first good check (a mean return of 475 over 20 fresh episodes, checked every
    1,024 steps), ours with the defaults of `flywheel.config.TrainConfig`, edge cases among the worlds: ÷ SB3's with RL
    Zoo's tuned values, and ÷ that of RLlib's own runner and learner with our hyperparameters
P4  SAC on Pendulum and PPO on LunarLander, ours ÷ SB3's: see experiments/bench_control.py

Ours is the product's whole path: RLlib's Algorithm, two actors that sample and our learner. RLlib's own has two such
actors, too; SB3 is one process (experiments/sb3_ppo.py). All have one thread. Sides take turns, so that noise meets all
of them. All are checked by experiments/checking.py with their likeliest actions, and the clock stands still meanwhile.
A value is a ratio of medians, and its interval is bootstrapped: over pairs of blocks for P1 and P2, over seeds for P3,
where one of ours that doesn't get there counts as endless and a peer's as long as it was given.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments import bench_control
from experiments.bench_store import ratio, told
from experiments.checking import mean_return
from experiments.peers import Peer
from experiments.report import measured
from flywheel.config import TrainConfig
from flywheel.records import Plan
from flywheel.task import spec_of
from flywheel.tasks.cartpole import cartpole
from flywheel.train.recipe import make_recipe

ENV, EVERY, TARGET, EPISODES, MAX_STEPS = "CartPole-v1", 1_024, 475.0, 20, 100_000
PLAN, CONFIG = Plan(strategy="continue_training", reasons=()), TrainConfig()
Row = dict[str, Any]
Speeds = NDArray[np.float64]
Act = Callable[[Any], Any]
"""Actions [N] for observations [N, 4]."""


def ray_is_up() -> None:
    """Start Ray where it isn't up."""
    import ray

    if not ray.is_initialized():
        ray.init(
            address="local", num_cpus=2, object_store_memory=200 * 2**20, include_dashboard=False, log_to_driver=False,
            logging_level="ERROR",
        )  # fmt: skip


# P1


def runners(num: int) -> dict[str, Any]:
    """Return one env runner of each kind, with so many environments."""
    from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

    from flywheel.train.rllib.ppo import ppo_config

    config = dataclasses.replace(CONFIG, worlds_per_runner=num)
    mine = ppo_config(cartpole, spec_of(cartpole), config, 1, {})
    ours = mine.env_runner_cls(config=mine, worker_index=1)
    ours.tell(make_recipe(cartpole, PLAN, config))
    return {"ours": ours, "RLlib": SingleAgentEnvRunner(config=default(num, 0), worker_index=1)}


def default(num: int, num_runners: int) -> Any:
    """Return PPO's configuration with RLlib's own runners of `num` environments each, and our hyperparameters."""
    from ray.rllib.algorithms.ppo import PPOConfig

    return (
        PPOConfig()
        .environment(ENV)
        .env_runners(
            num_env_runners=num_runners, num_envs_per_env_runner=num, num_cpus_per_env_runner=0.5,
            rollout_fragment_length=CONFIG.steps_per_world,
        )
        .learners(num_learners=0)
        .rl_module(model_config={"fcnet_hiddens": list(CONFIG.hidden), "vf_share_layers": False})
        .training(
            train_batch_size_per_learner=max(num_runners, 1) * num * CONFIG.steps_per_world,
            minibatch_size=CONFIG.minibatch_size, num_epochs=CONFIG.num_epochs, lr=CONFIG.lr, gamma=CONFIG.gamma,
            lambda_=CONFIG.lambda_, entropy_coeff=CONFIG.entropy, clip_param=0.2, grad_clip=0.5,
            grad_clip_by="global_norm", vf_loss_coeff=0.5, vf_clip_param=float("inf"), use_kl_loss=False,
        )
        .debugging(log_level="ERROR")
    )  # fmt: skip


def sampled(runner: Any, num_steps: int) -> float:
    """Return steps per CPU second of one sample, with its metrics, as an iteration asks for them."""
    began = time.process_time()
    got = sum(len(part) for part in runner.sample(num_timesteps=num_steps))
    runner.get_metrics()
    return got / (time.process_time() - began)


def p1(seed: int, quick: bool) -> Iterator[Row]:
    """Yield the rows on sampling."""
    for num in (8, 32, 64):
        made = runners(num)
        found = pairs({kind: lambda runner=one, n=num: sampled(runner, 64 * n) for kind, one in made.items()},
                      4 if quick else 25)  # fmt: skip
        case = f"sampling, ours ÷ RLlib's default runner, {num} environments"
        yield ratio("P1", case, found["ours"], found["RLlib"], 5.0, False)
        for kind, speeds in found.items():
            yield told("P1", f"{kind}, {num} environments, steps per CPU second", speeds, 1.0)


def pairs(kinds: Mapping[str, Callable[[], float]], num: int) -> dict[str, Speeds]:
    """Return what each kind gave in so many blocks, in which they take turns; one more is warm-up."""
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    for block in range(num + 1):
        for kind in sorted(kinds, reverse=bool(block % 2)):
            value = kinds[kind]()
            if block:
                found[kind].append(value)
    return {kind: np.array(values) for kind, values in found.items()}


# P2


class Ours:
    """Our trainer, at the beginning of a round."""

    def __init__(self, config: TrainConfig, seed: int) -> None:
        """Build it."""
        from flywheel.train.rllib.learn import Training

        ray_is_up()
        began = time.perf_counter()
        self._training = Training(cartpole, spec_of(cartpole), config, seed, {}, None)
        self._training.begin(make_recipe(cartpole, PLAN, config), None)
        self.build_s, self.steps, self.network = time.perf_counter() - began, 0, b""

    def advance(self) -> None:
        """Train an iteration."""
        progress = self._training.advance()
        self.steps, self.network = progress.num_steps, progress.network

    def speed(self, num_iterations: int) -> float:
        """Return the steps a second of some iterations."""
        before, began = self.steps, time.perf_counter()
        for _ in range(num_iterations):
            self.advance()
        return (self.steps - before) / (time.perf_counter() - began)

    def policy(self) -> Act:
        """Return what takes the likeliest actions now, by the network that would be served."""
        from flywheel.policy import Policy

        policy = Policy(self.network, spec_of(cartpole))
        return lambda seen: policy.outputs(seen).argmax(axis=1)

    def stop(self) -> None:
        """End its runners."""
        self._training.stop()


def p2(seed: int, quick: bool) -> Iterator[Row]:
    """Yield the rows on whole PPO."""
    batch = dataclasses.replace(CONFIG, steps_per_world=64, num_epochs=10, minibatch_size=64)
    zoo = dataclasses.replace(
        CONFIG, num_runners=1, worlds_per_runner=8, num_epochs=20, minibatch_size=256, gamma=0.98, lambda_=0.8
    )
    with Peer("sb3", "sb3_ppo.py") as peer:
        for config, size, kinds in ((batch, 2_048, ("defaults", "defaults, 8 environments")), (zoo, 256, ("RL Zoo",))):
            for kind in kinds:
                peer.ask(do="build", kind=kind, seed=seed)
            made = Ours(config, seed)
            num = max(1, (2_048 if quick else 4_096) // size)
            sides: dict[str, Callable[[], float]] = {"ours": lambda made=made, num=num: made.speed(num)}
            for kind in kinds:
                sides[kind] = lambda kind=kind, steps=num * size: peer_speed(peer, kind, steps)
            found = pairs(sides, 2 if quick else 12)
            made.stop()
            for kind in kinds:
                case = f"whole PPO, batches of {size:,}, ours ÷ SB3 ({kind})"
                row = ratio("P2", case, found["ours"], found[kind], 2.0, False)
                yield row if size == 2_048 else {**row, "goal": "for information", "passed": True}
            for kind, speeds in found.items():
                yield told("P2", f"{kind}, batches of {size:,}, steps a second", speeds, 1.0)


def peer_speed(peer: Peer, kind: str, num_steps: int) -> float:
    """Return SB3's steps a second."""
    found = peer.ask(do="block", kind=kind, num_steps=num_steps)
    return float(found["steps"] / found["seconds"])


# P3


class RLlib:
    """RLlib's own runners and learner, with our hyperparameters."""

    def __init__(self, seed: int) -> None:
        """Build it."""
        ray_is_up()
        began = time.perf_counter()
        config = default(CONFIG.worlds_per_runner, CONFIG.num_runners).debugging(seed=seed)
        self._algorithm = config.build_algo()
        self.build_s, self.steps = time.perf_counter() - began, 0

    def advance(self) -> None:
        """Train an iteration."""
        self.steps = int(self._algorithm.train()["env_runners"]["num_env_steps_sampled_lifetime"])

    def policy(self) -> Act:
        """Return what takes the likeliest actions now."""
        from flywheel.train.rllib.export import answered

        module = self._algorithm.learner_group._learner.module["default_policy"]
        return lambda seen: answered(module, seen).argmax(axis=1)

    def stop(self) -> None:
        """End its runners."""
        self._algorithm.stop()


def until_good(made: Ours | RLlib, seed: int) -> Row:
    """Return the seconds that training took until a check was good, without those of the checks."""
    seconds, checks = 0.0, list[list[float]]()
    while made.steps < MAX_STEPS:
        began = time.perf_counter()
        made.advance()
        seconds += time.perf_counter() - began
        if made.steps >= EVERY * (len(checks) + 1):
            checks.append([made.steps, mean_return(ENV, EPISODES, made.policy(), seed + len(checks))])
            if checks[-1][1] >= TARGET:
                break
    made.stop()
    is_good = checks[-1][1] >= TARGET
    return {"seconds": seconds, "build_s": made.build_s, "is_good": is_good, "steps": made.steps, "checks": checks}


def p3(seed: int, quick: bool) -> Iterator[Row]:
    """Yield the rows on the time to a good policy."""
    rng, num = np.random.default_rng(seed), 1 if quick else 15
    with Peer("sb3", "sb3_ppo.py") as peer:
        asked = {"every": EVERY, "target": TARGET, "episodes": EPISODES, "max_steps": MAX_STEPS, "kind": "RL Zoo"}
        imports = {"SB3": float(peer.ask(do="hello")["import_s"])}
        kinds: dict[str, Callable[[int], Row]] = {
            "ours": lambda one: until_good(Ours(CONFIG, one), one),
            "RLlib": lambda one: until_good(RLlib(one), one),
            "SB3": lambda one: peer.ask(do="train", seed=one, **asked),
        }
        found: dict[str, list[Row]] = {kind: [] for kind in kinds}
        for i in range(num):
            one = int(rng.integers(2**31))
            for kind in sorted(kinds, reverse=bool(i % 2)):
                run = kinds[kind](one)
                found[kind].append(run)
                print(f"  {kind}: {run['seconds']:.1f} s, {run['steps']:,} steps, … {run['checks'][-1][1]}", flush=True)
    for kind, goal, named in (("SB3", 0.5, "SB3 with RL Zoo's values"), ("RLlib", 0.35, "RLlib with our values")):
        yield of_medians(f"time to {TARGET:g}, ours ÷ {named}", found["ours"], found[kind], goal, seed)
    for kind, runs in found.items():
        for name, key in (("seconds to it", "seconds"), ("steps to it", "steps"), ("seconds to build", "build_s")):
            yield told("P3", f"{kind}: {name}", np.array([run[key] for run in runs]), 1.0)
    imports |= {"ours": imported("flywheel.train.rllib.learn"), "RLlib": imported("ray.rllib.algorithms.ppo")}
    for kind, seconds in imports.items():
        yield told("P3", f"{kind}: seconds to import", np.array([seconds]), 1.0)


def of_medians(case: str, above: list[Row], below: list[Row], goal: float, seed: int) -> Row:
    """Return the row on the ratio of two medians over seeds."""
    got = [sum(run["is_good"] for run in runs) for runs in (above, below)]
    times = np.array([run["seconds"] if run["is_good"] else np.inf for run in above])
    theirs, rng = np.array([run["seconds"] for run in below]), np.random.default_rng(seed)
    ratios = [
        np.median(rng.choice(times, len(times))) / np.median(rng.choice(theirs, len(theirs))) for _ in range(4000)
    ]
    low, high, bound = np.quantile(ratios, [0.025, 0.975, 0.95], method="higher")
    value = np.median(times) / np.median(theirs)
    return {
        "id": "P3", "case": f"{case}; {got[0]} and {got[1]} of {len(times)} got there",
        "value": _told(value), "interval": [_told(low), _told(high)], "goal": f"<= {goal:g}",
        "passed": bool(bound <= goal), "runs": len(times), "seed": seed,
    }  # fmt: skip


def _told(value: float) -> float | None:
    return round(float(value), 3) if np.isfinite(value) else None


def imported(module: str) -> float:
    """Return the seconds that a fresh process takes to import a module."""
    code = f"import time; b = time.perf_counter(); import {module}; print(time.perf_counter() - b)"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


MEASURES = p1, p2, p3, bench_control.rows

if __name__ == "__main__":
    measured("bench_train", __doc__, *MEASURES)
