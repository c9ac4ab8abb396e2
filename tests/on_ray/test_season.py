"""Seasoning: actions that came out well are imitated, and a trainer of PPO takes steps on production where it may."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from experiments.season import Lone
from flywheel.config import TrainConfig
from flywheel.records import Episode, Plan
from flywheel.task import spec_of
from flywheel.tasks.cartpole import cartpole
from flywheel.train.rllib.season import Season
from tests.on_ray.test_train import CONFIG, Probed
from tests.train.test_replay import production


def episode(id_: str, action: int, reward: float, digest: str = "a") -> Episode:
    """Return an episode of 20 times the same action, in random states, rewarded alike."""
    observations = np.random.default_rng(len(id_)).normal(size=(21, 4)).astype(np.float32)
    actions, rewards = np.full(20, action), np.full(20, reward)
    made = production(id_, 20, digest)
    return dataclasses.replace(made, observations=observations, raw_actions=actions, rewards=rewards)


@pytest.fixture(scope="module")
def lone() -> Lone:
    return Lone(3)


def chance(lone: Lone, action: int) -> float:
    outputs = lone.policy().outputs(episode("e", 0, 1.0).observations).astype(np.float64)
    return float((np.exp(outputs[:, action]) / np.exp(outputs).sum(axis=1)).mean())


@pytest.mark.parametrize("good", [0, 1])
def test_what_came_out_well_is_imitated_and_what_came_out_badly_is_not(lone: Lone, good: int) -> None:
    before = chance(lone, good), lone.weights()
    season = Season(lone.module, TrainConfig(), 1)
    season.learn(5)
    assert (lone.weights()["pi.net.mlp.0.weight"] == before[1]["pi.net.mlp.0.weight"]).all(), "nothing is held yet"
    assert season.hold([episode("well", good, 1.0), episode("poor", 1 - good, 0.0)]) == 40
    season.learn(150)
    assert chance(lone, good) > before[0] + 0.1
    after = lone.weights()
    critic = [name for name in after if name.startswith(("vf.", "encoder.critic"))]
    assert critic and all((after[name] == before[1][name]).all() for name in critic)


def test_the_last_policies_episodes_are_held_but_none_that_is_barred_or_not_known_whole(lone: Lone) -> None:
    season = Season(lone.module, TrainConfig(), 1)
    unknown = dataclasses.replace(episode("u", 1, 1.0), rewards=np.full(20, np.nan))
    mixed = dataclasses.replace(episode("m", 1, 1.0), digests=("a",) * 10 + ("b",) * 10)
    assert season.hold([unknown, mixed, episode("x", 1, 1.0, "bad")], {"bad": "it was rolled back"}) == 0
    assert season.hold([episode(digest, 1, 1.0, digest) for digest in "abcd"]) == 80
    assert list(season._episodes) == ["b", "c", "d"]
    season.hold([episode("b", 0, 1.0, "b")], {"c": "it was rolled back"})
    assert list(season._episodes) == ["d", "b"] and len(season._episodes["b"]) == 1


def test_a_trainer_takes_the_steps_where_its_plan_samples_production(ray_cluster: Any) -> None:
    config = dataclasses.replace(CONFIG, num_runners=1, season_steps=4)
    actor = ray_cluster.remote(num_cpus=0.5)(Probed).remote(cartpole, spec_of(cartpole), config, 1)
    ask = lambda method, *given: ray_cluster.get(method.remote(*given), timeout=120)  # noqa: E731
    try:
        ask(actor.begin, Plan(strategy="retrain_prioritize_recent", reasons=(), sampling="recent"), None)
        episodes = [episode("good", 1, 1.0), episode("bad", 0, 1.0, "bad")]
        assert ask(actor.learn_from, episodes, {"bad": "it was rolled back"}, "bad") == 20
        assert ask(actor.learnt_to) == "bad"
        ask(actor.advance)
        (head,) = ask(actor.runners_heads)
        assert (head == ask(actor.weights)["pi.net.mlp.0.weight"]).all(), "runners act by what came of it"
    finally:
        ask(actor.stop)
        ray_cluster.kill(actor)
