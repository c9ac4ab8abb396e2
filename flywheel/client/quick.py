"""One decision after another, as fast as Python gets: the numbers of `Policy.act`, without its arrays of rows.

The network's input and output are bound once, draws are computed for many steps at once, and the head does for one row
what `Policy.act` does for all, in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flywheel.client.observations import plain
from flywheel.draws import draws
from flywheel.errors import Refused, UsageError
from flywheel.policy import NO_DEVIATIONS, Policy, bounds, categorical_one, in_box, to_env
from flywheel.records import Array, Rule, Spec
from flywheel.spaces import flatten

BLOCK = 256
"""Steps whose draws are computed at once: so many cost hardly more than one."""
_HALF_LOG_TAU = 0.5 * np.log(2 * np.pi)
Drawn = Sequence[Any] | NDArray[np.float64]
"""What each of the next steps draws: a list of K numbers, for a Gaussian the float64[K] normal quantiles of them."""


class Quick:
    """A policy that acts for one episode, on one observation at a time. Not for several threads at once."""

    def __init__(self, policy: Policy, draw_key: int, episode: str) -> None:
        """Act in an episode with this draw key. Raises Refused for a policy that can't act by its rule."""
        self.spec = policy.spec
        self._digest, self._draw_key, self._episode = policy.digest, draw_key, episode
        self._run, self._seen, self._outputs = policy.bound()
        self._decide = _head(self.spec.rule, self.spec.action_nvec, self._outputs.shape[1], self.spec.num_draws)
        self.to_env = _to_env(self.spec)
        """Returns what the environment gets for a raw action: an int, or an array in the action's shape."""
        self._block: Drawn = []
        self._from = -BLOCK
        self._is_row = not self.spec.observation_leaves and np.issubdtype(self.spec.observation_dtype, np.floating)

    def see(self, observation: Any) -> Any:
        """Take in an observation as the environment gives it, and return it as JSON carries it.

        Raises UsageError or FlywheelError for one that the policy can't read, or that isn't finite.
        """
        if not self._is_row:
            (told,) = plain([observation], [self._episode])
            self._fill(flatten(self.spec.observation_leaves, observation))
            return told
        if isinstance(observation, np.ndarray) and observation.dtype == self.spec.observation_dtype:
            row = observation
        else:
            with np.errstate(over="ignore"):
                row = np.asarray(observation, dtype=self.spec.observation_dtype)
        self._fill(row)
        told = row.tolist()
        if not math.isfinite(sum(told)):
            plain([row], [self._episode])  # names the number that isn't finite, if it isn't only their sum
        return told

    def _fill(self, row: Array) -> None:
        if row.shape != self.spec.observation_shape:
            raise UsageError(
                f"The observation of episode {self._episode!r} has the shape {list(row.shape)}, and the policy reads "
                f"{list(self.spec.observation_shape)}."
            )
        if row.dtype == np.float32:
            self._seen[0] = row
        else:
            with np.errstate(over="ignore"):  # the network answers infinity with a number that is refused
                self._seen[0] = row

    def act(self, t: int) -> tuple[Any, float]:
        """Return the raw action of step `t` for the observation seen last, and its log probability.

        A raw action is an int, a list of them, or float32[K]. Raises Refused when the network answers with a number
        that is not finite.
        """
        self._run()
        (outputs,) = self._outputs.tolist()
        if not math.isfinite(sum(outputs)):
            raise Refused(f"Policy {self._digest[:12] or 'candidate'} answered with a number that is not finite.")
        if not 0 <= t - self._from < BLOCK:
            self._from = t - t % BLOCK
            self._block = self._drawn()
        return self._decide(outputs, self._block[t - self._from])

    def _drawn(self) -> Drawn:
        steps = np.arange(self._from, self._from + BLOCK)
        drawn = draws(np.full(BLOCK, self._draw_key, np.uint64), steps, self.spec.num_draws)
        if self.spec.rule.kind != "gaussian":
            listed: list[Any] = drawn.tolist()
            return listed
        from scipy.special import ndtri

        quantiles: NDArray[np.float64] = ndtri(drawn)
        return quantiles


def _head(rule: Rule, nvec: Sequence[int], num_outputs: int, num_draws: int) -> Callable[..., tuple[Any, float]]:
    """Return what makes action and log probability of outputs list[D] and one step's Drawn."""
    if rule.kind == "categorical":
        return lambda outputs, drawn: categorical_one(outputs, drawn[0], rule)
    if rule.kind == "multi_categorical":
        return lambda outputs, drawn: _multi_categorical(outputs, drawn, rule, nvec)
    if not rule.greedy and num_outputs == num_draws:
        raise Refused(NO_DEVIATIONS)
    return lambda outputs, drawn: _gaussian(outputs, drawn, rule)


def _to_env(spec: Spec) -> Callable[[Any], Any]:
    """Return `policy.to_env` for one raw action at a time, what it needs of the spec looked up once."""
    if spec.action_kind == "discrete":
        return lambda raw_action: raw_action + spec.action_start
    if spec.action_kind == "multi_discrete":
        return lambda raw_action: to_env(spec, raw_action)
    low, high = bounds(spec)
    return lambda raw_action: in_box(raw_action.reshape(spec.action_shape), low, high, spec.unsquash)


def _multi_categorical(
    logits: list[float], drawn: Sequence[float], rule: Rule, nvec: Sequence[int]
) -> tuple[list[int], float]:
    actions, logps, start = [], [], 0
    for num_actions, draw in zip(nvec, drawn, strict=True):
        action, logp = categorical_one(logits[start : start + num_actions], draw, rule)
        actions.append(action)
        logps.append(logp)
        start += num_actions
    *_, total = accumulate(logps)  # one after another, as for many rows
    return actions, total


def _gaussian(outputs: list[float], quantiles: NDArray[np.float64], rule: Rule) -> tuple[NDArray[np.float32], float]:
    numbers, size = np.array(outputs), len(quantiles)
    mean = numbers[:size]
    if rule.greedy:
        return mean.astype(np.float32), 0.0
    deviation = np.exp(numbers[size:]) * rule.temperature
    action = (mean + deviation * quantiles).astype(np.float32)
    distance = (action - mean) / deviation
    logps = -0.5 * distance**2 - np.log(deviation) - _HALF_LOG_TAU
    return action, float(np.add.reduce(logps))
