"""Records of episodes that are run again: what proves a replay, where two courses part, what a fork became.

They cross rooms as those of `records` do, and are frozen and plain as they are.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from flywheel.records import Episode, Parameters

DifferenceKind = Literal["action", "observation", "reward", "value", "end"]
NOMINAL, STRESS, CELLS, SEARCH, INTERVAL = "nominal", "stress", "cells", "search", "interval"
"""Scenarios of the gate's own worlds: they begin as the task does, at the parameters that were asked for; between
those and the ends of their ranges, where the policy in service is still at home; few that together hold every two
levels of every two parameters; the worst that a search for failures found; in the ranges that calibration leaves
open."""
SUITE = "suite:"
"""What the scenario of a trial begins with where a Scenario of the gate's suite was played, not an edge case."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The first step where two courses part."""

    step: int
    """t of the action or reward, of the observation (observation t + 1 follows action t), or T where one ended."""
    kind: DifferenceKind
    one: Any
    """What the first had there, as plain values."""
    other: Any
    note: str
    """The same in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A situation that every later candidate must master: somebody saved a fork, or an episode failed in production.

    The world begins in `state`, or by `seed`; `actions` are then stepped at the parameters `before`, and from there on
    the candidate acts at `parameters`.
    """

    name: str
    parameters: Parameters
    fork: tuple[str, int]
    """The episode and the step that it was forked from, or made of."""
    saved_at: float
    state: tuple[float, ...] | None = None
    """Start state for the task's `set_state`."""
    seed: int = 0
    """The world's seed, where there is no state."""
    actions: tuple[Any, ...] = ()
    """Raw actions (numbers, or lists of them) that lead there from the seed."""
    before: Parameters | None = None
    """Parameters while those are stepped; None: the same."""
    edits: tuple[str, ...] = ()
    """What the fork changed, in words."""
    origin: Literal["fork", "production"] = "fork"
    """A person saved it, or it was made of an episode that failed in production."""
    survived: bool = True
    """Whether it is known that it can be mastered; a person vouches for what they save."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a scenario stands with the last verdicts; what is closed stays in the suite, but isn't trained on."""

    is_open: bool = True
    last: Literal["", "mastered", "not mastered"] = ""
    """By the last candidate that was tried in it; "" if none was."""
    judged_at: float | None = None


def chain(episode: Episode) -> str:
    """Return the sha256 of everything that an episode's world and policy did: each observation, action and reward.

    Two runs have the same one exactly when they are equal to the last bit.
    """
    found = hashlib.sha256(episode.end.encode())
    for array in (episode.observations, episode.raw_actions, episode.rewards):
        found.update(f"{array.dtype.str}{array.shape}".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def short(id_: str) -> str:
    """Return an episode's id as people are shown it: enough of a long one to find it by."""
    return id_ if len(id_) <= 20 else id_[:12]
