"""Which env runner samples, and how that is said."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from flywheel.config import TrainConfig
from flywheel.errors import UsageError
from flywheel.records import Plan
from flywheel.tasks.cartpole import cartpole
from flywheel.train.practice import Practice
from flywheel.train.recipe import make_recipe
from flywheel.train.running import is_own, said, steppable

Runner = Literal["auto", "own", "rllib"]


def config(runner: Runner = "auto", **rllib: Any) -> TrainConfig:
    return dataclasses.replace(TrainConfig(), runner=runner, rllib=rllib)


@pytest.mark.parametrize(
    "rllib",
    [
        {},
        {"clip_param": 0.1},
        {"batch_mode": "truncate_episodes"},
        {"gym_env_vectorize_mode": "sync"},
        {"on_episode_step": None},
        {"on_train_result": "a:b"},
    ],
)
def test_our_own_samples_where_nothing_asks_for_more(rllib: dict[str, Any]) -> None:
    assert is_own(config(**rllib)) and is_own(config("own", **rllib)) and said(config(**rllib), cartpole) == ""


@pytest.mark.parametrize(
    ("rllib", "why"),
    [
        ({"on_episode_step": "a:b"}, "train.rllib calls on_episode_step with RLlib's episodes"),
        ({"batch_mode": "complete_episodes"}, "train.rllib wants whole episodes"),
        ({"gym_env_vectorize_mode": "async"}, "gives each environment a process"),
        ({"callbacks_class": "a:B", "batch_mode": "complete_episodes"}, "never makes; it wants whole episodes"),
    ],
)
def test_rllibs_samples_where_only_that_one_can_and_it_says_why_and_what_it_costs(
    rllib: dict[str, Any], why: str
) -> None:
    assert not is_own(config(**rllib))
    assert why in said(config(**rllib), cartpole) and "a fifteenth of the speed" in said(config(**rllib), cartpole)
    with pytest.raises(UsageError, match=r"train\.runner is own, and train\.rllib .* leave train\.runner at auto"):
        is_own(config("own", **rllib))


def test_a_user_who_wants_rllibs_gets_it() -> None:
    assert not is_own(config("rllib")) and "as train.runner says so" in said(config("rllib"), cartpole)


def same_step(num_worlds: int) -> Any:
    """Return CartPole's vector form with episodes that end and begin in one step."""
    return gymnasium.make_vec(
        "CartPole-v1", num_envs=num_worlds, vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
    )  # fmt: skip


def test_a_vector_form_whose_episodes_would_be_stitched_together_is_stepped_one_by_one_and_that_is_said() -> None:
    task = dataclasses.replace(cartpole, vector=same_step)
    assert "resets worlds in mode SameStep" in said(config(), task) and "NEXT_STEP" in said(config(), task)
    assert steppable(task).vector is None and steppable(cartpole) is cartpole
    practice = Practice(steppable(task), 4, np.random.default_rng(0))
    plan = Plan(strategy="continue_training", reasons=(), parameters={"length": (0.3, 3.0)})
    practice.begin(make_recipe(task, plan, TrainConfig()))
    for _ in range(60):
        void = practice.ended
        _, rewards, *_ = practice.step(np.ones(4, np.int64))
        assert (rewards[void] == 0.0).all() and (rewards[~void] == 1.0).all()
    practice.close()
