"""What an environment may not do, told in a sentence: raise, answer with NaN, answer in another shape than it declares.

An environment is anybody's code. Training, gate and simulated production look at each of its answers by `sound`
and take what it raises then as what it raised itself: the episode is not counted, and is told by `said`.
"""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import numpy as np

from flywheel.errors import FlywheelError


class Misbehaved(FlywheelError):
    """An environment gave what nothing can be done with."""


def sound(space: gymnasium.Space[Any], observation: Any, reward: Any = 0.0) -> None:
    """Raise Misbehaved for a reward that is no finite number and an observation that isn't finite or of its shape."""
    try:
        number = float(reward)
    except (TypeError, ValueError):
        raise Misbehaved(f"gave the reward {reward!r}, which is no number") from None
    if not math.isfinite(number):
        raise Misbehaved(f"gave the reward {number}")
    _look(space, observation, "observation")


def _look(space: gymnasium.Space[Any], value: Any, name: str) -> None:
    if isinstance(space, gymnasium.spaces.Dict | gymnasium.spaces.Tuple):
        parts = dict(enumerate(space.spaces)) if isinstance(space, gymnasium.spaces.Tuple) else space.spaces
        try:
            for key, part in parts.items():
                _look(part, value[key], f"{name}[{key!r}]")
        except (LookupError, TypeError):
            raise Misbehaved(f"gave an {name} without {key!r}, which its space {space} has") from None
        return
    if not isinstance(space, gymnasium.spaces.Box):
        return
    try:
        array = np.asarray(value)
        finite = bool(np.isfinite(array).all())
    except (TypeError, ValueError):
        raise Misbehaved(f"gave an {name} that is no array of numbers: {value!r}") from None
    if array.shape != space.shape:
        raise Misbehaved(f"gave an {name} of shape {array.shape} where its space says {space.shape}")
    if not finite:
        raise Misbehaved(f"gave an {name} that is not finite: {array.tolist()}")


def outside(space: gymnasium.Space[Any], observation: Any) -> str:
    """Return what is wrong with a finite observation that lies outside its declared space, "" when nothing is."""
    if not isinstance(space, gymnasium.spaces.Box):
        return "" if space.contains(observation) else f"{observation!r} is not in {space}"
    array = np.asarray(observation)
    assert space.dtype is not None
    if not np.can_cast(array.dtype, space.dtype, "same_kind"):
        return f"its dtype is {array.dtype} where the space says {space.dtype}"
    beyond = np.argwhere((array < space.low) | (array > space.high))
    if not len(beyond):
        return ""
    at = tuple(int(i) for i in beyond[0])
    place = at[0] if len(at) == 1 else at
    return f"entry {place} is {array[at]:g}, declared are {space.low[at]:g} to {space.high[at]:g}"


def said(error: BaseException) -> str:
    """Return what an environment did, as a phrase that goes on after its name: "raised ValueError('…')"."""
    return str(error) if isinstance(error, Misbehaved) else f"raised {error!r}"
