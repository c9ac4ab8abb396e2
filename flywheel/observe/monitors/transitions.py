"""A linear model of one step of the world, and how badly an episode fits it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from flywheel.observe.monitors.conformal import MAX_DRIFTS
from flywheel.records import Array, Episode

MAX_TRANSITIONS = 4096
"""Transitions of one episode that are read, its first ones: bounds time and memory for endless episodes."""
MAX_NUMBERS = 256
"""Numbers of an observation that are read, evenly spread where it has more: a model of D numbers costs D² a step."""
MEMORY = 8
"""Steps back that a prediction reads: what noisy sensors hide of the present state, and how the wind blows."""
MAX_FEATURES = 64
"""Numbers that a prediction reads at most; where one step has many, it reads fewer steps back."""
FLOOR = 1e-3
"""Residuals below this share of an observation's typical one-step change are no change of the world."""
ECHO = 0.3
"""Residuals that resemble the ones before them more than this (correlation) are the model's errors, not noise."""
Numbers = NDArray[np.float64]


class TransitionModel:
    """Predicts the change of the observation from (1, observation, action) of the last steps; fitted by least squares.

    The features of the last step are whitened by their second moment in the baseline, so that a transition's squared
    length, divided by its size, says how unusual its state is: 1 on average. A transition counts 1 / unusualness^1.5
    where that is above 1: a linear model of a smooth world errs by the square of the distance from what it has seen,
    and states that are merely visited less often must not look like another world.
    """

    def __init__(self, episodes: Sequence[Episode]) -> None:
        """Fit to the transitions of these episodes (at least one transition)."""
        self._actions = _num_values([_actions(e) for e in episodes]) if _is_discrete(episodes[0]) else ()
        parts = [_transitions(episode) for episode in episodes]
        steps = np.concatenate([self._step(observations, actions) for observations, _, actions in parts])
        self._memory = int(np.clip(MAX_FEATURES // steps.shape[1], 1, MEMORY))
        self._whiten = _whitening(steps.T @ steps / len(steps))
        self._size = np.sqrt((steps**2).mean(axis=0)) + 1e-12
        self._slope = self._fit(parts)
        changes = np.concatenate([changes for _, changes, _ in parts])
        residuals = [c - self._lagged(o, a) @ self._slope for o, c, a in parts]
        squares = (np.concatenate(residuals) ** 2).mean(axis=0)
        echoes = sum((r[1:] * r[:-1]).sum(axis=0) for r in residuals) / len(changes)
        eps = np.finfo(episodes[0].observations.dtype).eps if episodes[0].observations.dtype.kind == "f" else 0.0
        largest = np.abs(np.concatenate([o for o, _, _ in parts])).max(axis=0)
        floor = np.maximum(FLOOR * changes.std(axis=0), 8.0 * eps * largest) + 1e-12
        self._deviation = np.sqrt(squares + floor**2)
        self._is_noise = (squares > floor**2) & (np.abs(echoes) < ECHO * squares)

    def score(self, episode: Episode) -> Numbers:
        """Return float64[2 + K]: (map, noise), each near or below 1 where the world is the baseline's, and signed ones.

        `map` is the energy of the residuals' correlation with the last step's features, over what independent noise
        would give: it sees another response to states and actions. `noise` is the mean squared residual. The signed
        numbers are near 0: the logarithm of each observation's own noise, then each of those correlations, as many as
        `MAX_DRIFTS` allows. Observations have none whose residuals are no noise: a model's errors move with the states
        that are visited.
        """
        observations, changes, actions = _transitions(episode)
        num_signed = min(MAX_DRIFTS, int(self._is_noise.sum()) * (1 + self._size.size))
        known = self._known(actions)
        if not known.any():
            return np.zeros(2 + num_signed)
        steps = self._step(observations, actions)[known]
        residuals = (changes - self._lagged(observations, actions) @ self._slope)[known] / self._deviation
        whitened = steps @ self._whiten
        weights = np.maximum((whitened**2).mean(axis=1), 1.0) ** -1.5
        weighted, total = weights[:, None] * residuals, weights.sum()
        squares = (weighted * residuals).sum(axis=0) / total
        energy = ((weighted.T @ whitened) ** 2).sum() / total / (squares.size * whitened.shape[1])
        loud = np.sqrt(total / 2.0) * np.log(squares[self._is_noise] + 1e-9)
        moved = (steps / self._size).T @ weighted[:, self._is_noise] / np.sqrt(total)
        return np.concatenate([[energy, squares.mean()], loud, moved.ravel()])[: 2 + num_signed]

    def _fit(self, parts: Sequence[tuple[Numbers, Numbers, Array]]) -> Numbers:
        """Return the slope float64[F, D] of changes on the last steps' features."""
        width, num = self._memory * self._size.size, 0
        moment, cross = np.zeros((width, width)), np.zeros((width, parts[0][1].shape[1]))
        for observations, changes, actions in parts:
            lagged = self._lagged(observations, actions)
            moment, cross, num = moment + lagged.T @ lagged, cross + lagged.T @ changes, num + len(changes)
        whiten = _whitening(moment / num)
        return np.asarray(whiten @ (whiten.T @ (cross / num)))

    def _step(self, observations: Numbers, actions: Array) -> Numbers:
        """Return the features of each step by itself, float64[T, F]: the action, then the observation."""
        acted = np.column_stack([np.ones(len(actions)), actions])
        if self._actions:  # one column for each value of each sub-action
            acted = np.column_stack([actions[:, [k]] == np.arange(n) for k, n in enumerate(self._actions)])
        return np.column_stack([acted, observations])

    def _lagged(self, observations: Numbers, actions: Array) -> Numbers:
        """Return the features of each step and those before it; before the first one nothing was done or moved."""
        steps = self._step(observations, actions)
        if not len(steps):
            return np.zeros((0, self._memory * steps.shape[1]))
        before = steps[0].copy()
        before[: steps.shape[1] - observations.shape[1]] = 0.0
        padded = np.concatenate([np.tile(before, (self._memory - 1, 1)), steps])
        return np.concatenate([padded[self._memory - 1 - k :][: len(steps)] for k in range(self._memory)], axis=1)

    def _known(self, actions: Array) -> NDArray[np.bool_]:
        """Say of each transition whether the baseline took its actions: what another one does is not known."""
        known = np.ones(len(actions), np.bool_)
        if self._actions:
            taken = np.asarray((actions < np.array(self._actions)).all(axis=1))
            for k in range(min(self._memory, len(actions))):
                known[k:] &= taken[: len(taken) - k]
        return known


def _whitening(moment: Numbers) -> Numbers:
    """Return W float64[F, R] by which features of this second moment become uncorrelated, of mean square 1."""
    scale = np.sqrt(np.diag(moment)) + 1e-12
    values, vectors = np.linalg.eigh(moment / np.outer(scale, scale))
    real = values > 1e-9  # a sensor that never moves, or repeats another one, adds no direction
    return np.asarray((vectors[:, real] / np.sqrt(values[real])) / scale[:, None])


def _is_discrete(episode: Episode) -> bool:
    return episode.raw_actions.dtype.kind in "iu"


def _actions(episode: Episode) -> Array:
    """Return the raw actions [T, A] of the transitions that are read."""
    actions = episode.raw_actions[:MAX_TRANSITIONS]
    return actions.reshape(len(actions), -1)


def _num_values(actions: Sequence[Array]) -> tuple[int, ...]:
    return tuple(
        1 + max(int(column.max()) for a in actions if len(a) for column in [a[:, k]])
        for k in range(actions[0].shape[1])
    )


def _transitions(episode: Episode) -> tuple[Numbers, Numbers, Array]:
    rows = rows_of(episode)
    return rows[:-1], np.diff(rows, axis=0), _actions(episode)


def rows_of(episode: Episode) -> Numbers:
    """Return the observations that are read, float64[T + 1, D]: `MAX_TRANSITIONS` and `MAX_NUMBERS` at most."""
    rows = episode.observations[: MAX_TRANSITIONS + 1]
    rows = rows.reshape(len(rows), -1)
    if rows.shape[1] > MAX_NUMBERS:
        rows = rows[:, np.linspace(0, rows.shape[1] - 1, MAX_NUMBERS).astype(np.int64)]
    return rows.astype(np.float64)
