"""CartPole worlds with process noise, gusts and noisy sensors, and faults that no parameter explains.

All worlds of a call are stepped together; everything is drawn from the generator that is handed in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flywheel.records import Episode
from flywheel.tasks.cartpole import NUM_STEPS, CartPoles, cartpole, set_parameters
from flywheel.testing import SHORT_POLE

KEEPS = 0.95
"""Share of a gust that is left a step later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What production's world does beside CartPole's equations."""

    parameters: Mapping[str, float]
    sensor: tuple[float, float, float, float] = (0.01, 0.02, 0.002, 0.02)
    """deviation of each number that is seen"""
    process: tuple[float, float, float, float] = (0.0, 0.01, 0.0, 0.02)
    """deviation of what is added to the state in each step"""
    gust: float = 0.0
    """deviation of an AR(1) wind on the pole, rad/s² times half its length"""
    wind: float = 0.0
    """the same of a wind that never ceases"""
    swapped: bool = False
    """whether the wires of the two actions are swapped"""
    delayed: bool = False
    """whether an action takes effect one step later"""


def produce(world: World, num: int, rng: np.random.Generator) -> list[Episode]:
    """Play `num` episodes with a noisy linear policy, which acts on what the sensors show."""
    env = CartPoles(num)
    env.reset(seed=int(rng.integers(2**31)))
    set_parameters(env, {**cartpole.nominal, **world.parameters})
    length = {**cartpole.nominal, **world.parameters}["length"]
    process, sensor = np.array(world.process), np.array(world.sensor)
    before, gust = rng.integers(0, 2, num), world.gust * rng.standard_normal(num)
    over, lengths = np.zeros(num, dtype=np.bool_), np.full(num, NUM_STEPS)
    seen, actions = [_shown(env, sensor, rng)], []
    for t in range(NUM_STEPS):
        chance = 1 / (1 + np.exp(-np.clip(seen[-1] @ SHORT_POLE, -50, 50)))
        wanted = (rng.random(num) < chance).astype(np.int64)
        applied = before if world.delayed else wanted
        env.prev_done[:], env.steps[:] = False, 0  # who is over goes on, which nobody looks at
        env.step(1 - applied if world.swapped else applied)
        pushed = (world.wind + gust) / length
        env.state += (process * rng.standard_normal((num, 4))).T
        env.state[3] += env.tau * pushed  # type: ignore[attr-defined]
        gust = KEEPS * gust + world.gust * np.sqrt(1 - KEEPS**2) * rng.standard_normal(num)
        env.state[:, over] = 0.0
        fell = (np.abs(env.state[0]) > 2.4) | (np.abs(env.state[2]) > 0.20943951)
        seen.append(_shown(env, sensor, rng))
        actions.append(wanted)
        before = wanted
        lengths[fell & ~over] = t + 1
        over |= fell
        if over.all():
            break
    lengths = np.minimum(lengths, len(actions))
    whole, done = np.stack(seen, axis=1), np.stack(actions, axis=1)
    return [_episode(i, whole[i, : k + 1], done[i, :k], bool(over[i])) for i, k in enumerate(lengths.tolist())]


def _shown(env: CartPoles, sensor: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float32]:
    return np.asarray(env.state.T + sensor * rng.standard_normal((env.num_envs, 4)), dtype=np.float32)


def _episode(number: int, seen: NDArray[np.float32], actions: NDArray[np.int64], fell: bool) -> Episode:
    num = len(actions)
    return Episode(
        id=f"episode_{number:05d}",
        origin="production",
        task="cartpole",
        parameters={},
        draw_key=0,
        digests=("served",) * num,
        observations=seen,
        raw_actions=actions,
        rewards=np.ones(num),
        logps=np.zeros(num),
        end="terminated" if fell else "truncated",
        failed=fell,
        started_at=float(number),
    )
