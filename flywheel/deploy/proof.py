"""What a policy says to observations and draws, and whether it said what somebody tells it did. Pure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flywheel.draws import draws
from flywheel.policy import TOLERANCE, Policy
from flywheel.records import Array

LOCKSTEP = 256
"""Rows of one call of the network: up to here ONNX Runtime's rows were bit-equal at every batch size."""


def answers(policy: Policy, observations: Array, uniform: NDArray[np.float64]) -> tuple[Array, NDArray[np.float64]]:
    """Return a policy's raw actions [N, *a] and log probabilities float64[N], LOCKSTEP rows at once.

    Raises whatever the policy raises.
    """
    num = len(observations)
    if num <= LOCKSTEP:
        return policy.act(observations, uniform)
    some = [slice(start, start + LOCKSTEP) for start in range(0, num, LOCKSTEP)]
    raw_actions, logps = zip(*(policy.act(observations[rows], uniform[rows]) for rows in some), strict=True)
    return np.concatenate(raw_actions), np.concatenate(logps)


def gave(
    policy: Policy, observations: Array, keys: NDArray[np.uint64], t: NDArray[np.int64], told: Array
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Return whether the policy gave each of the raw actions `told` [N, *a], and with which log probability float64[N].

    Args:
        policy: it.
        observations: dtype[N, *o], what it saw.
        keys: uint64[N], the episodes' draw keys.
        t: int64[N], the steps.
        told: [N, *a].

    Draws within TOLERANCE count, too: another CPU may have fallen on the other side of a boundary between two actions.
    """
    uniform = draws(keys, t, policy.spec.num_draws)
    found, logps = answers(policy, observations, uniform)
    same = ~differs(found, told)
    for shift in (TOLERANCE, -TOLERANCE):
        rest = np.flatnonzero(~same)
        if len(rest):
            beside = np.clip(uniform[rest] + shift, TOLERANCE / 2, 1 - TOLERANCE / 2)
            found, others = answers(policy, observations[rest], beside)
            same[rest] = fits = ~differs(found, told[rest])
            logps[rest[fits]] = others[fits]
    return same, logps


def differs(found: Array, told: Array) -> NDArray[np.bool_]:
    """Return bool[N]: which of the raw actions [N, *a] are not the same within TOLERANCE."""
    near = np.isclose(found, told, rtol=TOLERANCE, atol=TOLERANCE).reshape(len(found), -1)
    wrong: NDArray[np.bool_] = np.any(~near, axis=1)
    return wrong
