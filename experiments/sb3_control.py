"""Stable-Baselines3 with RL Zoo's tuned values, for `experiments.bench_control`: runs in the peer's environment.

RL Zoo has values for LunarLander-v2; the environment is v3, as v2 can't be made any more.
"""

from __future__ import annotations

import time
from typing import Any

import gymnasium
import numpy as np
import torch
from answering import answer
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

CASES: dict[str, tuple[Any, str, int, dict[str, Any]]] = {
    "pendulum": (SAC, "Pendulum-v1", 1, {"learning_rate": 1e-3}),
    "lunarlander": (
        PPO, "LunarLander-v3", 16,
        {"n_steps": 1024, "batch_size": 64, "gae_lambda": 0.98, "gamma": 0.999, "n_epochs": 4, "ent_coef": 0.01},
    ),
}  # fmt: skip


class Check(BaseCallback):
    """Ends learning once the mean return of fresh deterministic episodes is good, or time is over."""

    def __init__(self, env_id: str, given: dict[str, Any]) -> None:
        super().__init__()
        self.given, self.env_id = given, env_id
        self.checks: list[list[float]] = []
        self.rng = np.random.default_rng(given["seed"])
        self.seconds = self.aside = 0.0
        self.is_over = self.is_good = False
        self.next = given["every"]

    def _on_training_start(self) -> None:
        self.began = time.perf_counter()

    def _on_rollout_start(self) -> None:
        """Look at the policy as it is after an update."""
        self.seconds = time.perf_counter() - self.began - self.aside
        if self.num_timesteps < self.next:
            return
        self.next += self.given["every"]
        looked = time.perf_counter()
        mean = self.mean_return()
        self.checks.append([self.num_timesteps, round(mean, 1)])
        self.is_good = mean >= self.given["target"]
        self.is_over = self.is_good or self.seconds > self.given["max_s"]
        self.aside += time.perf_counter() - looked

    def _on_step(self) -> bool:
        return not self.is_over

    def mean_return(self) -> float:
        """Return the mean return of fresh episodes."""
        env, returns = gymnasium.make(self.env_id), []
        for _ in range(self.given["episodes"]):
            observation, _ = env.reset(seed=int(self.rng.integers(2**31)))
            total, is_over = 0.0, False
            while not is_over:
                action, _ = self.model.predict(observation, deterministic=True)
                observation, reward, terminated, truncated, _ = env.step(action)
                total, is_over = total + float(reward), terminated or truncated
            returns.append(total)
        env.close()
        return float(np.mean(returns))


def train(case: str, **given: Any) -> dict[str, Any]:
    """Return the seconds until a check was good (or `max_s` or `max_steps` were over), without those of the checks."""
    algorithm, env_id, num_envs, values = CASES[case]
    envs = make_vec_env(env_id, n_envs=num_envs, seed=given["seed"])
    check = Check(env_id, given)
    model = algorithm("MlpPolicy", envs, seed=given["seed"], device="cpu", **values)
    model.learn(given["max_steps"], callback=check)
    return {
        "seconds": check.seconds,
        "is_good": check.is_good,
        "steps": check.checks[-1][0] if check.checks else 0,
        "checks": check.checks,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    answer(train=train)
