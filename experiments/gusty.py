"""CartPole in gusts, seen through noisy sensors: a world in which a good policy fails now and then.

The dynamics are CartPole-v1's; on top come an AR(1) wind on the pole (its shocks scaled by `gust`) and normal noise on
each number that is seen. Both are drawn from (the world's key, t) alone, and so are the same for two policies.

`WINDY` has gusts of half a second and bad sensors; `CLEAR` has good sensors, and weaker gusts that last two seconds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from flywheel.draws import draws
from flywheel.policy import Policy
from flywheel.records import Array, Episode
from flywheel.task import Limits, Parameter, Task, spec_of
from flywheel.testing import linear_policy

NUM_STEPS = 500
_LIMITS = np.array([2.4, 12 * 2 * np.pi / 360])
_DT = 0.02
_LOW = np.full(4, -np.inf, np.float32)
NOMINAL = {"gust": 1.0, "gravity": 9.8, "masspole": 0.1, "length": 0.5, "force_mag": 10.0}


@dataclasses.dataclass(frozen=True)
class Air:
    """How the wind blows, and how well is seen."""

    keeps: float
    """Share of the wind that is still there a step later."""
    gust: float
    """Its deviation at `gust` 1, in the units of gravity."""
    sensors: tuple[float, float, float, float]
    """Deviation of the noise on each number of an observation."""


WINDY = Air(0.95, 0.65, (0.02, 0.1, 0.005, 0.1))
CLEAR = Air(0.99, 0.36, (0.0005, 0.0025, 0.000125, 0.0025))


class Gusty(VectorEnv[Any, Any, Any]):
    """N worlds; the state of one is x, its velocity, the angle, its velocity, the wind, the key and the step."""

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012 - as Gymnasium has it

    def __init__(self, num_worlds: int, air: Air = WINDY) -> None:
        """Make worlds at nominal parameters; they wait for a state."""
        self.air = air
        self.num_envs = num_worlds
        self.single_observation_space = gymnasium.spaces.Box(_LOW, -_LOW)
        self.single_action_space = gymnasium.spaces.Discrete(2)
        self.state: NDArray[np.float64] = np.zeros((num_worlds, 7))
        self.values: dict[str, Any] = dict(NOMINAL)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Array, dict[str, Any]]:
        """Begin where CartPole-v1 begins, all worlds at one place: whoever uses them gives each a state."""
        super().reset(seed=seed)
        start = self.np_random.uniform(-0.05, 0.05, 4)
        self.state = np.tile([*start, 0.0, float(self.np_random.integers(2**53)), 0.0], (self.num_envs, 1))
        return self.observe(), {}

    def observe(self) -> Array:
        """Return what the sensors show, float32[N, 4]."""
        return (self.state[:, :4] + np.array(self.air.sensors) * self.normals(0, 4)).astype(np.float32)

    def normals(self, row: int, num: int) -> NDArray[np.float64]:
        """Return the normal draws of this step, float64[N, num]; row 0 is the sensors', row 1 the wind's."""
        return np.asarray(
            ndtri(draws(self.state[:, 5].astype(np.uint64), 2 * self.state[:, 6].astype(np.int64) + row, num))
        )

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """Step every world; one that is over goes on, which nobody looks at."""
        x, v, angle, spin, wind, key, t = self.state.T
        given, keeps = self.values, self.air.keeps
        wind = keeps * wind + self.air.gust * given["gust"] * np.sqrt(1 - keeps**2) * self.normals(1, 1)[:, 0]
        force = np.where(np.asarray(actions) == 1, given["force_mag"], -given["force_mag"])
        sine, cosine = np.sin(angle), np.cos(angle)
        mass, arm = given["masspole"] + 1.0, given["masspole"] * given["length"]
        pushed = (force + arm * np.square(spin) * sine) / mass
        turned = given["gravity"] * sine - cosine * pushed + wind * cosine
        turn = turned / (given["length"] * (4.0 / 3.0 - given["masspole"] * np.square(cosine) / mass))
        moved = pushed - arm * turn * cosine / mass
        new = [x + _DT * v, v + _DT * moved, angle + _DT * spin, spin + _DT * turn, wind, key, t + 1]
        self.state = np.stack(new, axis=1)
        fell = (np.abs(self.state[:, [0, 2]]) > _LIMITS).any(axis=1)
        return self.observe(), np.ones(self.num_envs), fell, self.state[:, 6] >= NUM_STEPS, {}


class One(gymnasium.Env[Any, Any]):
    """One of them as an environment."""

    def __init__(self) -> None:
        """Make it."""
        self.world = Gusty(1)
        self.observation_space = self.world.single_observation_space
        self.action_space = self.world.single_action_space

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Begin."""
        return self.world.reset(seed=seed)[0][0], {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step."""
        seen, _, fell, over, _ = self.world.step(np.array([action]))
        return seen[0], 1.0, bool(fell[0]), bool(over[0]), {}


def _form(env: Any) -> Gusty:
    world = env.unwrapped
    return world.world if isinstance(world, One) else world


def set_parameters(env: Any, values: Mapping[str, Any]) -> None:
    """Set parameters, floats or float64[N]."""
    _form(env).values = {**NOMINAL, **values}


def set_state(env: Any, state: Any) -> Array:
    """Put the world (or N of them) into a state and return what it shows there."""
    form = _form(env)
    form.state = np.array(state, dtype=np.float64).reshape(form.num_envs, 7)
    seen = form.observe()
    return seen[0] if isinstance(env.unwrapped, One) else seen


def state(env: Any) -> Array:
    """Return the state float64[7], or float64[N, 7]."""
    found = _form(env).state.copy()
    return np.asarray(found[0] if isinstance(env.unwrapped, One) else found)


def failed(episode: Episode) -> bool:
    """Say whether the pole fell or the cart left its track."""
    return episode.end == "terminated"


def margin(episode: Episode) -> float:
    """Return the smallest distance to a limit that was seen, as a share of it."""
    left = 1.0 - float((np.abs(episode.observations[:, [0, 2]]) / _LIMITS).max())
    return min(left, 0.0) if failed(episode) else max(left, 1e-9)


GUSTY = Task(
    name="gusty",
    env=One,
    failed=failed,
    margin=margin,
    parameters=(
        Parameter("gust", 1.0, 0.5, 2.0),
        Parameter("gravity", 9.8, 7.0, 14.0),
        Parameter("masspole", 0.1, 0.05, 0.3),
        Parameter("length", 0.5, 0.25, 1.0),
        Parameter("force_mag", 10.0, 7.0, 14.0),
    ),
    set_parameters=set_parameters,
    set_state=set_state,
    state=state,
    vector=Gusty,
    return_range=(0.0, float(NUM_STEPS)),
    limits=Limits(max_latency_s=60.0),
)
"""The Task."""


def policy(gains: ArrayLike, bias: float = 0.0, **rule: Any) -> Policy:
    """Return a linear policy with gains float[4], whose rule is the task's but for what is given."""
    spec = spec_of(GUSTY)
    network = linear_policy(spec, gains, [-bias / 2, bias / 2])[0]
    own = dataclasses.replace(spec, rule=dataclasses.replace(spec.rule, **rule))
    return Policy(network, own, f"{gains}{bias}{rule}")
