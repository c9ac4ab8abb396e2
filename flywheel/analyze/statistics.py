"""What an episode is like, as one vector of numbers that mean the same for every episode of a task.

Levels and spreads of what was seen and of its one-step changes; and what is left of those changes when a linear
one-step model of the *nominal* simulator has said what it can: how large that is, whether it lasts (wind lasts longer
than sensor noise) and what in state and action it goes along with (a longer pole falls more slowly where it leans).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from flywheel.policy import to_env
from flywheel.records import Episode, Spec

SHORTEST = 4
"""Steps of the shortest episode that has statistics."""
LAGS = (1, 4, 16)
"""Steps over which it is asked whether what is left lasts."""
BLOCK = 16
"""Steps of the blocks over which what is left is averaged: what lasts stays, noise shrinks."""
MOST_PAIRS = 200
"""Most pairs of a change and what it goes along with; with more numbers than that, only actions are asked."""
RIDGE = 1e-3
"""Penalty of an episode's own one-step model, as a share of a standardized number's variance."""
LEAST = 0.03
"""Share of a change's deviation: what is left counts linearly up to at least this, beyond it logarithmically."""

Floats = NDArray[np.float64]


def usable(episodes: Sequence[Episode]) -> list[Episode]:
    """Return the whole episodes that are long enough and hold finite observations only."""
    return [
        e
        for e in episodes
        if e.end != "lost"
        and len(e.observations) == e.num_steps + 1 > SHORTEST
        and bool(np.isfinite(np.asarray(e.observations, dtype=np.float64)).all())
    ]


class Statistics:
    """The vector's definition, learnt from episodes of the nominal simulator with the policy in question."""

    def __init__(self, spec: Spec, nominal: Sequence[Episode], *, rewarded: bool) -> None:
        """Fit the one-step model to `nominal`; `rewarded` adds the return, where production's rewards are known."""
        self._spec, self._rewarded = spec, rewarded
        tracks = [self._track(e) for e in nominal]
        seen, done = np.concatenate([t[0][:-1] for t in tracks]), np.concatenate([t[1] for t in tracks])
        changes = np.concatenate([np.diff(t[0], axis=0) for t in tracks])
        self._middle, self._spread = seen.mean(axis=0), _positive(seen.std(axis=0))
        self._unit = _positive(changes.std(axis=0))  # deviation of a one-step change
        terms = self._terms(seen, done)
        ridge = 1e-6 * len(terms) * np.eye(terms.shape[1])
        self._model = np.linalg.solve(terms.T @ terms + ridge, terms.T @ (changes / self._unit))
        self._left = np.maximum((changes / self._unit - terms @ self._model).std(axis=0), LEAST)

    def of(self, episodes: Sequence[Episode]) -> Floats:
        """Return float64[N, F], each number in a unit of its own."""
        return np.stack([self._one(e) for e in episodes])

    def _track(self, episode: Episode) -> tuple[Floats, Floats]:
        """Return observations float64[T + 1, D] and what was done float64[T, A]."""
        seen = np.asarray(episode.observations, dtype=np.float64).reshape(episode.num_steps + 1, -1)
        if self._spec.action_kind == "discrete":
            return seen, np.eye(self._spec.num_actions)[np.asarray(episode.raw_actions, dtype=np.int64)][:, 1:]
        done = np.asarray(to_env(self._spec, episode.raw_actions), dtype=np.float64)
        return seen, done.reshape(episode.num_steps, -1)

    def _terms(self, seen: Floats, done: Floats) -> Floats:
        """Return what a one-step change may depend on: a constant, state, action and, in small tasks, products."""
        state = np.clip((seen - self._middle) / self._spread, -10.0, 10.0)
        parts = [np.ones((len(seen), 1)), state, done]
        if state.shape[1] * done.shape[1] <= MOST_PAIRS:
            parts.append((state[:, :, None] * done[:, None, :]).reshape(len(seen), -1))
        return np.concatenate(parts, axis=1)

    def _one(self, episode: Episode) -> Floats:
        seen, done = self._track(episode)
        changes = np.diff(seen, axis=0) / self._unit
        beyond = changes - self._terms(seen[:-1], done) @ self._model
        left = np.arcsinh(beyond / self._left)
        state = np.clip((seen - self._middle) / self._spread, -100.0, 100.0)
        whole = len(left) // BLOCK * BLOCK
        blocks = left[:whole].reshape(-1, BLOCK, left.shape[1]).mean(axis=1) if whole else left.mean(axis=0)[None]
        lasting = [(left[lag:] * left[:-lag]).mean(axis=0) if len(left) > lag else 0 * left[0] for lag in LAGS]
        along = np.concatenate([state[:-1], done], axis=1) if left.shape[1] ** 2 <= MOST_PAIRS else done
        along = np.concatenate([np.ones((len(along), 1)), along], axis=1)
        ridge = RIDGE * len(along) * np.eye(along.shape[1])
        slopes = np.linalg.solve(along.T @ along + ridge, along.T @ beyond)
        rest = beyond - along @ slopes
        return np.concatenate(
            [
                [np.log(len(left)), episode.end == "terminated"],
                [episode.total] if self._rewarded else [],
                state.mean(axis=0),
                np.log(state.std(axis=0) + 1e-3),
                changes.mean(axis=0),
                np.log(changes.std(axis=0) + 1e-3),
                done.mean(axis=0),
                left.mean(axis=0),
                np.abs(left.mean(axis=0)),
                np.sqrt((left**2).mean(axis=0)),
                np.median(np.abs(left), axis=0),
                np.sqrt((blocks**2).mean(axis=0)),
                *lasting,
                np.sqrt((np.arcsinh(rest / self._left) ** 2).mean(axis=0)),
                slopes.ravel(),
            ]
        ).astype(np.float64)


class Scale:
    """A common unit for all statistics: the width that each one has in some episodes."""

    def __init__(self, *some: Floats, least: Floats | float = 0.0) -> None:
        """Take the largest width (half of what holds two thirds) in some float64[N, F], and the first one's middle."""
        widths = np.stack([np.maximum(width(numbers), least) for numbers in some])
        self._width = _positive(widths.max(axis=0))
        self._middle = np.median(some[0], axis=0)

    def __call__(self, statistics: Floats) -> Floats:
        """Return float64[N, F]; far values are drawn in (asinh), so that no accident outweighs all the rest."""
        return np.asarray(np.arcsinh((statistics - self._middle) / self._width))


def _positive(scale: Floats) -> Floats:
    """Return scales with 1 where a number never moves."""
    return np.where(scale > 1e-12, scale, 1.0)


def width(numbers: Floats) -> Floats:
    """Return the deviation of each column by its quartiles, or all of it where most rows are equal."""
    low, high = np.quantile(numbers, (0.16, 0.84), axis=0)
    spread = numbers.std(axis=0)
    return np.asarray(np.where(high - low > 1e-9 * spread, (high - low) / 2, spread), dtype=np.float64)
