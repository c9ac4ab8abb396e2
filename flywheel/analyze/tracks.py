"""Whole beginnings of episodes, step by step, and a simulator made linear along them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flywheel.analyze.space import FAR, STEP, Floats, Space
from flywheel.records import Array, Episode
from flywheel.simulate.corrected import arriving
from flywheel.simulate.transitions import Transitions
from flywheel.task import Task, spec_of

SHORTEST = 3
"""Steps of the shortest track that says something of what lasts."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tracks:
    """N episodes side by side, each as far as it goes; what comes after its end is void."""

    seen: Floats
    """float64[N, T + 1, S]: observed states, in deviations of the state; angles go on without a jump"""
    actions: Array
    """dtype[N, T, *a], as the environment got them"""
    lengths: NDArray[np.int64]
    """int64[N]: steps of each"""

    @property
    def going(self) -> NDArray[np.bool_]:
        """bool[N, T]: which steps there are."""
        return np.asarray(np.arange(self.actions.shape[1]) < self.lengths[:, None])

    def transitions(self, space: Space) -> Transitions:
        """Return all steps, as the simulator takes them."""
        going = self.going
        return Transitions(
            states=self.seen[:, :-1][going] * space.scale,
            actions=self.actions[going],
            successors=self.seen[:, 1:][going] * space.scale,
            episodes=np.repeat(np.arange(len(going)), self.lengths),
        )

    def until(self, ends: NDArray[np.bool_]) -> Tracks:
        """Return the same, each track up to its first step that `ends` it (bool over all steps)."""
        where = np.zeros_like(self.going)
        where[self.going] = ends
        lengths = np.where(where.any(axis=1), where.argmax(axis=1), self.lengths)
        kept = lengths >= SHORTEST
        return Tracks(seen=self.seen[kept], actions=self.actions[kept], lengths=lengths[kept])


def follow(task: Task, space: Space, episodes: Sequence[Episode], most: int) -> Tracks:
    """Return the first `most` steps of each episode, up to the first number that isn't finite.

    Episodes of less than SHORTEST steps are left out.
    """
    assert task.observed_state is not None
    spec = spec_of(task)
    some: list[tuple[Floats, Array]] = []
    for episode in episodes:
        length = min(most, episode.num_steps, len(episode.observations) - 1)
        states = np.array([np.ravel(task.observed_state(o)) for o in episode.observations[: length + 1]], np.float64)
        broken = ~np.isfinite(states).all(axis=1)
        length = int(broken.argmax()) - 1 if broken.any() else length
        if length >= SHORTEST:
            some.append((_unwound(task, states[: length + 1]), arriving(task, spec, episode)[:length]))
    lengths = np.array([len(done) for _, done in some], dtype=np.int64)
    longest = int(lengths.max(initial=0))
    num_states = len(space.scale)
    seen = np.zeros((len(some), longest + 1, num_states))
    actions = np.zeros((len(some), longest, *(some[0][1].shape[1:] if some else ())), some[0][1].dtype if some else int)
    for i, (states, done) in enumerate(some):
        seen[i, : len(states)], actions[i, : len(done)] = states / space.scale, done
    return Tracks(seen=seen, actions=actions, lengths=lengths)


def _unwound(task: Task, states: Floats) -> Floats:
    for number, period in enumerate(task.state_period):
        if period > 0:
            states[:, number] = np.unwrap(states[:, number], period=period)
    return states


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Linear:
    """A simulator's step near a point of each step of N tracks: value + slope (state - centre) + by (x - point).

    Worlds come last, so that arithmetic over them is contiguous.
    """

    centres: Floats
    """float64[T, S, N]"""
    value: Floats
    """float64[T, S, N]"""
    slope: Floats
    """float64[T, S, S, N]"""
    by: Floats
    """float64[T, S, P, N]"""


def linear(space: Space, tracks: Tracks, centres: Floats, x: Floats, *, told: bool = True) -> Linear:
    """Return the simulator's step at centres float64[N, T, S] and coordinates x, by central differences.

    Without `told` the derivatives by the coordinates are left out.
    """
    going = tracks.going
    at, done = centres[going], tracks.actions[going]
    num, size = at.shape
    moves = np.concatenate([np.zeros((1, size)), STEP * np.eye(size), -STEP * np.eye(size)])
    moved = (at[None] + moves[:, None]).reshape(-1, size)
    steps = _finite(space.predicted(_asked(space, moved, np.concatenate([done] * len(moves))), [x])[0])
    value, up, down = np.split(steps.reshape(-1, num, size), [1, 1 + size])
    slope = np.moveaxis((up - down) / (2 * STEP), 0, -1)
    by = np.zeros((num, size, 0))
    if told:
        eye = STEP * np.eye(len(x))
        both = _finite(space.predicted(_asked(space, at, done), [*(x + eye), *(x - eye)]))
        by = np.moveaxis((both[: len(x)] - both[len(x) :]) / (2 * STEP), 0, -1)

    def laid(some: Floats) -> Floats:
        whole = np.zeros((*going.shape, *some.shape[1:]))
        whole[going] = some
        return np.ascontiguousarray(np.moveaxis(whole, 0, -1))

    return Linear(centres=laid(at), value=laid(value[0]), slope=laid(slope), by=laid(by))


def _asked(space: Space, states: Floats, actions: Array) -> Transitions:
    whole = states * space.scale
    return Transitions(states=whole, actions=actions, successors=whole, episodes=np.zeros(len(whole), dtype=np.int64))


def _finite(steps: Floats) -> Floats:
    return np.asarray(np.nan_to_num(steps, nan=FAR, posinf=FAR, neginf=-FAR))
