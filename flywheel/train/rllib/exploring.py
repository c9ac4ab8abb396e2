"""More exploration for a round, by whatever an algorithm explores with, that comes down to none within it."""

from __future__ import annotations

import math
from typing import Any

from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.utils.schedules.scheduler import Scheduler

from flywheel.train.recipe import Recipe, entropy_at, exploration_at
from flywheel.train.replay import Replay


def begin_afresh(learner: Any) -> None:
    """Let a learner that got fresh weights weigh entropy as it did at first: SAC's temperature is none of them."""
    for log_alpha in getattr(learner, "curr_log_alpha", {}).values():
        log_alpha.data.fill_(math.log(learner.config.initial_alpha))


def explore(learner: Any, replay: Replay | None, recipe: Recipe, num_steps: int) -> None:
    """Set what a round explores with after so many of its steps: entropy bonus, random actions or target entropy."""
    if replay is not None:
        replay.explore(exploration_at(recipe, num_steps))
    if hasattr(learner, "explore"):
        learner.explore(exploration_at(recipe, num_steps))
    elif hasattr(learner, "entropy_coeff_schedulers_per_module"):
        learner.entropy_coeff_schedulers_per_module[DEFAULT_MODULE_ID] = Scheduler(
            fixed_value_or_schedule=entropy_at(recipe, num_steps), framework="torch", device=learner._device
        )
