"""A linear model of one step of the world, and how badly an episode fits it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from flywheel.records import Array, Episode

MAX_TRANSITIONS = 4096
"""Transitions of one episode that are read, its first ones: bounds time and memory for endless episodes."""
FLOOR = 1e-3
"""Residuals below this share of an observation's typical one-step change are no change of the world."""


class TransitionModel:
    """Predicts the change of the observation from (1, observation, action); fitted once, by least squares.

    Features are whitened by their second moment in the baseline, so that a transition's squared length, divided by
    its size, says how unusual its state is: 1 on average. A transition counts 1 / unusualness^1.5 where that is above
    1: a linear model of a smooth world errs by the square of the distance from what it has seen, and states that are
    merely visited less often must not look like another world.
    """

    def __init__(self, episodes: Sequence[Episode]) -> None:
        """Fit to the transitions of these episodes (at least one transition)."""
        self._actions = _num_values([_actions(e) for e in episodes]) if _is_discrete(episodes[0]) else ()
        parts = [_transitions(episode) for episode in episodes]
        observations, changes = np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
        features = self._features(observations, np.concatenate([p[2] for p in parts]))
        moment = features.T @ features / len(features)
        scale = np.sqrt(np.diag(moment)) + 1e-12
        values, vectors = np.linalg.eigh(moment / np.outer(scale, scale))
        real = values > 1e-9  # a sensor that never moves, or repeats another one, adds no direction
        self._whiten = (vectors[:, real] / np.sqrt(values[real])) / scale[:, None]
        whitened = features @ self._whiten
        self._slope = whitened.T @ changes / len(whitened)
        residuals = changes - whitened @ self._slope
        eps = np.finfo(episodes[0].observations.dtype).eps if episodes[0].observations.dtype.kind == "f" else 0.0
        floor = np.maximum(FLOOR * changes.std(axis=0), 8.0 * eps * np.abs(observations).max(axis=0)) + 1e-12
        self._deviation = np.sqrt((residuals**2).mean(axis=0) + floor**2)

    def score(self, episode: Episode) -> NDArray[np.float64]:
        """Return float64[2]: (map, noise), each near or below 1 where the world is the baseline's.

        `map` is the energy of the residuals' correlation with the features, over what independent noise would give:
        it sees another response to states and actions. `noise` is the mean squared residual.
        """
        observations, changes, actions = _transitions(episode)
        if self._actions:  # what an action does that the baseline never took is not known
            known = (actions < np.array(self._actions)).all(axis=1)
            observations, changes, actions = observations[known], changes[known], actions[known]
        if not len(changes):
            return np.zeros(2)
        whitened = self._features(observations, actions) @ self._whiten
        residuals = (changes - whitened @ self._slope) / self._deviation
        unusual = (whitened**2).mean(axis=1)
        weights = np.maximum(unusual, 1.0) ** -1.5
        weighted = weights[:, None] * residuals
        total = weights.sum()
        noise = (weighted * residuals).mean(axis=1).sum() / total
        size = self._deviation.size * self._whiten.shape[1]
        return np.array([((weighted.T @ whitened) ** 2).sum() / total / size, noise])

    def _features(self, observations: NDArray[np.float64], actions: Array) -> NDArray[np.float64]:
        acted = np.column_stack([np.ones(len(actions)), actions])
        if self._actions:  # one column for each value of each sub-action
            acted = np.column_stack([actions[:, [k]] == np.arange(n) for k, n in enumerate(self._actions)])
        return np.column_stack([acted, observations])


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


def _transitions(episode: Episode) -> tuple[NDArray[np.float64], NDArray[np.float64], Array]:
    rows = episode.observations[: MAX_TRANSITIONS + 1].astype(np.float64)
    rows = rows.reshape(len(rows), -1)
    return rows[:-1], np.diff(rows, axis=0), _actions(episode)
