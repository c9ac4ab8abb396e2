"""A round of increase_exploration explores more than another from the same weights, and stops doing so within it."""

from __future__ import annotations

from typing import Any

import pytest

from experiments.explore import Rounds, ratio
from flywheel.config import TrainConfig
from flywheel.records import Plan
from flywheel.replaying import ReplayConfig

PHASE = 2_048
CONFIG = TrainConfig(
    activation="relu",
    num_runners=1, worlds_per_runner=16, steps_per_world=32, max_steps=10 * PHASE,
    replay=ReplayConfig(begin_at=256, samples_per_insert=4.0),
)  # fmt: skip
MORE = 8.0
"""What the third refusal in a row asks for."""
USUAL = {"ppo": CONFIG.entropy, "dqn": CONFIG.replay.epsilon, "sac": -1.0}
"""Entropy bonus, share of random actions, and target entropy (of one number) where nobody asks for more."""


@pytest.mark.parametrize(("algorithm", "least"), [("ppo", 1.01), ("dqn", 2.0), ("sac", 1.2)])
def test_it_explores_more_and_then_no_more(algorithm: str, least: float, ray_cluster: Any) -> None:
    rounds = Rounds(algorithm, 5, CONFIG)
    try:
        rounds.first(PHASE)
        plain, more = (rounds.go_on(factor, round(1.5 * PHASE)) for factor in (1.0, MORE))
        assert ratio(more, plain, 0, PHASE) > least
        recipe = rounds.recipe(Plan(strategy="increase_exploration", reasons=(), exploration=MORE))
        assert recipe.exploration_steps == PHASE
        assert told(rounds) == pytest.approx(USUAL[algorithm])
    finally:
        rounds.training.stop()


def told(rounds: Rounds) -> float:
    """Return what the algorithm explores with now: entropy bonus, share of random actions, or target entropy."""
    learner: Any = rounds.training._learner
    if rounds.algorithm == "sac":
        return float(learner.entropy)
    if rounds.algorithm == "dqn":
        algorithm = rounds.training._algorithm
        return float(algorithm.env_runner_group.foreach_env_runner(_epsilon, local_env_runner=False)[0])
    return float(learner.entropy_coeff_schedulers_per_module["default_policy"].get_current_value())


def _epsilon(runner: Any) -> float:
    return float(runner.module.epsilon)
