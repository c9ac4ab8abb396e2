"""Explanations that show in the same numbers, told apart by what only one of them explains."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flywheel.analyze.summaries import Family, Summaries
from flywheel.analyze.transitions import Transitions, fit, terms

SURE = 3.0
"""Standard errors over the changed episodes by which an explanation must predict better."""
SWINGS = -0.3
"""Covariance of what is left of neighbouring steps, for each unit that its variance grew, below which it is a sensor's
noise: noise of one observation enters the change before it and the one after it, with opposite signs (-1/2 in all)."""
LITTLE = 0.02
"""Variance of what is left of a step, in that of the episodes before, of which nothing is said."""
ROUNDS = 3
"""Times that the answer to actions is fitted, each time with less of the episodes that it does not fit."""
PERSISTENT = 0.1
"""Share of a step's typical change by which the world must answer otherwise, still in an episode's second half, where
episodes begin elsewhere, too: a model fitted to other states errs by some of that."""
FRESH = 0.4
"""Share of what was left of steps more than before that is still left to a model of the changed episodes themselves
where a sensor's noise made it: half of it is the next observation's own, which nothing foretells. What another world
answers such a model learns."""
SHARE = 0.5
"""Share of what rewards lack, or have too much, that one factor and one offset must explain."""

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


def bias_of(known: Summaries, family: Family, moved: Mask, at: int) -> Floats:
    """Return float64[D]: by how much each first value that moved (not only its spread) is another one since `at`."""
    num = len(known.names)
    first = family.numbers[:, :num]
    shift = np.median(first[at:], axis=0) - np.median(first[:at], axis=0)
    return np.asarray(np.where(moved[:num], shift, 0.0))


def is_bias(known: Summaries, family: Family, moved: Mask, at: int) -> bool:
    """Say whether taking the shift of the first values away from all values lets the old model predict better.

    Where episodes only begin elsewhere, it predicts worse: the world is where it is seen.
    """
    some = known.transitions
    assert some is not None
    before = some.episode < at
    shift = bias_of(known, family, moved, at) / some.spread
    model = fit(some, before)
    gained = np.square(model.left(some)).sum(axis=1) - np.square(model.left(some, some.seen - shift)).sum(axis=1)
    each = some.mean_by_episode(gained)[at:]
    error = each.std() / np.sqrt(len(each)) + 1e-12
    return bool(each.mean() > SURE * error)


def is_noise(known: Summaries, at: int) -> bool:
    """Say whether what is left of steps grew as a noisier sensor has it: by what the next step takes back.

    Of what grew another answer to actions is taken away first, which may alternate as well. Half of a sensor's noise is
    nothing that a model of the changed episodes themselves could learn; another world it does.
    """
    some = known.transitions
    assert some is not None
    model, changed = fit(some, some.episode < at), some.episode >= at
    left, counts = _answered(some, model.left(some), at)
    size, swing = some.mean_by_episode_of(np.square(left)), some.swing(left)
    grown = size[at:].mean(axis=0) - size[:at].mean(axis=0)
    error = np.sqrt(size[at:].var(axis=0) / len(size[at:]) + size[:at].var(axis=0) / at)
    sure = grown > SURE * error + LITTLE
    most = int(np.argmax(np.where(sure, grown, -np.inf)))
    again = fit(some, np.where(changed, counts[some.episode], 0.0))
    learnt = some.mean_by_episode_of(np.square(again.left(some) * again.deviation / model.deviation))
    more, taken, fresh = (
        float(np.average(x[at:, most], weights=counts[at:]) - before[:at, most].mean())
        for x, before in ((size, size), (swing, swing), (learnt, size))
    )
    return bool(sure[most] and taken < SWINGS * more and fresh > FRESH * more)


def _answered(some: Transitions, left: Floats, at: int) -> tuple[Floats, Floats]:
    """Return what is left of steps once the changed episodes' answer to actions is known, and float64[N] their counts.

    Episodes count the less, the more is left of them than of most: where clients meet a change one after another some
    still come from the world before it, and of those another answer leaves the most.
    """
    changed, counts = some.episode >= at, np.ones(some.num_episodes)
    for _ in range(ROUNDS):
        root, found = np.sqrt(counts[some.episode][changed])[:, None], np.array(left)
        found[changed] -= some.acts[changed] @ np.linalg.lstsq(root * some.acts[changed], root * left[changed])[0]
        size = some.mean_by_episode_of(np.square(found))
        counts = 1.0 / np.maximum((size / (np.median(size[at:], axis=0) + LITTLE)).mean(axis=1), 1.0)
    return found, counts


def persists(known: Summaries, at: int) -> bool:
    """Say whether the world answers otherwise in the second halves of episodes, where beginnings are forgotten."""
    some = known.transitions
    assert some is not None
    length = some.count_by_episode()[some.episode]
    late = some.t >= np.maximum(length / 2, 20)
    before, after = late & (some.episode < at), late & (some.episode >= at)
    return bool(after.sum() >= 100 and before.sum() >= 100 and effect(some, before, after).max() > PERSISTENT)


def effect(some: Transitions, before: Mask, after: Mask) -> Floats:
    """Return float64[D]: how far the models of both parts are apart in the states after, in deviations of a change."""
    apart = terms(some)[after] @ (fit(some, after).slopes - fit(some, before).slopes)
    return np.asarray(np.sqrt(np.square(apart).mean(axis=0)))


def is_other_reward(known: Summaries, at: int) -> bool:
    """Say whether one factor and one offset explain how rewards differ from what like transitions had before."""
    found = factor(known, at)
    return found is not None and found[2] > SHARE


def factor(known: Summaries, at: int) -> tuple[float, float, float] | None:
    """Return the factor and offset of rewards since episode `at`, and the share of the difference they explain."""
    some = known.transitions
    assert some is not None
    asked = np.isfinite(known.expected) & np.isfinite(some.rewards) & (some.episode >= at)
    if not asked.any():
        return None
    given, expected = some.rewards[asked], known.expected[asked]
    if np.ptp(expected) < 1e-9 * (1 + np.abs(expected).max()):  # a constant reward: a factor is all there is to tell
        level = float(expected.mean())
        slope, offset = (float(given.mean()) / level, 0.0) if abs(level) > 1e-12 else (1.0, float(given.mean()))
    else:
        slope, offset = (float(v) for v in np.polyfit(expected, given, 1))
    total = float(np.square(given - expected).sum())
    left = float(np.square(given - slope * expected - offset).sum())
    return slope, offset, 1.0 - left / total if total > 0 else 0.0
