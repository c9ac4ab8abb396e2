"""What a transition would be rewarded elsewhere: the median over the most similar ones of other episodes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from flywheel.analyze.transitions import Transitions

ASKED = 24
"""Transitions of each episode that are asked about, spread evenly over it."""
KNOWN = 6000
"""Transitions that answers are looked for among, spread evenly over all."""
NEIGHBOURS = 8
"""Similar transitions of other episodes that answer."""
LONELY = 0.9
"""Quantile of the distance to them beyond which a transition is like no other, and isn't asked about."""

Floats = NDArray[np.float64]


def expected_rewards(known: Transitions, among: NDArray[np.bool_] | None = None) -> Floats:
    """Return float64[M]: the reward that transitions like it have, NaN where it isn't asked or like no other.

    Answers come from all other episodes, or from those `among` bool[N] only.

    A reward is a function of state, action and next state: however the policy or the world moves the states, like
    transitions are rewarded alike, until the reward itself changes.
    """
    found = np.full(len(known.rewards), np.nan)
    settled = np.isfinite(known.rewards)
    if not settled.any():
        return found
    asked = np.flatnonzero(settled & _spread_over(known))
    pool = np.flatnonzero(settled if among is None else settled & among[known.episode])
    if not len(pool):
        return found
    if np.ptp(known.rewards[pool]) == 0.0:
        found[asked] = known.rewards[pool[0]]
        return found
    pool = pool[:: max(1, len(pool) // KNOWN)]
    place = np.concatenate([known.seen, 0.5 * known.changes, known.acts], axis=1)
    distance, near = cKDTree(place[pool]).query(place[asked], k=min(len(pool), 3 * NEIGHBOURS))
    near = pool[near.reshape(len(asked), -1)]
    others = known.episode[near] != known.episode[asked][:, None]
    others &= np.cumsum(others, axis=1) <= NEIGHBOURS
    answers = np.where(others, known.rewards[near], np.nan)
    some = others.any(axis=1)
    far = np.where(others, distance.reshape(len(asked), -1), 0.0).max(axis=1)
    some &= far <= np.quantile(far, LONELY)
    found[asked[some]] = np.nanmedian(answers[some], axis=1)
    return found


def _spread_over(known: Transitions) -> NDArray[np.bool_]:
    """Return bool[M]: up to ASKED transitions of each episode."""
    count = known.count_by_episode()[known.episode]
    every = np.maximum(1, np.ceil(count / ASKED)).astype(np.intp)
    starts = np.flatnonzero(np.diff(known.episode, prepend=-1))
    place = np.arange(len(known.episode)) - np.repeat(starts, np.diff(np.append(starts, len(known.episode))))
    return np.asarray(place % every == 0)
