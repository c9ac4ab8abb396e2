"""Pendulum-v1 as a Task: swing a rod up with a weak motor and hold it upright."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray

from flywheel.records import Array, Episode
from flywheel.task import EdgeCase, Limits, Parameter, Task

NUM_STEPS = 200
"""Steps of a whole episode, 0.05 s each."""
HELD_STEPS = 50
"""Steps at the end of an episode over which the rod must be upright: 2.5 s."""
UPRIGHT = 0.9
"""Cosine of the largest angle that counts as upright: 26 degrees."""
WORST = -2000.0
"""Return of a rod that hangs still: 200 times -pi squared, rounded; spinning at full speed costs about as much."""
_DT, _MAX_SPEED, _MAX_TORQUE = 0.05, 8.0, 2.0  # as in Gymnasium


class Pendulums(VectorEnv[Any, Any, Any]):
    """N worlds of Pendulum-v1 that are stepped as arrays, each equal to Gymnasium's own to the last bit."""

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012 - as Gymnasium has it

    def __init__(self, num_worlds: int) -> None:
        """Make worlds at nominal parameters; they wait for `reset`."""
        self.num_envs = num_worlds
        single = gymnasium.make("Pendulum-v1")
        self.single_observation_space, self.single_action_space = single.observation_space, single.action_space
        single.close()  # type: ignore[no-untyped-call]
        self.observation_space = gymnasium.vector.utils.batch_space(self.single_observation_space, num_worlds)
        self.action_space = gymnasium.vector.utils.batch_space(self.single_action_space, num_worlds)
        self.g, self.m, self.l = (np.full(num_worlds, value) for value in (10.0, 1.0, 1.0))
        self.state: NDArray[np.float64] = np.zeros((num_worlds, 2))
        self.num_steps = np.zeros(num_worlds, dtype=np.int64)
        self.ended = np.zeros(num_worlds, dtype=np.bool_)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Array, dict[str, Any]]:
        """Begin an episode in every world."""
        super().reset(seed=seed)
        self._begin(np.ones(self.num_envs, dtype=np.bool_))
        return self.observe(), {}

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """Step every world; one that ended begins again instead."""
        begins = self.ended
        angle, speed = self.state.T
        torque = np.clip(np.asarray(actions, np.float32)[:, 0], -_MAX_TORQUE, _MAX_TORQUE)
        off = ((angle + np.pi) % (2 * np.pi)) - np.pi
        costs = _squares(off) + 0.1 * _squares(speed) + np.float32(0.001) * _squares(torque)
        # Gymnasium multiplies a Python number by a float32 torque, which gives a float32.
        push = (3.0 / (self.m * _squares(self.l))).astype(np.float32) * torque
        speed = speed + (3 * self.g / (2 * self.l) * np.sin(angle) + push) * _DT
        speed = np.clip(speed, -_MAX_SPEED, _MAX_SPEED)
        self.state = np.stack([angle + speed * _DT, speed], axis=1)
        self.num_steps += 1
        self._begin(begins)
        self.ended = self.num_steps >= NUM_STEPS
        never = np.zeros(self.num_envs, dtype=np.bool_)
        return self.observe(), np.where(begins, 0.0, -costs), never, self.ended.copy(), {}

    def observe(self) -> NDArray[np.float32]:
        """Return what is seen of every world, float32[N, 3]: cosine and sine of the angle, angular velocity."""
        angle, speed = self.state.T
        return np.stack([np.cos(angle), np.sin(angle), speed], axis=1).astype(np.float32)

    def _begin(self, which: NDArray[np.bool_]) -> None:
        high = np.array([np.pi, 1.0])
        self.state[which] = self.np_random.uniform(-high, high, (int(which.sum()), 2))
        self.num_steps[which] = 0
        self.ended = self.ended & ~which


def _squares(values: Array) -> Array:
    """Return the squares as Python computes them: NumPy's of an array differ in the last bit one time in a thousand."""
    return np.array([value**2 for value in values], dtype=values.dtype)


def set_parameters(env: Any, values: Mapping[str, Any]) -> None:
    """Set g (m/s²), m (kg) and l (m): a float, or float64[N] in the vector form."""
    for name, value in values.items():
        setattr(env.unwrapped, name, value if isinstance(env.unwrapped, Pendulums) else float(value))


def set_state(env: Any, state: Any) -> Array:
    """Put the world into float64[2] (angle from upright in rad, its velocity in rad/s), or N worlds into float64[N, 2].

    Returns what is observed there. A world that gets another state than it has begins its 500 steps anew.
    """
    world = env.unwrapped
    states = np.array(state, dtype=np.float64)
    if isinstance(world, Pendulums):
        world.num_steps[(states != world.state).any(axis=1)] = 0
        world.ended = world.num_steps >= NUM_STEPS
        world.state = states
        return world.observe()
    world.state = states
    return np.asarray(world._get_obs())


def state(env: Any) -> Array:
    """Return the world's state float64[2], or float64[N, 2] of the vector form; the angle counts full turns."""
    return np.array(env.unwrapped.state)


def observed_state(observation: Array) -> Array:
    """Return the state that an observation shows; its angle is between -pi and pi."""
    cosine, sine, speed = np.asarray(observation, dtype=np.float64)
    return np.array([math.atan2(sine, cosine), speed])


def failed(episode: Episode) -> bool:
    """Return True when the rod was not upright all through the last 50 steps of an episode that was not lost."""
    return episode.end != "lost" and margin(episode) <= 0


def margin(episode: Episode) -> float:
    """Return by how much the lowest cosine of the angle in the last 50 steps is above what counts as upright."""
    return float(episode.observations[-HELD_STEPS:, 0].min()) - UPRIGHT


pendulum = Task(
    name="pendulum",
    env="Pendulum-v1",
    failed=failed,
    margin=margin,
    parameters=(
        Parameter("g", 10.0, 5.0, 15.0),
        Parameter("m", 1.0, 0.3, 3.0),
        Parameter("l", 1.0, 0.3, 2.0),
    ),
    set_parameters=set_parameters,
    set_state=set_state,
    state=state,
    observed_state=observed_state,
    state_period=(2 * math.pi, 0.0),
    vector=Pendulums,
    return_range=(WORST, 0.0),
    edge_cases=(
        EdgeCase("hanging_still", state=(math.pi, 0.0)),
        EdgeCase("spinning_fast", state=(0.0, 8.0)),
        EdgeCase("swinging_past", state=(math.pi, -5.0)),
        EdgeCase("light_rod", parameters={"m": 0.8}),
        EdgeCase("heavy_rod", parameters={"m": 1.05}),
    ),
    limits=Limits(max_failure_rate=0.05, max_regression=0.05, max_latency_s=0.005),
    drift={"l": 1.4},
    max_steps=NUM_STEPS,
    settings={
        "train": {
            "gamma": 0.9,  # sees 10 steps ahead: the cost of a step says enough of the swing that it belongs to
            "steps_per_world": 128,  # 4,096 steps an iteration: with 2,048 a good policy was often lost again
            "num_epochs": 10,
            "minibatch_size": 256,
            "edge_case_share": 0.4,  # the rod that hangs still is what is learnt last
            "max_steps": 200_000,
            "reward_scale": 0.1,  # costs of up to 16 a step become values of about 10
        },
        "sac": {
            "hidden": [64, 64],  # 256 learn more of an update, but that takes them several times as long
            "lr": 1e-3,
            "gamma": 0.98,
            "reward_scale": 1.0,
            # 2,800 updates to -200 (median of three seeds); 1,000, 0.005 and one step ahead took 3,100 to 4,300.
            "replay": {"begin_at": 500, "target_rate": 0.01, "num_steps": 3},
            "max_steps": 40_000,
            "quiet_steps": 8_192,
        },
        "gate": {"probe_edge_trials": 15},
    },
)
"""The Task: parameters in SI units; failing is not holding the rod upright for the last 2.5 of 10 seconds."""
