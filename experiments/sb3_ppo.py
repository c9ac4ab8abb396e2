"""Stable-Baselines3's side of `experiments.bench_train`: PPO on CartPole-v1, run in an environment of its own.

`build` makes a model, `block` trains it for some steps, `train` trains a fresh one until a check is good.
"""

from __future__ import annotations

import time
from typing import Any

BEGAN = time.perf_counter()

import torch  # noqa: E402 - its import is timed
from answering import answer  # noqa: E402
from checking import mean_return  # noqa: E402
from stable_baselines3 import PPO  # noqa: E402
from stable_baselines3.common.callbacks import BaseCallback  # noqa: E402
from stable_baselines3.common.env_util import make_vec_env  # noqa: E402

IMPORTED = time.perf_counter() - BEGAN
ENV = "CartPole-v1"
MODELS: dict[str, PPO] = {}


def tuned(begin: float) -> Any:
    """Return a value that goes down in a straight line, as RL Zoo writes lin_."""
    return lambda left: left * begin


KINDS: dict[str, tuple[int, dict[str, Any]]] = {
    "defaults": (1, {}),  # 2,048 steps, 10 epochs of minibatches of 64
    "defaults, 8 environments": (8, {"n_steps": 256}),
    "RL Zoo": (
        8,
        {
            "n_steps": 32, "batch_size": 256, "n_epochs": 20, "gae_lambda": 0.8, "gamma": 0.98, "ent_coef": 0.0,
            "learning_rate": tuned(1e-3), "clip_range": tuned(0.2),
        },
    ),
}  # fmt: skip
"""Environments and settings; RL Zoo's are those of its hyperparams/ppo.yml for CartPole-v1."""


def made(kind: str, seed: int) -> PPO:
    """Return a new model."""
    num_envs, settings = KINDS[kind]
    return PPO("MlpPolicy", make_vec_env(ENV, n_envs=num_envs, seed=seed), seed=seed, device="cpu", **settings)


def hello() -> dict[str, Any]:
    """Return how long the imports took."""
    return {"import_s": IMPORTED}


def build(kind: str, seed: int) -> dict[str, Any]:
    """Make the model that `block` trains."""
    MODELS[kind] = made(kind, seed)
    return {}


def block(kind: str, num_steps: int) -> dict[str, Any]:
    """Train for so many steps more, and return what that took."""
    model = MODELS[kind]
    before, began = model.num_timesteps, time.perf_counter()
    model.learn(num_steps, reset_num_timesteps=before == 0)
    return {"seconds": time.perf_counter() - began, "steps": model.num_timesteps - before}


class Checks(BaseCallback):
    """Checks the policy each so many steps, between an update and the next rollout, while the clock stands still."""

    def __init__(self, every: int, target: float, episodes: int, seed: int) -> None:
        """Check from the first time on that so many steps are done."""
        super().__init__()
        self.every, self.target, self.episodes, self.seed = every, target, episodes, seed
        self.seconds, self.checks = 0.0, list[list[float]]()

    @property
    def is_good(self) -> bool:
        """Whether the last check was."""
        return bool(self.checks) and self.checks[-1][1] >= self.target

    def check(self) -> None:
        """Check where it is time to."""
        self.seconds += time.perf_counter() - self.began
        if not self.is_good and self.num_timesteps >= self.every * (len(self.checks) + 1):
            found = mean_return(
                ENV, self.episodes, lambda seen: self.model.predict(seen, deterministic=True)[0],
                self.seed + len(self.checks),
            )  # fmt: skip
            self.checks.append([self.num_timesteps, found])
        self.began = time.perf_counter()

    def _on_training_start(self) -> None:
        self.began = time.perf_counter()

    def _on_rollout_start(self) -> None:
        self.check()

    def _on_training_end(self) -> None:
        self.check()

    def _on_step(self) -> bool:
        return not self.is_good


def train(kind: str, seed: int, every: int, target: float, episodes: int, max_steps: int) -> dict[str, Any]:
    """Return the seconds that training took until a check was good, without those of the checks."""
    began = time.perf_counter()
    model = made(kind, seed)
    built, checks = time.perf_counter() - began, Checks(every, target, episodes, seed)
    model.learn(max_steps, callback=checks)
    return {
        "seconds": checks.seconds, "build_s": built, "is_good": checks.is_good, "checks": checks.checks,
        "steps": int(checks.checks[-1][0]),
    }  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    answer(hello=hello, build=build, block=block, train=train)
