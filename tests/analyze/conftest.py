"""Production episodes made without a server: a noisy linear policy in worlds with given parameters."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from flywheel.records import Episode
from flywheel.task import Task
from flywheel.tasks.cartpole import cartpole, set_parameters
from flywheel.testing import SHORT_POLE

Produce = Callable[..., list[Episode]]


def _episode(number: int, parameters: dict[str, float], noise: float, push: float) -> Episode:
    rng = np.random.default_rng(number)
    env = cartpole.make_env()
    observation, _ = env.reset(seed=number)
    set_parameters(env, {**cartpole.nominal, **parameters})
    seen, actions, ended = [observation + rng.normal(0, noise, 4)], [], False
    while not ended and len(actions) < 500:
        chance = 1 / (1 + np.exp(-np.clip(seen[-1] @ SHORT_POLE, -50, 50)))
        actions.append(int(rng.random() < chance))
        env.unwrapped.state = env.unwrapped.state + np.array([0.0, push, 0.0, 0.0])  # type: ignore[attr-defined]
        observation, _, ended, _, _ = env.step(actions[-1])
        seen.append(observation + rng.normal(0, noise, 4))
    env.close()
    num = len(actions)
    return Episode(
        id=f"episode_{number:05d}",
        origin="production",
        task="cartpole",
        parameters={},
        draw_key=0,
        digests=("d",) * num,
        observations=np.array(seen, dtype=np.float32),
        raw_actions=np.array(actions),
        rewards=np.ones(num),
        logps=np.zeros(num),
        end="terminated" if ended else "truncated",
        failed=ended,
        started_at=float(number),
    )


@pytest.fixture
def produce() -> Produce:
    """Return a function that plays `num` episodes from number `first` on; `push` accelerates the cart each step."""

    def many(num: int, *, first: int = 0, noise: float = 0.0, push: float = 0.0, **parameters: float) -> list[Episode]:
        return [_episode(first + i, parameters, noise, push) for i in range(num)]

    return many


@pytest.fixture
def task() -> Task:
    """Return the built-in CartPole."""
    return cartpole
