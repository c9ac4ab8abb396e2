"""Which env runner samples, and how that is said."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import pytest

from flywheel.config import TrainConfig
from flywheel.errors import UsageError
from flywheel.train.running import is_own, said

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
    assert is_own(config(**rllib)) and is_own(config("own", **rllib)) and said(config(**rllib)) == ""


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
    assert why in said(config(**rllib)) and "a fifteenth of the speed" in said(config(**rllib))
    with pytest.raises(UsageError, match=r"train\.runner is own, and train\.rllib .* leave train\.runner at auto"):
        is_own(config("own", **rllib))


def test_a_user_who_wants_rllibs_gets_it() -> None:
    assert not is_own(config("rllib")) and "as train.runner says so" in said(config("rllib"))
