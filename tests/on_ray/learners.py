"""The product's learners without a cluster: built as the trainer builds them."""

from __future__ import annotations

from typing import Any

from flywheel.config import TrainConfig
from flywheel.spaces import seen_spaces
from flywheel.task import Task, spec_of
from flywheel.train.recipe import spec_for


def learner_of(task: Task, config: TrainConfig) -> Any:
    """Return the learner of an algorithm's configuration, at its learning rate."""
    from flywheel.train.rllib.learn import configure  # imported no sooner than the cluster's environment may be set

    spec = spec_for(task, spec_of(task), config)
    spaces = seen_spaces(spec)
    made = configure(task, spec, config, 1, {}).build_learner(spaces={"__env__": spaces, "default_policy": spaces})
    for optimizer in made._named_optimizers.values():
        made._set_optimizer_lr(optimizer, lr=config.lr)
    return made
