"""Copies of environments in the middle of an episode: which can be copied, and how."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from gymnasium.utils import EzPickle

from flywheel.simulate.arriving import Arrivals

_PLAIN = (bool, int, float, str, tuple, np.generic, np.ndarray, np.random.Generator, type(None), Arrivals)


class NoCopy(Exception):
    """An environment that can't be copied as it is now: a world must be stepped again to get where it was."""


def take(env: Any) -> Any:
    """Return what `put` needs to bring an environment (or a vector form) back to now. Raises NoCopy.

    MuJoCo's has a state of its own. Others are copied as Python objects, unless they say that a copy of them is a new
    environment with the same arguments, as most of Gymnasium's that stand on a C library do.
    """
    layers = _layers(env)
    if _is_mujoco(layers[-1]):
        return [_plain(layer) for layer in layers], _state(layers[-1])
    if any(isinstance(layer, EzPickle) for layer in layers):
        raise NoCopy(f"A copy of {type(layers[-1]).__name__} begins anew.")
    try:
        return copy.deepcopy(env)
    except (TypeError, ValueError, NotImplementedError) as error:  # what Python raises for an object of a C library
        raise NoCopy(str(error)) from error


def put(env: Any, taken: Any) -> Any:
    """Return the environment as it was at `take`: the same one or another, which takes its place."""
    layers = _layers(env)
    if not _is_mujoco(layers[-1]):
        return copy.deepcopy(taken)
    attributes, state = taken
    for layer, values in zip(layers, attributes, strict=True):
        vars(layer).update(copy.deepcopy(values))
    _set_state(layers[-1], state)
    return env


def _layers(env: Any) -> list[Any]:
    """Return an environment's wrappers, the outermost first, and itself."""
    layers = [env]
    while layers[-1].unwrapped is not layers[-1]:
        layers.append(layers[-1].env)
    return layers


def _plain(layer: Any) -> dict[str, Any]:
    """Return copies of what a layer counts, draws from and has on its way, such as the steps of its time limit."""
    return {name: copy.deepcopy(value) for name, value in vars(layer).items() if isinstance(value, _PLAIN)}


def _is_mujoco(env: Any) -> bool:
    data = getattr(env, "data", None)
    return hasattr(env, "model") and type(data).__module__.partition(".")[0] == "mujoco"


def _state(env: Any) -> Any:
    """Return the state that MuJoCo integrates: time, positions, velocities, activations, warm start, and inputs."""
    import mujoco

    which = mujoco.mjtState.mjSTATE_INTEGRATION
    state = np.empty(mujoco.mj_stateSize(env.model, which))
    mujoco.mj_getState(env.model, env.data, state, which)
    return state


def _set_state(env: Any, state: Any) -> None:
    import mujoco

    mujoco.mj_setState(env.model, env.data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
    mujoco.mj_forward(env.model, env.data)
    # what follows from the state is computed anew, and that moved the solver's warm start
    mujoco.mj_setState(env.model, env.data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
