"""A number of each episode, as a diagnosis shows it in its table and its picture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flywheel.analyze.summaries import Summaries
from flywheel.analyze.transitions import fit

STEP = "error of a step that is predicted as before, in its typical changes"
"""The measure of a world that answers otherwise."""
SHARE = "share of what like transitions had"
"""The measure of other rewards."""

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


def series(known: Summaries, before: Mask, what: str, measure: str) -> Floats | None:
    """Return float64[N]: a number of each episode, NaN where it has none; None where nothing is called so.

    `before` bool[N] are the episodes that say what was usual.
    """
    if measure == STEP:
        return _errors(known, before, what)
    if measure == SHARE:
        return _shares(known)
    for family in known.families:
        for i, called in enumerate(zip(family.whats, family.measures, strict=True)):
            if called == (what, measure):
                return family.numbers[:, i]
    return None


def _errors(known: Summaries, before: Mask, what: str) -> Floats | None:
    some = known.transitions
    if some is None or what not in known.names or not before[some.episode].any():
        return None
    d, model = known.names.index(what), fit(some, before[some.episode])
    left = np.square(model.weighed(some)[:, d] * model.deviation[d])
    return np.where(some.count_by_episode() > 0, np.sqrt(some.mean_by_episode(left)), np.nan)


def _shares(known: Summaries) -> Floats | None:
    some = known.transitions
    if some is None:
        return None
    asked = np.isfinite(known.expected) & np.isfinite(some.rewards)
    given = some.mean_by_episode(np.nan_to_num(np.sign(known.expected) * some.rewards), asked)
    usual = some.mean_by_episode(np.nan_to_num(np.abs(known.expected)), asked)
    return np.where(usual > 0, given / np.where(usual > 0, usual, 1.0), np.nan)
