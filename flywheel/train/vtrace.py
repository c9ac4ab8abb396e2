"""What actions were worth that another policy chose: V-trace's truncated importance weights in GAE's sum."""

from __future__ import annotations

import numpy as np

from flywheel.records import Array


def advantages(rewards: Array, values: Array, ratios: Array, discount: float, trace: float) -> Array:
    """Return the advantages float64[T] of the steps of one chunk of an episode.

    `values` float[T + 1] are the critic's, the last one 0 where the episode terminated there; `ratios` float[T] say how
    much likelier the present policy makes each action than the one that chose it. With ratios of 1 it is GAE (Schulman
    et al. 2016, equation 16) with lambda = `trace`. Otherwise each error counts by its truncated ratio, and so does
    what comes after it (Espeholt et al. 2018, equation 1, with lambda as in its remark 2): v_t - V(x_t).
    """
    weights = np.minimum(1.0, np.asarray(ratios, np.float64))
    errors = weights * (rewards + discount * values[1:] - values[:-1])
    found, ahead = np.zeros(len(errors)), 0.0
    for t in reversed(range(len(errors))):
        ahead = errors[t] + discount * trace * weights[t] * ahead
        found[t] = ahead
    return found
