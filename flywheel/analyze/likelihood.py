"""How likely a policy was to act as was logged: log probabilities of given raw actions, by the arithmetic of acting."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flywheel.draws import chances_of
from flywheel.errors import Refused
from flywheel.policy import NO_DEVIATIONS, Policy
from flywheel.records import Array, Rule

ROWS = 256
"""Observations in one run of the network: up to so many, ONNX Runtime's rows were bit-equal at every batch size."""


def logps(policy: Policy, observations: Array, raw_actions: Array) -> NDArray[np.float64]:
    """Return the log probabilities (densities of a Gaussian) float64[N] of raw actions [N, *a] at observations [N, *o].

    They are of the policy's own acting rule: what `Policy.act` says of the same actions, to the last bit where that
    draws them. -inf is an action that it never takes. Raises Refused where the policy has no density: a greedy
    Gaussian, a squashed one, or one without deviations.
    """
    rule = policy.spec.rule
    parts = [policy.outputs(observations[i : i + ROWS]) for i in range(0, len(observations), ROWS)]
    outputs = np.concatenate(parts).astype(np.float64) if parts else np.zeros((0, policy.spec.num_outputs))
    if rule.kind == "gaussian":
        return _gaussian(outputs, raw_actions, rule)
    if rule.kind == "categorical":
        return _categorical(outputs, np.asarray(raw_actions, dtype=np.int64), rule)
    subs = np.split(outputs, np.cumsum(policy.spec.action_nvec)[:-1], axis=1)
    acted = np.asarray(raw_actions, dtype=np.int64)
    # one after another, as they are added when they are drawn
    return np.asarray(np.add.accumulate([_categorical(sub, acted[:, k], rule) for k, sub in enumerate(subs)])[-1])


def _categorical(logits: NDArray[np.float64], acted: NDArray[np.int64], rule: Rule) -> NDArray[np.float64]:
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(chances_of(logits, rule)[acted, np.arange(len(logits))]))


def _gaussian(outputs: NDArray[np.float64], raw_actions: Array, rule: Rule) -> NDArray[np.float64]:
    actions = np.asarray(raw_actions, dtype=np.float32).reshape(len(outputs), -1)
    size = actions.shape[1]
    mean, log_deviation = outputs[:, :size], outputs[:, size:]
    if rule.greedy:
        raise Refused("The policy acts greedily on a continuous action, so none has a density to weigh it by.")
    if rule.squashed:
        raise Refused("The policy squashes its actions, and of a rounded one its density can't be told exactly.")
    if not log_deviation.size:
        raise Refused(NO_DEVIATIONS)
    deviation = np.exp(log_deviation) * rule.temperature
    distance = (actions - mean) / deviation
    return np.asarray((-0.5 * distance**2 - np.log(deviation) - 0.5 * np.log(2 * np.pi)).sum(axis=1))
