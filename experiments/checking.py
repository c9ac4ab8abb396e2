"""A check of a policy in a plain environment, the same for every peer: only NumPy and Gymnasium are needed here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np


def mean_return(env: str, num_episodes: int, act: Callable[[Any], Any], seed: int) -> float:
    """Return the mean return of fresh episodes of an environment; `act` gives actions [N] for observations [N, D]."""
    envs = [gymnasium.make(env) for _ in range(num_episodes)]
    rng = np.random.default_rng(seed)
    seen = np.stack([one.reset(seed=int(rng.integers(2**31)))[0] for one in envs])
    returns, goes_on = np.zeros(num_episodes), np.ones(num_episodes, dtype=bool)
    while goes_on.any():
        actions = act(seen)
        for i in np.flatnonzero(goes_on):
            seen[i], reward, terminated, truncated, _ = envs[i].step(actions[i])
            returns[i] += float(reward)
            goes_on[i] = not (terminated or truncated)
    for one in envs:
        one.close()
    return float(returns.mean())
