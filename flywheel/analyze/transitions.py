"""All transitions of some episodes as arrays, and a quadratic model of one step that is fitted to them.

The model needs no simulator: it is what production shows of its own world, hidden states and sensor noise included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flywheel.policy import to_env
from flywheel.records import Episode, Spec

MOST = 250_000
"""Transitions that are read in all: each episode's first ones, equally many at most."""
FLOOR = 0.01
"""What is left of a step's change counts from this share of the change's deviation on: less is a model's own error."""
MOST_SQUARES = 6
"""Numbers of an observation up to which the model has their products, too."""
MOST_PAIRS = 24
"""Products of action and state up to which the model has them."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Transitions:
    """M transitions of N episodes, in order."""

    seen: Floats
    """float64[M, D]: what was observed before the step, in deviations from the middle of all"""
    changes: Floats
    """float64[M, D]: how it changed, in deviations of that change"""
    acts: Floats
    """float64[M, A]: a column for each discrete action, or 1 and the action's numbers"""
    rewards: Floats
    """float64[M]; NaN where not known, or where the step ended its episode"""
    episode: NDArray[np.intp]
    """int[M]: place of the episode"""
    t: NDArray[np.intp]
    """int[M]: step in it"""
    num_episodes: int
    spread: Floats
    """float64[D]: the deviation that `seen` is in"""
    unit: Floats
    """float64[D]: the deviation that `changes` are in"""

    def count_by_episode(self, where: NDArray[np.bool_] | None = None) -> Floats:
        """Return float64[N]: each episode's number of transitions, of those `where` only if given."""
        weights = None if where is None else where.astype(np.float64)
        return np.bincount(self.episode, weights, self.num_episodes).astype(np.float64)

    def mean_by_episode(self, values: Floats, where: NDArray[np.bool_] | None = None) -> Floats:
        """Return float64[N]: the mean of values[M] over each episode's transitions, 0 where it has none."""
        used = values if where is None else np.where(where, values, 0.0)
        total = np.bincount(self.episode, used, self.num_episodes)
        return np.asarray(total / np.maximum(self.count_by_episode(where), 1.0))

    def mean_by_episode_of(self, columns: Floats) -> Floats:
        """Return float64[N, F]: `mean_by_episode` of each column."""
        return np.stack([self.mean_by_episode(column) for column in columns.T], axis=1)

    def swing(self, left: Floats) -> Floats:
        """Return float64[N, D]: the mean product of what is left of a step and of the one before it."""
        beside = np.zeros_like(left)
        beside[1:] = left[1:] * left[:-1] * (self.episode[1:] == self.episode[:-1])[:, None]
        return self.mean_by_episode_of(beside)

    def base(self) -> Floats:
        """Return float64[M, P]: action, state and, where they are few, their products."""
        acted = self.acts[:, 1:] - self.acts[:, 1:].mean(axis=0)
        if acted.shape[1] * self.seen.shape[1] > MOST_PAIRS:
            return np.concatenate([self.acts, self.seen], axis=1)
        products = (acted[:, :, None] * self.seen[:, None, :]).reshape(len(self.seen), -1)
        return np.concatenate([self.acts, self.seen, products], axis=1)

    def scores(self, left: Floats, weights: Floats) -> Floats:
        """Return float64[N, D, P]: how what is left (float64[M, D]) goes along with each term, in deviations."""
        base = self.base()
        base /= np.sqrt((np.square(base) * weights[:, None]).mean(axis=0)) + 1e-12
        total = np.maximum(np.bincount(self.episode, weights, self.num_episodes), 1e-9)
        found = np.zeros((self.num_episodes, left.shape[1], base.shape[1]))
        for d, column in enumerate(left.T):
            each = base * (weights * column)[:, None]
            sums = np.zeros((self.num_episodes, base.shape[1]))
            starts = np.flatnonzero(np.diff(self.episode, prepend=-1))
            sums[self.episode[starts]] = np.add.reduceat(each, starts, axis=0)
            found[:, d] = sums / np.sqrt(total)[:, None]
        return found


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Model:
    """Predicts a step's change from action and state, by least squares."""

    slopes: Floats
    """float64[P, D]"""
    deviation: Floats
    """float64[D]: of what is left, in deviations of the change"""

    def left(self, known: Transitions, seen: Floats | None = None) -> Floats:
        """Return float64[M, D]: what is left of the changes, in deviations; of other states where they are given."""
        return np.asarray((known.changes - terms(known, seen) @ self.slopes) / self.deviation)

    def weighed(self, known: Transitions) -> Floats:
        """Return float64[M, D]: what is left, less of it the further a state is from what its episode mostly sees."""
        weights = self.weights(known)
        usual = known.mean_by_episode(weights)[known.episode]
        return np.asarray(self.left(known) * np.sqrt(weights / usual)[:, None])

    def weights(self, known: Transitions) -> Floats:
        """Return float64[M]: what each transition counts; less, the further it is from what is usual.

        A smooth model of a smooth world errs the more, the further a state is from what it has seen: states that are
        visited less often must not look like another world.
        """
        far = np.square(known.seen).mean(axis=1)
        return np.asarray(np.maximum(far, 1.0) ** -1.5)


def read(episodes: Sequence[Episode], spec: Spec, dims: NDArray[np.intp], stride: int = 1) -> Transitions | None:
    """Return the finite transitions of these episodes, each over `stride` steps; None where there is none."""
    most = max(50, MOST // max(1, len(episodes)))
    parts = [_one(e, spec, dims, most, stride) for e in episodes]
    if not any(len(p[0]) for p in parts):
        return None
    seen, changes, acts, rewards, t = (np.concatenate([p[i] for p in parts]) for i in range(5))
    episode = np.repeat(np.arange(len(parts)), [len(p[0]) for p in parts])
    middle, spread, unit = seen.mean(axis=0), _positive(seen.std(axis=0)), _positive(changes.std(axis=0))
    if spec.action_kind != "discrete":
        acts = np.concatenate([np.ones((len(acts), 1)), (acts - acts.mean(axis=0)) / _positive(acts.std(axis=0))], 1)
    return Transitions(
        seen=np.clip((seen - middle) / spread, -10.0, 10.0),
        changes=changes / unit,
        acts=acts[:, acts.any(axis=0)],
        rewards=rewards,
        episode=episode,
        t=t.astype(np.intp),
        num_episodes=len(episodes),
        spread=spread,
        unit=unit,
    )


def fit(known: Transitions, where: NDArray[np.bool_] | Floats | None = None) -> Model:
    """Return the model of these transitions, of those `where` only if given; numbers say how much each counts."""
    every, weights = terms(known), np.ones(len(known.seen)) if where is None else where.astype(np.float64)
    weighted = every * weights[:, None]
    moment = weighted.T @ every
    scale = np.sqrt(np.diag(moment)) + 1e-12
    ridge = 1e-6 * np.eye(len(moment))
    slopes = np.linalg.solve(moment / np.outer(scale, scale) + ridge, (weighted.T @ known.changes) / scale[:, None])
    slopes = slopes / scale[:, None]
    left = np.square(known.changes - every @ slopes)
    deviation = np.sqrt((left * weights[:, None]).sum(axis=0) / max(weights.sum(), 1.0) + FLOOR**2)
    return Model(slopes=slopes, deviation=deviation)


def terms(known: Transitions, seen: Floats | None = None) -> Floats:
    """Return float64[M, P]: what a step's change may depend on, at other states where they are given."""
    here = known if seen is None else _at(known, seen)
    parts = [here.base()]
    if here.seen.shape[1] <= MOST_SQUARES:
        upper = np.triu_indices(here.seen.shape[1])
        parts.append(here.seen[:, upper[0]] * here.seen[:, upper[1]])
    return np.concatenate(parts, axis=1)


def _at(known: Transitions, seen: Floats) -> Transitions:
    return Transitions(
        seen=seen,
        changes=known.changes,
        acts=known.acts,
        rewards=known.rewards,
        episode=known.episode,
        t=known.t,
        num_episodes=known.num_episodes,
        spread=known.spread,
        unit=known.unit,
    )


def _one(
    episode: Episode, spec: Spec, dims: NDArray[np.intp], most: int, stride: int
) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """Return an episode's first transitions: mean observations, changes, mean actions, rewards, steps."""
    width = int(np.prod(spec.observation_shape))
    seen = np.asarray(episode.observations[: most + 1], dtype=np.float64).reshape(-1, width)[:, dims]
    num = min(most, episode.num_steps, len(seen) - 1) // stride  # of a lost episode the last one was never seen
    raw = episode.raw_actions[: num * stride]
    if spec.action_kind == "discrete":
        acts = np.eye(spec.num_actions)[np.asarray(raw, dtype=np.int64)]
    else:
        acts = np.asarray(to_env(spec, raw), dtype=np.float64).reshape(len(raw), -1)
    acts = acts.reshape(num, stride, acts.shape[1]).mean(axis=1)
    rewards = np.array(episode.rewards[: num * stride : stride], dtype=np.float64)
    if num * stride == episode.num_steps and episode.end == "terminated" and num:
        rewards[-1] = np.nan  # the end itself may be rewarded
    changes = np.diff(seen[: num * stride + 1 : stride], axis=0)
    seen = seen[: num * stride].reshape(num, stride, len(dims)).mean(axis=1)
    whole = np.isfinite(changes).all(axis=1) & np.isfinite(acts).all(axis=1)
    t = stride * np.flatnonzero(whole).astype(np.float64)
    return seen[whole], changes[whole], acts[whole], rewards[whole], t


def _positive(scale: Floats) -> Floats:
    """Return scales with 1 where a number never moves."""
    return np.where(scale > 1e-12, scale, 1.0)
