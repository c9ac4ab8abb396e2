"""One decision after another, as fast as Python gets: the numbers of `Policy.act`, without its arrays of rows.

Draws are computed for many steps at once.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from flywheel.client.observations import plain
from flywheel.draws import draws
from flywheel.errors import UsageError
from flywheel.policy import Policy
from flywheel.records import Array
from flywheel.single import Acted, Drawn, Single
from flywheel.spaces import flatten

BLOCK = 256
"""Steps whose draws are computed at once: so many cost hardly more than one."""


class Quick:
    """A policy that acts for one episode, on one observation at a time. Not for several threads at once."""

    def __init__(self, policy: Policy, draw_key: int, episode: str) -> None:
        """Act in an episode with this draw key. Raises Refused for a policy that can't act by its rule."""
        self.spec = policy.spec
        self._draw_key, self._episode = draw_key, episode
        self._single = Single(policy)
        self._act, self._seen, self.to_env = self._single.act, self._single.seen, self._single.to_env
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

    def act(self, t: int) -> Acted:
        """Return the raw action of step `t` for the observation seen last, and what returns its log probability.

        A raw action is an int, a list of them, or float32[K]. Raises Refused when the network answers with a number
        that is not finite.
        """
        if not 0 <= t - self._from < BLOCK:
            self._from = t - t % BLOCK
            self._block = self._drawn()
        return self._act(self._block[t - self._from])

    def _drawn(self) -> Drawn:
        steps = np.arange(self._from, self._from + BLOCK)
        return self._single.drawn(draws(np.full(BLOCK, self._draw_key, np.uint64), steps, self.spec.num_draws))
