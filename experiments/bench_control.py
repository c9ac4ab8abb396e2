"""How soon SAC and PPO control what they are given, beside Stable-Baselines3 with RL Zoo's tuned values.

What `experiments.bench_train` measures as P4, at most 20 minutes on 2 quiet cores:

P4  wall-clock from the first step to the first good check ÷ SB3's: Pendulum-v1 with SAC (a mean return of -200) and
    LunarLander-v3 with PPO (200)

Ours is what `--task pendulum --train.algorithm sac` and `--task lunarlander` train with: RLlib's algorithm with our
runners and learners and the task's own settings, its edge cases among the worlds. Both sides are checked at the same
intervals of steps, by 20 fresh episodes of the plain environment with the likeliest action; the time of checks, imports
and building isn't counted. Sides take turns seed by seed. A value is the ratio of the medians; its interval is
bootstrapped over seeds. One of ours that doesn't get there counts as endless, one of SB3's as long as it was given.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from experiments.peers import Peer
from flywheel.policy import Policy, to_env
from flywheel.records import Plan, Spec
from flywheel.run import settings
from flywheel.store.table import Table
from flywheel.task import spec_of
from flywheel.tasks import load
from flywheel.train.recipe import make_recipe, spec_for
from flywheel.train.replay import Replay

EPISODES = 20
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Case:
    """A task, what is good in it, and how long both sides may try."""

    task: str
    env: str
    algorithm: str
    target: float
    every: int
    max_steps: int
    max_s: float
    num_seeds: int


CASES = (
    Case("pendulum", "Pendulum-v1", "sac", -200.0, 1_024, 20_480, 120.0, 5),
    Case("lunarlander", "LunarLander-v3", "ppo", 200.0, 16_384, 600_000, 240.0, 3),
)


def mean_return(case: Case, network: bytes, spec: Spec, rng: np.random.Generator) -> float:
    """Return the mean return of fresh episodes in which a policy takes its likeliest action."""
    policy = Policy(network, dataclasses.replace(spec, rule=dataclasses.replace(spec.rule, greedy=True)))
    envs = [gymnasium.make(case.env) for _ in range(EPISODES)]
    seen = np.stack([env.reset(seed=int(rng.integers(2**31)))[0] for env in envs])
    returns, runs = np.zeros(EPISODES), np.ones(EPISODES, dtype=np.bool_)
    while runs.any():
        actions, _ = policy.act(seen, np.zeros((EPISODES, spec.num_draws)))
        for i, action in enumerate(to_env(spec, actions)):
            if runs[i]:
                seen[i], reward, terminated, truncated, _ = envs[i].step(action)
                returns[i] += float(reward)
                runs[i] = not (terminated or truncated)
    for env in envs:
        env.close()
    return float(returns.mean())


def ours(case: Case, seed: int) -> Row:
    """Return the seconds until a check was good, without those of the checks."""
    from flywheel.train.rllib.learn import Training

    task = load(case.task)
    config = settings(Path(os.devnull) / "none", ["--task", case.task, "--train.algorithm", case.algorithm]).train
    spec = spec_for(task, spec_of(task), config)
    given, plan = config.replay, Plan(strategy="continue_training", reasons=())
    table = Table(spec, capacity=case.max_steps, num_steps=given.num_steps, gamma=config.gamma)
    replay = Replay(table, config, seed) if case.algorithm != "ppo" else None
    training = Training(task, spec, config, seed, {}, replay)
    if replay is not None:
        replay.begin(plan, is_warm=False)
    training.begin(make_recipe(task, plan, config), None)
    rng, checks = np.random.default_rng(seed), list[list[float]]()
    seconds, steps, is_good = 0.0, 0, False
    while not is_good and steps < case.max_steps and seconds < case.max_s:
        began = time.perf_counter()
        progress = training.advance()
        seconds += time.perf_counter() - began
        steps = progress.num_steps
        if steps >= case.every * (len(checks) + 1):
            checks.append([steps, round(mean_return(case, progress.network, spec, rng), 1)])
            is_good = checks[-1][1] >= case.target
    training.stop()
    return {"seconds": seconds, "is_good": is_good, "steps": steps, "checks": checks}


def ratio(case: Case, found: dict[str, list[Row]], seed: int) -> Row:
    """Return the row on the ratio of the medians."""
    above = np.array([run["seconds"] if run["is_good"] else np.inf for run in found["ours"]])
    below = np.array([run["seconds"] for run in found["SB3"]])
    rng = np.random.default_rng(seed)

    def medians(values: NDArray[np.float64]) -> NDArray[np.float64]:
        drawn: NDArray[np.float64] = np.median(rng.choice(values, (4000, len(values))), axis=1)
        return drawn

    ratios = medians(above) / medians(below)
    low, high = np.quantile(ratios, [0.025, 0.975], method="higher")
    got = {side: sum(run["is_good"] for run in runs) for side, runs in found.items()}
    named = f"{case.env}, {case.algorithm.upper()} to {case.target:g} ÷ SB3"
    return {
        "id": "P4", "case": f"{named}; {got['ours']} and {got['SB3']} of {len(above)} got there",
        "value": _told(np.median(above) / np.median(below)), "interval": [_told(low), _told(high)], "goal": "<= 1",
        "passed": bool(np.quantile(ratios, 0.95, method="higher") <= 1.0), "runs": len(above), "seed": seed,
    }  # fmt: skip


def told(case: Case, side: str, name: str, values: list[float], seed: int) -> Row:
    """Return a row for information: a median with its extremes."""
    return {
        "id": "P4", "case": f"{case.env}, {side}: {name}", "value": round(float(np.median(values)), 1),
        "interval": [round(min(values), 1), round(max(values), 1)], "goal": "for information", "passed": True,
        "runs": len(values), "seed": seed,
    }  # fmt: skip


def _told(value: Any) -> float | None:
    return round(float(value), 3) if np.isfinite(value) else None


def rows(seed: int, quick: bool) -> Iterator[Row]:
    """Yield P4's rows, with seeds drawn from this one; starts Ray where it isn't up, and leaves it to who calls."""
    import ray

    if not ray.is_initialized():
        ray.init(address="local", object_store_memory=200 * 2**20, include_dashboard=False, log_to_driver=False)
    rng = np.random.default_rng(seed)
    for case in CASES[:1] if quick else CASES:
        found: dict[str, list[Row]] = {"ours": [], "SB3": []}
        with Peer("sb3", "sb3_control.py") as peer:
            for i in range(1 if quick else case.num_seeds):
                one = int(rng.integers(2**31))
                asked = {name: getattr(case, name) for name in ("target", "every", "max_steps", "max_s")}
                sides = {
                    "ours": lambda case=case, one=one: ours(case, one),
                    "SB3": lambda case=case, one=one, asked=asked, peer=peer: peer.ask(
                        do="train", case=case.task, seed=one, episodes=EPISODES, **asked
                    ),
                }
                for side in sorted(sides, reverse=bool(i % 2)):
                    run = sides[side]()
                    found[side].append(run)
                    last = ", ".join(f"{mean:g}" for _, mean in run["checks"][-3:])
                    print(f"  {case.env} {side}: {run['seconds']:.1f} s, {run['steps']:,} steps, … {last}", flush=True)
        yield ratio(case, found, seed)
        for side, runs in found.items():
            yield told(case, side, "seconds", [run["seconds"] for run in runs], seed)
            yield told(case, side, "steps", [run["steps"] for run in runs], seed)
