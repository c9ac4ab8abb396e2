"""Observations of any space as flat rows, the numbers and their order as Gymnasium's `flatten` gives them. Pure.

A space is described by its leaves, which are plain data and go into the Spec; () stands for one flat Box, whose
observations are rows already. N observations are flattened leaf by leaf, as columns.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from flywheel.errors import FlywheelError, UsageError
from flywheel.records import Array, Leaf, Spec

if TYPE_CHECKING:
    import gymnasium

MAX_SIZE = 4096
"""Numbers of one flattened observation: beyond it a small network learns nothing, and every step is sent as JSON."""

Leaves = tuple[Leaf, ...]
Get = Callable[[Any], Any]


def leaves_of(space: gymnasium.Space[Any], owner: str = "The environment") -> Leaves:
    """Return the leaves of an observation space, () for one flat Box.

    Raises UsageError, which names the part that isn't supported and says what to do.
    """
    from gymnasium.spaces import Box

    if isinstance(space, Box) and len(space.shape) == 1:
        size = int(space.shape[0])
        leaves: Leaves = ()
    else:
        leaves = tuple(_leaves(space, (), owner))
        size = sum(width(leaf) for leaf in leaves)
    if not 0 < size <= MAX_SIZE:
        raise UsageError(
            f"{owner} observes {size} numbers once everything is flattened (a Discrete(n) counts n), and from 1 to "
            f"{MAX_SIZE} are supported: wrap the environment so that it shows what the policy needs in fewer numbers."
        )
    return leaves


def _leaves(space: gymnasium.Space[Any], path: tuple[str | int, ...], owner: str) -> list[Leaf]:
    from gymnasium import spaces

    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts: list[tuple[Any, gymnasium.Space[Any]]]
        parts = list(space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces))
        if not parts or (isinstance(space, spaces.Dict) and not all(isinstance(key, str) for key, _ in parts)):
            raise UsageError(
                f"{owner} observes {named(space)}{_at(path)}, which JSON can't carry: give it at least one part, "
                "and its parts names that are text."
            )
        return [leaf for key, part in parts for leaf in _leaves(part, (*path, key), owner)]
    if isinstance(space, spaces.Box):
        if space.dtype == np.uint8 and len(space.shape) > 1:
            raise UsageError(
                f"{owner} observes an image, {named(space)}{_at(path)}, and policies that read images are not "
                "supported: wrap the environment so that it shows features of it; if it is no image, wrap it in "
                "gymnasium.wrappers.FlattenObservation."
            )
        return [Leaf(path=path, kind="box", shape=space.shape, dtype=str(space.dtype))]
    if isinstance(space, spaces.MultiBinary):
        return [Leaf(path=path, kind="multi_binary", shape=space.shape, dtype=str(space.dtype))]
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        counts = space.n if isinstance(space, spaces.Discrete) else space.nvec
        return [
            Leaf(
                path=path,
                kind="discrete" if isinstance(space, spaces.Discrete) else "multi_discrete",
                shape=tuple(np.shape(counts)),
                dtype=str(space.dtype),
                nvec=tuple(np.ravel(counts).tolist()),
                starts=tuple(np.ravel(space.start).tolist()),
            )
        ]
    raise UsageError(
        f"{owner} observes {named(space)}{_at(path)}; supported are Box, Discrete, MultiDiscrete and MultiBinary, "
        "and Dict and Tuple of them, of the same size at every step: wrap the environment so that it shows those."
    )


def named(space: gymnasium.Space[Any]) -> str:
    """Return a space as Gymnasium writes it, on one line."""
    return " ".join(str(space).split())


def _at(path: Sequence[str | int]) -> str:
    return f" at {place(path)}" if path else ""


def place(path: Sequence[str | int]) -> str:
    """Return where a path leads as a reader of JSON writes it: position[1]."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).removeprefix(".")


def width(leaf: Leaf) -> int:
    """Return how many numbers of a row a leaf takes."""
    return sum(leaf.nvec) if leaf.nvec else int(np.prod(leaf.shape))


# Observations as the environment gives them


def flatten(leaves: Leaves, observation: Any) -> Array:
    """Return one observation as a row dtype[D]. Raises FlywheelError when it is not of the space."""
    return flatten_each(leaves, [observation])[0] if leaves else np.asarray(observation)


def flatten_each(leaves: Leaves, observations: Sequence[Any]) -> Array:
    """Return N observations as rows dtype[N, D]. Raises FlywheelError when one is not of the space."""
    if not leaves:
        return np.stack(observations)
    return join(leaves, [_read(leaf, lambda get: [get(o) for o in observations]) for leaf in leaves])


def flatten_batch(leaves: Leaves, observations: Any) -> Array:
    """Return rows dtype[N, D] of what a vector environment shows: arrays [N, …] in the space's own nesting."""
    return join(leaves, [_read(leaf, lambda get: get(observations)) for leaf in leaves]) if leaves else observations


def _read(leaf: Leaf, values: Callable[[Get], Any]) -> Array:
    try:
        column = np.asarray(values(chain([operator.itemgetter(key) for key in leaf.path])), dtype=leaf.dtype)
    except (LookupError, TypeError, ValueError) as error:
        raise FlywheelError(
            f"The environment's observation{_at(leaf.path)} does not fit its space: {error}."
        ) from error
    if column.shape[1:] != leaf.shape:
        raise FlywheelError(
            f"The environment's observation{_at(leaf.path)} has the shape {list(column.shape[1:])}, and its space "
            f"{list(leaf.shape)}."
        )
    return column


def join(leaves: Leaves, columns: Sequence[Array]) -> Array:
    """Return rows dtype[N, D] of one column [N, *shape] for each leaf.

    Raises FlywheelError for a value outside of a leaf's range, which no one-hot vector stands for.
    """
    parts = [
        _hot(leaf, column) if leaf.nvec else column.reshape(len(column), width(leaf))
        for leaf, column in zip(leaves, columns, strict=True)
    ]
    return np.concatenate(parts, axis=1)


def _hot(leaf: Leaf, column: Array) -> Array:
    values = column.reshape(len(column), len(leaf.nvec)).astype(np.int64) - np.array(leaf.starts)
    wrong = (values < 0) | (values >= np.array(leaf.nvec))
    if wrong.any():
        i, j = np.argwhere(wrong)[0]
        raise FlywheelError(
            f"The environment's observation{_at(leaf.path)} is {int(values[i, j]) + leaf.starts[j]}; its space has "
            f"{leaf.nvec[j]} values from {leaf.starts[j]} on."
        )
    hot = np.zeros((len(column), width(leaf)), leaf.dtype)
    offsets = np.concatenate([[0], np.cumsum(leaf.nvec)[:-1]]).astype(np.int64)
    hot[np.arange(len(column))[:, None], values + offsets] = 1
    return hot


def chain(steps: Sequence[Get]) -> Get:
    """Return the function that goes one step after another into a nested value."""

    def get(value: Any) -> Any:
        for step in steps:
            value = step(value)
        return value

    return get


# Spaces as the trainer sees them


def seen_spaces(spec: Spec) -> tuple[gymnasium.spaces.Box, gymnasium.Space[Any]]:
    """Return the spaces of flat observations float32[D] and of raw actions, both without nesting or starts."""
    from gymnasium.spaces import Box, Discrete, MultiDiscrete

    def box(low: Sequence[float], high: Sequence[float]) -> Box:
        with np.errstate(over="ignore"):
            return Box(np.array(low).astype(np.float32), np.array(high).astype(np.float32), dtype=np.float32)

    observation = box(spec.observation_low, spec.observation_high)
    if spec.action_kind == "discrete":
        return observation, Discrete(spec.num_actions)
    if spec.action_kind == "multi_discrete":
        return observation, MultiDiscrete(list(spec.action_nvec))
    return observation, box(spec.action_low, spec.action_high)
