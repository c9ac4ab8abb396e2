"""One training world as a Gymnasium environment, for whoever steps environments one by one. No Ray, no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np

from flywheel.policy import to_env
from flywheel.records import Array, Spec
from flywheel.spaces import seen_spaces
from flywheel.task import Task
from flywheel.train.practice import Practice
from flywheel.train.recipe import Recipe


class OneWorld(gymnasium.Env[Any, Any]):
    """Each episode begins where the Recipe says: parameters, edge case, correction. Actions are raw ones."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Make the world of `config["task"]` and its `config["spec"]`; it waits for `tell`."""
        self._spec: Spec = config["spec"]
        self.observation_space, self.action_space = seen_spaces(self._spec)
        task: Task = dataclasses.replace(config["task"], vector=None)
        self._practice = Practice(task, 1, np.random.default_rng(0))
        self._recipe: Recipe | None = None
        self._worker = int(getattr(config, "worker_index", 0) or 0)  # RLlib's EnvContext says it
        self._is_seeded = False

    @property
    def world(self) -> gymnasium.Env[Any, Any]:
        """The task's own environment, as it is now: one that raised is made anew."""
        return self._practice.env_of(0)

    def tell(self, recipe: Recipe) -> None:
        """Let episodes that begin from now on do so by this recipe."""
        self._recipe = recipe

    def told(self) -> tuple[int, str]:
        """Return how many episodes broke off so far, and what the last one did."""
        return self._practice.tally.num_broken, self._practice.tally.last

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Begin an episode by the recipe; the first seed that comes decides all of them.

        RLlib gives the same one at the beginning of each round, which would then begin in the same worlds, and to the
        second world of one runner the first one's of the next: those differ by their runners.
        """
        if self._recipe is None:
            raise RuntimeError("This world has not been told its recipe yet.")
        if seed is not None and not self._is_seeded:
            self._practice.draw_from(np.random.default_rng((seed, self._worker)))
            self._is_seeded = True
        return self._row(self._practice.begin(self._recipe)), {}

    def step(self, action: Any) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Take a raw action. An episode that breaks off is cut after a step that shows what was seen before it."""
        raw = np.reshape(action, (1, *self._spec.action_shape))
        observations, rewards, terminated, truncated = self._practice.step(to_env(self._spec, raw))
        is_cut = bool(truncated[0] or self._practice.lost[0])
        return self._row(observations), float(rewards[0]), bool(terminated[0]), is_cut, {}

    def close(self) -> None:
        """Release the world."""
        self._practice.close()

    def _row(self, observations: Array) -> Array:
        row: Array = np.asarray(observations[0], np.float32)
        return row
