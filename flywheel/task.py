"""Task: the one thing a user writes. It names the simulator, what failing means, and the limits."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import inspect
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import ArrayLike

from flywheel.config import canonical
from flywheel.correction import Correction
from flywheel.errors import UsageError, unknown
from flywheel.records import Array, End, Episode, Rule, Spec
from flywheel.spaces import leaves_of, named
from flywheel.tapes import CELLS, INTERVAL, NOMINAL, SEARCH, STRESS, SUITE

POLICY = "policy"
"""What a policy is called, where somebody watches one and doesn't name it."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """Something the simulator lets us set: its nominal value and the range it may have."""

    name: str
    nominal: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class EdgeCase:
    """A situation that every candidate must master: other parameters, a start state, or both."""

    name: str
    parameters: Mapping[str, float] = field(default_factory=dict)
    state: tuple[float, ...] | None = None
    """Start state for `set_state`; None starts as the environment does."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a policy must keep to be served."""

    max_failure_rate: float = 0.05
    """share of episodes that may fail"""
    max_regression: float = 0.05
    """mean extra loss against the policy in service (failed counts 1, else the shortfall of return)"""
    max_latency_s: float = 0.005
    """seconds that one decision computes (CPU time of its thread), 99th percentile, on the runtime that serves"""
    max_bytes: int = 50 * 2**20
    """bytes of the served network"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What to control, what failing is, and what the simulator can do.

    Only `name`, `env` and `failed` are needed. What is left out is lost by name: without `parameters`
    there is no calibration, without `set_state` no start states and calibration from whole episodes only,
    without `vector` the worlds are stepped one by one.
    """

    name: str
    env: str | Callable[[], gymnasium.Env[Any, Any]]
    """A Gymnasium id, or a function that makes one environment."""
    failed: Callable[[Episode], bool]
    """True when an episode went wrong. Its observations are flat: [T + 1, D], whatever the environment's space."""
    margin: Callable[[Episode], float] | None = None
    """How far an episode stayed from failing: at most 0 when it failed; the larger the safer."""
    parameters: tuple[Parameter, ...] = ()
    set_parameters: Callable[[Any, Mapping[str, Any]], None] | None = None
    """(environment, values): sets them and everything derived from them. With `vector`, values may be
    float64[N], one a world."""
    set_state: Callable[[Any, Any], Array] | None = None
    """(environment, state) -> observation: puts the world into a state and returns what it shows there, as its own
    step would; with `vector`, (vector environment, state[N]) -> observation[N]."""
    state: Callable[[Any], Any] | None = None
    """(environment) -> the state that `set_state` takes; for snapshots."""
    observed_state: Callable[[Array], Array] | None = None
    """flattened observation -> state, where the observation is the whole state; opens calibration from transitions."""
    state_period: tuple[float, ...] = ()
    """Period of each number of the state that is an angle (2 pi), 0 for every other one; () where none is an angle."""
    vector: Callable[[int], gymnasium.vector.VectorEnv[Any, Any, Any]] | None = None
    """(N) -> a vector form whose `set_parameters`, `set_state` and `state` work on all N worlds."""
    return_range: tuple[float, float] | None = None
    """Lowest and highest return an episode can have."""
    strata: Callable[[Episode], str] | None = None
    """What kind of episode one is (a site, a load, a kind of customer): monitors of shifts learn what is normal for
    each by itself, so that another mix of them is no alarm. The first 8 kinds have a baseline, the rest share one."""
    edge_cases: tuple[EdgeCase, ...] = ()
    limits: Limits = field(default_factory=Limits)
    greedy: bool = False
    """True serves the most likely action; False draws from the policy's distribution."""
    drift: Mapping[str, float] = field(default_factory=dict)
    """What simulated production's world changes to."""
    max_steps: int = 10_000
    """Steps after which an episode is cut off (truncated), whatever the environment says: none goes on for ever."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Where this task needs another configuration than the defaults, nested as in flywheel.toml:
    {"train": {"gamma": 0.9}}. What flywheel.toml or the command line says counts before it. A section "dqn" or "sac"
    holds what `train` has for that algorithm, where it is chosen: {"sac": {"gamma": 0.99}}."""
    version: str = ""
    """Stands for the code in the digest when a callable has no source."""
    correction: Correction | None = None
    """What this form of the task corrects; `simulate.corrected` makes such forms, no user gives it. It is no part of
    the digest, but of the worlds that a verdict names."""
    inner: Task | None = None
    """The task whose last actions this one remembers; `remembering` makes such tasks, no user gives it."""
    remembered: int = 0
    """How many actions it remembers,"""
    memory: int = 0
    """and how many numbers at the end of an observation, and of a state, they are."""

    def __post_init__(self) -> None:
        known = [p.name for p in self.parameters]
        for name in [*self.drift, *(n for case in self.edge_cases for n in case.parameters)]:
            if name not in known:
                raise unknown(f"parameter of task {self.name}:", name, known)
        names = [case.name for case in self.edge_cases]
        for name in names:
            if name in (NOMINAL, STRESS, CELLS, SEARCH, INTERVAL) or name.startswith(SUITE) or names.count(name) > 1:
                why = "given twice" if names.count(name) > 1 else "what the gate calls worlds of its own"
                raise UsageError(f"Edge case {name} of task {self.name} has a name that is {why}: give it another one.")
        if self.parameters and self.set_parameters is None:
            raise UsageError(
                f"Task {self.name} names parameters but no set_parameters, so nothing could set them: "
                "give set_parameters=function(environment, values), or leave parameters out."
            )
        if any(not period >= 0 for period in self.state_period):
            raise UsageError(f"Task {self.name} has a state_period that is negative: give 0 for what is no angle.")
        if any(case.state is not None for case in self.edge_cases) and self.set_state is None:
            raise UsageError(
                f"Task {self.name} has edge cases with a start state but no set_state: give set_state=function("
                "environment, state), or describe those cases by parameters."
            )

    @property
    def nominal(self) -> dict[str, float]:
        """The simulator's parameters as the task gives them."""
        return {p.name: p.nominal for p in self.parameters}

    def episode(
        self,
        observations: ArrayLike,
        actions: ArrayLike,
        rewards: ArrayLike | None = None,
        *,
        end: End = "terminated",
        policy: str = POLICY,
        id: str = "",
        started_at: float | None = None,
        ended_at: float | None = None,
    ) -> Episode:
        """Return one's own episode as a record that the observer reads and the store keeps.

        T + 1 observations, T raw actions (as the policy gave them), T rewards (None: not known); `end` says how it
        was over, `policy` names what acted, `id` is a fresh one and the times are now unless they are given. Whether
        it failed is the task's to say. Raises UsageError when the numbers of observations, actions, rewards don't fit.
        """
        seen, acted = np.asarray(observations), np.asarray(actions)
        gained = np.full(len(acted), np.nan) if rewards is None else np.asarray(rewards, dtype=np.float64)
        if not len(seen) == len(acted) + 1 == len(gained) + 1 or not len(acted):
            raise UsageError(
                f"An episode of T actions has T + 1 observations and T rewards, and T is at least 1; here are "
                f"{len(seen)} observations, {len(acted)} actions and {len(gained)} rewards."
            )
        ended_at = time.time() if ended_at is None else ended_at
        episode = Episode(
            id=id or uuid.uuid4().hex,
            origin="production",
            task=task_digest(self),
            parameters={},
            draw_key=0,
            digests=(policy,) * len(acted),
            observations=seen,
            raw_actions=acted,
            rewards=gained,
            logps=np.full(len(acted), np.nan),
            end=end,
            failed=False,
            started_at=ended_at if started_at is None else started_at,
            ended_at=ended_at,
        )
        return dataclasses.replace(episode, failed=bool(self.failed(episode)))

    def make_env(self) -> gymnasium.Env[Any, Any]:
        """Return one fresh environment; an unknown id raises Gymnasium's own sentence."""
        return gymnasium.make(self.env) if isinstance(self.env, str) else self.env()


def span_of(task: Task) -> float | None:
    """Return the width of the task's range of returns, None where it gives none."""
    return None if task.return_range is None else task.return_range[1] - task.return_range[0]


def spec_of(task: Task) -> Spec:
    """Return what policies of this task read and give; UsageError names a space that isn't supported."""
    env = task.make_env()
    observation, action = env.observation_space, env.action_space
    env.close()  # type: ignore[no-untyped-call]
    leaves = leaves_of(observation, f"Task {task.name}")
    flat = gymnasium.spaces.utils.flatten_space(observation)
    assert isinstance(flat, gymnasium.spaces.Box)
    return Spec(
        observation_shape=tuple(flat.shape),
        observation_dtype=str(flat.dtype),
        observation_low=tuple(float(v) for v in np.ravel(flat.low)),
        observation_high=tuple(float(v) for v in np.ravel(flat.high)),
        observation_leaves=leaves,
        **_acting(task, action),
    )


def _acting(task: Task, action: gymnasium.Space[Any]) -> dict[str, Any]:
    """Return what a Spec says of actions."""
    given: dict[str, Any] = {
        "action_shape": (),
        "num_actions": 0,
        "action_start": 0,
        "action_low": (),
        "action_high": (),
        "unsquash": False,
        "num_draws": 1,
    }
    if isinstance(action, gymnasium.spaces.Discrete):
        return given | {
            "action_kind": "discrete",
            "num_actions": int(action.n),
            "action_start": int(action.start),
            "rule": Rule(kind="categorical", greedy=task.greedy),
        }
    if isinstance(action, gymnasium.spaces.MultiDiscrete) and len(action.shape) == 1:
        return given | {
            "action_kind": "multi_discrete",
            "action_shape": tuple(action.shape),
            "action_nvec": tuple(action.nvec.tolist()),
            "action_starts": tuple(action.start.tolist()),
            "rule": Rule(kind="multi_categorical", greedy=task.greedy),
            "num_draws": len(action.nvec),
        }
    if isinstance(action, gymnasium.spaces.Box) and np.issubdtype(action.dtype, np.floating):
        return given | {
            "action_kind": "box",
            "action_shape": tuple(action.shape),
            "action_low": tuple(float(v) for v in np.ravel(action.low)),
            "action_high": tuple(float(v) for v in np.ravel(action.high)),
            "unsquash": bool(np.all(np.isfinite(action.low)) and np.all(np.isfinite(action.high))),
            "rule": Rule(kind="gaussian", greedy=task.greedy),
            "num_draws": int(np.prod(action.shape)),
        }
    raise UsageError(
        f"Task {task.name} has the action space {named(action)}; supported are Discrete, MultiDiscrete of one "
        "dimension and Box of floats: wrap the environment in a gymnasium.ActionWrapper that takes one of them."
    )


@functools.cache
def _text(function: Callable[..., Any]) -> str:
    return inspect.getsource(function)


def _source(task: Task, name: str, function: Callable[..., Any]) -> dict[str, str]:
    try:
        text = _text(function)
    except (OSError, TypeError):
        if not task.version:
            raise UsageError(
                f"The source of {name} of task {task.name} can't be read, so its digest would not notice a change: "
                "define it in a file, or give the Task a version=."
            ) from None
        text = task.version
    return {
        "module": getattr(function, "__module__", ""),
        "name": getattr(function, "__qualname__", repr(type(function))),
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
    }


def task_digest(task: Task) -> str:
    """Return the sha256 of the task's data, of the source of its callables and of the environment's package version."""
    plain: dict[str, Any] = {
        "name": task.name,
        "version": task.version,
        "gymnasium": importlib.metadata.version("gymnasium"),
        "parameters": [[p.name, p.nominal, p.low, p.high] for p in task.parameters],
        "edge_cases": [[c.name, dict(c.parameters), c.state] for c in task.edge_cases],
        "return_range": task.return_range,
        **({"state_period": task.state_period} if task.state_period else {}),
        "greedy": task.greedy,
        "max_steps": task.max_steps,
        **({"remembered": task.remembered} if task.remembered else {}),
        "limits": [
            task.limits.max_failure_rate,
            task.limits.max_regression,
            task.limits.max_latency_s,
            task.limits.max_bytes,
        ],
    }
    env: Any = inspect.unwrap(task.env) if callable(task.env) else task.env
    if isinstance(env, str):
        plain["env"] = env
    for name in (
        "env",
        "failed",
        "margin",
        "set_parameters",
        "set_state",
        "state",
        "observed_state",
        "vector",
        "strata",
    ):
        value = getattr(task, name)
        value = inspect.unwrap(value) if callable(value) else value  # of a corrected form the task's own
        if callable(value):
            plain[name] = _source(task, name, value)
    return hashlib.sha256(canonical(plain).encode()).hexdigest()
