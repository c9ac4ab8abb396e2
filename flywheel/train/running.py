"""Whose env runner samples: our own, or RLlib's where a setting asks for what only that one does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from gymnasium.vector import AutoresetMode, VectorEnv

from flywheel.config import TrainConfig
from flywheel.errors import UsageError
from flywheel.task import Task

_HOOK = "calls {} with RLlib's episodes and environments, which our own env runner never makes"
HOOKS = (
    "on_environment_created", "on_episode_created", "on_episode_start", "on_episode_step", "on_episode_end",
    "on_sample_end",
)  # fmt: skip
"""RLlib's callbacks that are given an environment, an episode or samples."""
_WHY: Mapping[str, str] = {
    **{name: _HOOK.format(name) for name in HOOKS},
    "callbacks_class": "may look at RLlib's episodes and environments, which our own env runner never makes",
    "batch_mode": "wants whole episodes, and our own env runner cuts them where an iteration ends",
    "gym_env_vectorize_mode": "gives each environment a process, and our own env runner steps its worlds in one",
}
_USUAL: Mapping[str, Any] = {"batch_mode": "truncate_episodes", "gym_env_vectorize_mode": "sync"}
"""Values that ask for nothing that our own env runner doesn't do anyway."""
COST = "a fifteenth"
"""Speed at which RLlib's own env runner steps CartPole, of ours: per CPU second, 16 environments each."""


def is_own(config: TrainConfig) -> bool:
    """Say whether our own env runner samples.

    Raises UsageError where the configuration insists on it and wants what only RLlib's does.
    """
    reasons = _reasons(config)
    if config.runner == "own" and reasons:
        raise UsageError(
            f"train.runner is own, and train.rllib {'; it '.join(reasons)}: leave train.runner at auto, so that "
            "RLlib's own env runner samples, or leave that setting out."
        )
    return config.runner != "rllib" and not reasons


def said(config: TrainConfig, task: Task) -> str:
    """Return what samples in place of our own env runner or of the task's vector form, why, and what that costs.

    "" where nothing does.
    """
    if is_own(config):
        mode = None if task.vector is None else _mode(task.vector)
        if mode in (None, AutoresetMode.NEXT_STEP):
            return ""
        return (
            f"training steps task {task.name}'s environments one by one, as its vector form resets worlds in mode "
            f"{getattr(mode, 'value', mode)}, where their steps can't be told from their beginnings: state "
            "AutoresetMode.NEXT_STEP in its metadata, if it does that"
        )
    why = f"train.rllib {'; it '.join(_reasons(config))}" if _reasons(config) else "train.runner says so"
    return (
        f"RLlib's own env runner samples, as {why}. It steps single environments, CartPole's at {COST} of the speed "
        "of ours; the Plan's parameters, edge cases and corrections hold in each of them"
    )


def steppable(task: Task) -> Task:
    """Return the task without a vector form whose episodes would be stitched together, if it has one of those."""
    if task.vector is None or _mode(task.vector) == AutoresetMode.NEXT_STEP:
        return task
    return dataclasses.replace(task, vector=None)


def _mode(vector: Callable[[int], VectorEnv[Any, Any, Any]]) -> Any:
    """Return how a vector form begins its worlds again, "unknown" where it doesn't say."""
    envs = vector(1)
    envs.close()
    return envs.metadata.get("autoreset_mode", "unknown")


def _reasons(config: TrainConfig) -> list[str]:
    return [
        why
        for name, why in _WHY.items()
        if config.rllib.get(name) is not None and config.rllib[name] != _USUAL.get(name)
    ]
