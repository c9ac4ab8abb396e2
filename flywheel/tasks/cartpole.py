"""CartPole-v1 as a Task: keep the pole up and the cart on its track for 500 steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv

from flywheel.records import Array, Episode
from flywheel.task import EdgeCase, Limits, Parameter, Task

NUM_STEPS = 500
"""Steps of a whole episode, and its return."""
_LIMITS = np.array([2.4, 12 * 2 * math.pi / 360])  # metres of track, radians of tilt, as in Gymnasium


def set_parameters(env: Any, values: Mapping[str, Any]) -> None:
    """Set physical parameters (a float, or float64[N] in the vector form) and the masses derived from them."""
    world = env.unwrapped
    for name, value in values.items():
        setattr(world, name, value)
    world.total_mass = world.masspole + world.masscart
    world.polemass_length = world.masspole * world.length


def set_state(env: Any, state: Any) -> Array:
    """Put the world into float64[4] (x, velocity, angle, its velocity), or N worlds into float64[N, 4].

    Returns what is observed there. A world that gets another state than it has is no longer done.
    """
    world = env.unwrapped
    states = np.array(state, dtype=np.float64)
    if isinstance(env.unwrapped, gymnasium.vector.VectorEnv):
        if world.state is not None:
            world.prev_done &= (states == world.state.T).all(axis=1)
        world.state = states.T.copy()
    else:
        world.state = states
        world.steps_beyond_terminated = None
    return states.astype(np.float32)


def state(env: Any) -> Array:
    """Return the world's state float64[4], or float64[N, 4] of the vector form."""
    return np.array(env.unwrapped.state.T)


def observed_state(observation: Array) -> Array:
    """Return the state that an observation shows: all of it."""
    return np.asarray(observation, dtype=np.float64)


class CartPoles(CartPoleVectorEnv):  # type: ignore[misc]
    """N worlds that are stepped as arrays: Gymnasium's, to the last bit, and a step of 100 in a fraction of its time.

    Actions are not checked (who steps worlds here has drawn them from the space), and only Euler's rule is known.
    """

    def step(self, action: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """Step every world by its action int[N]; one that was over begins anew, as NEXT_STEP has it."""
        x, velocity, angle, spin = self.state
        force = np.where(action == 1, self.force_mag, -self.force_mag)
        sine, cosine = np.sin(angle), np.cos(angle)
        pushed = (force + self.polemass_length * np.square(spin) * sine) / self.total_mass
        turn = (self.gravity * sine - cosine * pushed) / (
            self.length * (4.0 / 3.0 - self.masspole * np.square(cosine) / self.total_mass)
        )
        new: Array = np.empty_like(self.state)
        new[0] = x + self.tau * velocity
        new[1] = velocity + self.tau * (pushed - self.polemass_length * turn * cosine / self.total_mass)
        new[2] = angle + self.tau * spin
        new[3] = spin + self.tau * turn
        terminated = (np.abs(new[0]) > self.x_threshold) | (np.abs(new[2]) > self.theta_threshold_radians)
        self.steps += 1
        truncated = self.steps >= self.max_episode_steps
        rewards = np.ones(self.num_envs, np.float32)
        if self.prev_done.any():
            over = self.prev_done
            new[:, over] = self.np_random.uniform(self.low, self.high, (4, int(over.sum())))
            self.steps[over] = 0
            rewards[over], terminated[over], truncated[over] = 0.0, False, False
        self.state, self.prev_done = new, terminated | truncated
        return new.T.astype(np.float32), rewards, terminated, truncated, {}


def failed(episode: Episode) -> bool:
    """Return True when the pole fell or the cart left its track before step 500."""
    return episode.end == "terminated" and episode.num_steps < NUM_STEPS


def margin(episode: Episode) -> float:
    """Return the smallest distance to a limit that was seen, as a share of that limit: 1 is perfect, 0 has failed."""
    used = np.abs(episode.observations[:, [0, 2]]) / _LIMITS
    left = 1.0 - float(used.max())
    return min(left, 0.0) if failed(episode) else left


cartpole = Task(
    name="cartpole",
    env="CartPole-v1",
    failed=failed,
    margin=margin,
    parameters=(
        Parameter("gravity", 9.8, 4.0, 30.0),
        Parameter("masscart", 1.0, 0.3, 5.0),
        Parameter("masspole", 0.1, 0.03, 1.0),
        Parameter("length", 0.5, 0.1, 4.0),
        Parameter("force_mag", 10.0, 3.0, 30.0),
    ),
    set_parameters=set_parameters,
    set_state=set_state,
    state=state,
    observed_state=observed_state,
    vector=CartPoles,
    return_range=(0.0, float(NUM_STEPS)),
    edge_cases=(
        EdgeCase("cart_off_centre", state=(1.2, 0.0, 0.0, 0.0)),
        EdgeCase("cart_rolling_out", state=(-0.6, -0.6, 0.0, 0.0)),
        EdgeCase("pole_tilted", state=(0.0, 0.0, 0.12, 0.0)),
        EdgeCase("strong_gravity", parameters={"gravity": 14.7}),
        EdgeCase("weak_motor", parameters={"force_mag": 7.0}),
    ),
    limits=Limits(max_failure_rate=0.05, max_regression=0.05, max_latency_s=0.005),
    drift={"length": 2.0},
)
"""The Task: parameters in SI units (`length` is half the pole's), failing is falling before step 500."""
