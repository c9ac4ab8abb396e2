"""`train.rllib`: what goes through to RLlib, and what is refused by which sentence. No Ray is started."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, cast

import pytest

from flywheel.config import TrainConfig
from flywheel.errors import UsageError
from flywheel.preflight import check_passed
from flywheel.task import spec_of
from flywheel.tasks.cartpole import cartpole
from flywheel.tasks.pendulum import pendulum
from flywheel.train.recipe import spec_for

Algorithm = Literal["ppo", "appo", "dqn", "sac"]


def config(algorithm: str, **rllib: Any) -> TrainConfig:
    return dataclasses.replace(TrainConfig(), algorithm=cast(Algorithm, algorithm), rllib=rllib)


@pytest.mark.parametrize(
    ("algorithm", "name", "value"),
    [
        ("ppo", "clip_param", 0.1),
        ("ppo", "grad_clip", None),
        ("appo", "clip_param", 0.15),
        ("ppo", "sample_timeout_s", 30.0),
        ("dqn", "max_num_env_runner_restarts", 3),
        ("sac", "initial_alpha", 0.2),
    ],
)
def test_what_has_an_effect_goes_through(algorithm: str, name: str, value: Any) -> None:
    from flywheel.train.rllib.learn import configure

    task, given = pendulum if algorithm == "sac" else cartpole, config(algorithm, **{name: value})
    spec = spec_for(task, spec_of(task), given)
    usual, ready = (configure(task, spec, each, 1, {}) for each in (config(algorithm), given))
    assert getattr(usual, name) != value and getattr(ready, name) == value
    assert ready.learner_class is usual.learner_class


def test_a_setting_that_only_rllibs_own_learner_reads_brings_that_learner() -> None:
    from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner

    from flywheel.train.rllib.learn import configure
    from flywheel.train.rllib.passing import _read

    ready = configure(cartpole, spec_of(cartpole), config("ppo", use_kl_loss=True, kl_target=0.02), 1, {})
    assert ready.use_kl_loss and ready.kl_target == 0.02
    assert ready.learner_class is PPOTorchLearner or "use_kl_loss" in _read(ready)


@pytest.mark.parametrize(
    ("algorithm", "rllib", "said"),
    [
        ("ppo", {"clip_parm": 0.1}, "no setting of RLlib's ppo: 'clip_parm'. Did you mean 'clip_param'"),
        ("sac", {"initial_alfa": 0.1}, "Did you mean 'initial_alpha'"),
        ("ppo", {"lr": 1e-4}, "can't set RLlib's lr: set train.lr"),
        ("appo", {"use_kl_loss": True}, "learner of appo doesn't read it"),
        ("dqn", {"double_q": False}, "learner of dqn doesn't read it"),
        ("ppo", {"num_learners": 2}, "the learner is the trainer's own process"),
        ("ppo", {"observation_filter": "MeanStdFilter"}, "without connectors"),
        ("ppo", {"env_config": {}}, "the task says"),
        ("ppo", {"evaluation_interval": 1}, "the gate tries policies"),
        ("ppo", {"num_rollout_workers": 3}, "no setting of RLlib's ppo: 'num_rollout_workers'"),
        ("ppo", {"clip_param": "wide"}, "the value 'wide', where it is usually"),
        ("ppo", {"use_kl_loss": 1}, "the value 1, where it is usually True"),
    ],
)
def test_what_has_none_or_is_flywheels_own_is_refused_by_name(algorithm: str, rllib: dict[str, Any], said: str) -> None:
    from flywheel.train.rllib.passing import passed, plain

    given = config(algorithm, **rllib)
    with pytest.raises(UsageError, match=said):
        passed(plain(given), given)


def test_it_is_refused_before_ray_is_started_by_a_process_that_may_import_rllib() -> None:
    with pytest.raises(UsageError, match="Did you mean 'clip_param'"):
        check_passed(config("ppo", clip_parm=0.1))
    with pytest.raises(UsageError, match="numbers, text, lists and null only"):
        check_passed(config("ppo", clip_param=object()))
    check_passed(config("ppo"))
