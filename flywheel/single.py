"""A policy on one observation at a time: the numbers of `Policy.act` to the last bit, without its arrays of rows.

The network's input and output are bound once, and the head does for one row what `Policy.act` does for all, in the
same order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flywheel.draws import log_slope, squash
from flywheel.errors import Refused
from flywheel.policy import NO_DEVIATIONS, Policy, bounds, categorical_one, in_box, to_env
from flywheel.records import Rule, Spec

_HALF_LOG_TAU = 0.5 * np.log(2 * np.pi)
Acted = tuple[Any, Callable[[], float]]
"""A raw action, and what computes its log probability where that is wanted."""
Drawn = Sequence[Any]
"""What each step draws: a list of K numbers, for a Gaussian the normal quantiles of them."""


class Single:
    """A policy for one decision after another. Not for several threads at once."""

    seen: NDArray[np.float32]
    """float32[1, o]: the observation that is acted on, to be written here before each decision."""

    def __init__(self, policy: Policy) -> None:
        """Bind the network. Raises Refused for a policy that can't act by its rule."""
        self.spec = policy.spec
        self._digest = policy.digest
        self._run, self.seen, self._outputs = policy.bound()
        self._decide = _head(self.spec.rule, self.spec.action_nvec, self._outputs.shape[1], self.spec.num_draws)
        self.to_env = _to_env(self.spec)
        """Returns what the environment gets for a raw action: an int, or an array in the action's shape."""

    def act(self, drawn: Any) -> Acted:
        """Return the raw action for what is `seen` by one step's draws, and what returns its log probability.

        A raw action is an int, a list of them, or float32[K]. Raises Refused when the network answers with a number
        that is not finite.
        """
        self._run()
        (outputs,) = self._outputs.tolist()
        if not math.isfinite(sum(outputs)):
            raise Refused(f"Policy {self._digest[:12] or 'candidate'} answered with a number that is not finite.")
        return self._decide(outputs, drawn)

    def drawn(self, uniform: NDArray[np.float64]) -> Drawn:
        """Return what `act` takes for each of N steps whose draws are uniform float64[N, K]."""
        if self.spec.rule.kind != "gaussian":
            listed: list[Any] = uniform.tolist()
            return listed
        from scipy.special import ndtri

        quantiles: list[Any] = ndtri(uniform).tolist()
        return quantiles


def _head(rule: Rule, nvec: Sequence[int], num_outputs: int, num_draws: int) -> Callable[..., Acted]:
    """Return what makes action and log probability of outputs list[D] and one step's Drawn."""
    if rule.kind == "categorical":
        return lambda outputs, drawn: _categorical(outputs, drawn[0], rule)
    if rule.kind == "multi_categorical":
        return lambda outputs, drawn: _multi_categorical(outputs, drawn, rule, nvec)
    if not rule.greedy and num_outputs == num_draws:
        raise Refused(NO_DEVIATIONS)
    return lambda outputs, drawn: _gaussian(outputs, drawn, num_draws, rule)


def _to_env(spec: Spec) -> Callable[[Any], Any]:
    """Return `policy.to_env` for one raw action at a time, what it needs of the spec looked up once."""
    if spec.action_kind == "discrete":
        return lambda raw_action: raw_action + spec.action_start
    if spec.action_kind == "multi_discrete":
        return lambda raw_action: to_env(spec, raw_action)
    low, high = bounds(spec)
    if spec.unsquash:
        return lambda raw_action: in_box(raw_action.reshape(spec.action_shape), low, high, True)
    ends = list(zip(low.ravel().tolist(), high.ravel().tolist(), strict=True))
    return lambda raw_action: _between(raw_action, ends).reshape(spec.action_shape)


def _between(raw_action: NDArray[np.float32], ends: Sequence[tuple[float, float]]) -> NDArray[np.float32]:
    """Return float32[K] within its ends, as `in_box` does; NaN stays NaN."""
    numbers = zip(raw_action.tolist(), ends, strict=True)
    return np.array(
        [one if low <= one <= high or one != one else low if one < low else high for one, (low, high) in numbers],
        np.float32,
    )


def _categorical(logits: list[float], draw: float, rule: Rule) -> Acted:
    action, chance = categorical_one(logits, draw, rule)
    return action, lambda: float(np.log(chance))


def _multi_categorical(logits: list[float], drawn: Sequence[float], rule: Rule, nvec: Sequence[int]) -> Acted:
    actions, chances, start = [], [], 0
    for num_actions, draw in zip(nvec, drawn, strict=True):
        action, chance = categorical_one(logits[start : start + num_actions], draw, rule)
        actions.append(action)
        chances.append(chance)
        start += num_actions
    return actions, lambda: list(accumulate(float(np.log(chance)) for chance in chances))[-1]  # in order, as for rows


def _gaussian(outputs: list[float], quantiles: Sequence[float], size: int, rule: Rule) -> Acted:
    mean = outputs[:size]
    if rule.greedy:
        return np.array(np.tanh(mean) if rule.squashed else mean).astype(np.float32), float
    deviation = [one * rule.temperature for one in np.exp(np.array(outputs[size:])).tolist()]
    action = np.array([m + d * q for m, d, q in zip(mean, deviation, quantiles, strict=True)]).astype(np.float32)

    def logp() -> float:
        spread = np.array(deviation)
        distance = (action - np.array(mean)) / spread
        each = -0.5 * distance**2 - np.log(spread) - _HALF_LOG_TAU
        return float(np.add.reduce(each - log_slope(action) if rule.squashed else each))

    return squash(action) if rule.squashed else action, logp
