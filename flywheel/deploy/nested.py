"""Observations over the wire: the type that a space's JSON is decoded to, and columns of what was decoded. Pure."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Any

import msgspec
import numpy as np

from flywheel.records import Array, Leaf
from flywheel.spaces import Get, Leaves, chain


def wire_type(leaves: Leaves) -> Any:
    """Return the type that msgspec decodes an observation to; strict, so that a wrong part is named by its place."""
    return _wire(leaves)[0]


def told(leaves: Leaves, observations: Sequence[Any]) -> list[Array]:
    """Return of N decoded observations one column [N, *shape] a leaf: float64 for a Box, else int64."""
    return [
        np.array([get(o) for o in observations], np.float64 if leaf.kind == "box" else np.int64).reshape(
            len(observations), *leaf.shape
        )
        for leaf, get in zip(leaves, _wire(leaves)[1], strict=True)
    ]


@lru_cache(maxsize=8)
def _wire(leaves: Leaves) -> tuple[Any, tuple[Get, ...]]:
    if not leaves:
        return list[float], ()
    kind, steps = _branch(leaves, 0, "Observation")
    return kind, tuple(chain(one) for one in steps)


def _branch(leaves: Sequence[Leaf], depth: int, name: str) -> tuple[Any, list[list[Get]]]:
    """Return the wire type, of this name, of leaves with `depth` keys in common, and the steps to each of them."""
    if len(leaves[0].path) == depth:
        return _leaf_type(leaves[0]), [[]]
    groups: dict[str | int, list[Leaf]] = {}
    for leaf in leaves:
        groups.setdefault(leaf.path[depth], []).append(leaf)
    types, found = [], []
    for index, (key, group) in enumerate(groups.items()):
        part, steps = _branch(group, depth + 1, f"{name}_{index}")
        step: Get = operator.attrgetter(f"f{index}") if isinstance(key, str) else operator.itemgetter(key)
        types.append(part)
        found += [[step, *rest] for rest in steps]
    if isinstance(next(iter(groups)), int):
        return tuple.__class_getitem__(tuple(types)), found
    names = {f"f{index}": str(key) for index, key in enumerate(groups)}
    fields = list(zip(names, types, strict=True))
    return msgspec.defstruct(name, fields, rename=names, forbid_unknown_fields=True, frozen=True), found


def _leaf_type(leaf: Leaf) -> Any:
    if leaf.kind == "multi_binary" or leaf.dtype == "bool":
        inner: Any = Annotated[int, msgspec.Meta(ge=0, le=1)]
    elif leaf.kind == "box":
        inner = float
    else:  # each number of a MultiDiscrete has its own range
        ranges = [Annotated[int, msgspec.Meta(ge=s, le=s + n - 1)] for n, s in zip(leaf.nvec, leaf.starts, strict=True)]
        return _nested(ranges, leaf.shape)
    for size in reversed(leaf.shape):
        inner = Annotated[list[inner], msgspec.Meta(min_length=size, max_length=size)]
    return inner


def _nested(types: list[Any], shape: tuple[int, ...]) -> Any:
    if not shape:
        return types[0]
    step = len(types) // shape[0]
    rows = [_nested(types[i : i + step], shape[1:]) for i in range(0, len(types), step)]
    return tuple.__class_getitem__(tuple(rows))
