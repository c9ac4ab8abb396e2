"""RLlib's own env runner over a task's environments, for what ours doesn't do: see `train.running`."""

from __future__ import annotations

from typing import Any

import numpy as np

from flywheel.priority import let_others_first
from flywheel.train.recipe import Recipe
from flywheel.train.rllib.dense import played_of
from flywheel.train.rllib.env_runner import RecipeRunner
from flywheel.train.rllib.frozen import freeze
from flywheel.train.sturdy import Tally
from flywheel.train.tape import Played


class StockRunner(RecipeRunner):
    """RLlib's loop, connectors and callbacks, over environments each of which is told the Recipe."""

    def make_env(self) -> None:
        """Make `OneWorld`s as RLlib makes any environment: in this process, or one process each."""
        let_others_first()
        super().make_env()
        self._tally = Tally(self.config.env_config["task"].name)
        freeze()

    def _columns(self, sampled: list[Any]) -> Played:
        """Return what was sampled as columns; raise FlywheelError where too many of the last episodes broke off."""
        played = played_of(sampled)
        num, last = self._broken()
        num_new = num - self._tally.num_broken
        self._tally.ended(int(np.count_nonzero(played.terminated | played.truncated)) - num_new)
        for _ in range(num_new):
            self._tally.broke(last)
        return played

    def _go_on_by(self, recipe: Recipe) -> None:
        self.env.unwrapped.call("tell", recipe)

    def _broken(self) -> tuple[int, str]:
        told = self.env.unwrapped.call("told")
        return sum(num for num, _ in told), next((last for _, last in told if last), "")
