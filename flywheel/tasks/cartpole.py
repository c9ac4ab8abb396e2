"""CartPole-v1 as a Task: keep the pole up and the cart on its track for 500 steps."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from flywheel.records import Array, Episode
from flywheel.remembering import remembering
from flywheel.task import EdgeCase, Limits, Parameter, Task

NUM_STEPS = 500
"""Steps of a whole episode, and its return."""
REMEMBERED = 4
"""Actions that `cartpole_remembering` remembers: as late as they may be, 0.08 s."""
_LIMITS = np.array([2.4, 12 * 2 * math.pi / 360])  # metres of track, radians of tilt, as in Gymnasium
_START = 0.05  # each number of a first state lies between this and less this, as in Gymnasium
_CONSTANTS = (
    "gravity", "masscart", "masspole", "total_mass", "length", "polemass_length", "force_mag", "tau", "x_threshold",
    "theta_threshold_radians",
)  # fmt: skip


def set_parameters(env: Any, values: Mapping[str, Any]) -> None:
    """Set physical parameters (a float, or float64[N] in the vector form) and the masses derived from them."""
    world = env.unwrapped
    for name, value in values.items():
        setattr(world, name, value)
    world.total_mass = world.masspole + world.masscart
    world.polemass_length = world.masspole * world.length


def set_state(env: Any, state: Any) -> Array:
    """Put the world into float64[4] (x, velocity, angle, its velocity), or N worlds into float64[N, 4].

    Returns what is observed there. A world that gets another state than it has begins its 500 steps anew.
    """
    world = env.unwrapped
    states = np.array(state, dtype=np.float64)
    if isinstance(env.unwrapped, gymnasium.vector.VectorEnv):
        is_moved = (states != world.state.T).any(axis=1)
        world.prev_done &= ~is_moved
        world.steps[is_moved] = 0
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


class CartPoles(VectorEnv[Any, Any, Any]):
    """N worlds of CartPole-v1 that are stepped as arrays: Gymnasium's vector form to the last bit, in fewer calls.

    Actions are not checked: whoever steps worlds here has drawn them from the space.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012 - as Gymnasium has it

    def __init__(self, num_worlds: int) -> None:
        """Make worlds at nominal parameters; they wait for `reset`."""
        self.num_envs = num_worlds
        single: Any = CartPoleEnv()
        self.single_observation_space, self.single_action_space = single.observation_space, single.action_space
        self.action_space = batch_space(self.single_action_space, num_worlds)
        for name in _CONSTANTS:
            setattr(self, name, getattr(single, name))
        self.state: Array = np.zeros((4, num_worlds))
        self.steps = np.zeros(num_worlds, dtype=np.int32)
        self.prev_done = np.zeros(num_worlds, dtype=np.bool_)

    @functools.cached_property
    def observation_space(self) -> gymnasium.Space[Any]:  # type: ignore[override]
        """The space of N observations: making it takes longer than a hundred steps, and few ask for it."""
        return batch_space(self.single_observation_space, self.num_envs)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Array, dict[str, Any]]:
        """Begin an episode in every world."""
        super().reset(seed=seed)
        self.state = self.np_random.uniform(-_START, _START, (4, self.num_envs))
        self.steps[:], self.prev_done[:] = 0, False
        return self._observe(), {}

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """Step every world by its action int[N]; one that was over begins anew instead."""
        world: Any = self
        _, velocity, angle, spin = self.state
        force = np.where(actions == 1, world.force_mag, -world.force_mag)
        sine, cosine = np.sin(angle), np.cos(angle)
        pushed = (force + world.polemass_length * np.square(spin) * sine) / world.total_mass
        turn = (world.gravity * sine - cosine * pushed) / (
            world.length * (4.0 / 3.0 - world.masspole * np.square(cosine) / world.total_mass)
        )
        change: Array = np.empty_like(self.state)
        change[0], change[2], change[3] = velocity, spin, turn
        change[1] = pushed - world.polemass_length * turn * cosine / world.total_mass
        new = self.state + world.tau * change
        terminated = (np.abs(new[0]) > world.x_threshold) | (np.abs(new[2]) > world.theta_threshold_radians)
        self.steps += 1
        truncated = self.steps >= NUM_STEPS
        rewards = np.ones(self.num_envs, np.float32)
        over = self.prev_done
        if np.count_nonzero(over):
            new[:, over] = self.np_random.uniform(-_START, _START, (4, int(over.sum())))
            self.steps[over] = 0
            rewards[over], terminated[over], truncated[over] = 0.0, False, False
        self.state, self.prev_done = new, terminated | truncated
        return self._observe(), rewards, terminated, truncated, {}

    def _observe(self) -> NDArray[np.float32]:
        return self.state.T.astype(np.float32, order="C")


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

cartpole_remembering = remembering(cartpole, REMEMBERED)
"""The same task, whose policies remember what they did: for motors that answer up to so many steps late."""
