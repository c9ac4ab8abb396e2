"""What an off-policy learner draws from, how often, and how it explores."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from flywheel.config import TrainConfig
from flywheel.records import Episode, Plan
from flywheel.replaying import ReplayConfig
from flywheel.store.table import Table
from flywheel.task import spec_of
from flywheel.tasks.cartpole import cartpole
from flywheel.train.replay import Replay

SPEC = spec_of(cartpole)
CONFIG = TrainConfig(
    algorithm="dqn",
    reward_scale=0.5,
    replay=ReplayConfig(batch=10, samples_per_insert=2.0, begin_at=100, epsilon=0.1, epsilon_steps=400),
)


def plan(**changes: object) -> Plan:
    return Plan(**{"strategy": "continue_training", "reasons": (), **changes})  # type: ignore[arg-type]


def chunk(num: int, value: float = 1.0) -> SimpleNamespace:
    return SimpleNamespace(
        observations=np.full((num + 1, 4), value, np.float32),
        actions=np.zeros(num, np.int64),
        rewards=np.full(num, value),
        logps=np.zeros(num),
        end="truncated",
    )


def production(id_: str, num: int, digest: str = "a") -> Episode:
    return Episode(
        id=id_, origin="production", task="t", parameters={}, draw_key=0, digests=(digest,) * num,
        observations=np.full((num + 1, 4), 7, np.float32), raw_actions=np.zeros(num, np.int64), rewards=np.ones(num),
        logps=np.zeros(num), end="terminated", failed=True,
    )  # fmt: skip


@pytest.fixture
def replay() -> Replay:
    made = Replay(Table(SPEC, capacity=5000), CONFIG, seed=1)
    made.begin(plan(), is_warm=False)
    return made


def test_draws_follow_what_came(replay: Replay) -> None:
    replay.simulated(chunk(99), "train")
    assert replay.due() == 0
    replay.simulated(chunk(51), "train")
    assert replay.due() == 2 * 50 // 10
    for _ in range(10):
        replay.batch()
    replay.simulated(chunk(20), "train")
    assert replay.produced([production("p", 10)]) == 10
    assert replay.due() == 2 * 30 // 10
    for _ in range(6):
        replay.batch()
    replay.simulated(chunk(20), "train")
    assert replay.produced([production("q", 900)]) == 900
    assert replay.due() == 2 * 2 * 20 // 10, "a heap that comes at once is made up for in part"


def test_production_has_its_share_where_the_plan_samples_it(replay: Replay) -> None:
    replay.simulated(chunk(1000), "train")
    replay.produced([production("p", 50)])

    def share() -> float:
        return float(np.mean([(replay.batch().observations[:, 0] == 7).mean() for _ in range(300)]))

    assert share() == 0.0  # a plan that samples nothing learns in simulation alone
    replay.begin(plan(sampling="uniform"), is_warm=True)
    assert share() == pytest.approx(0.5, abs=0.04)
    replay.table.exclude("policy", "a", "it was rolled back")
    assert share() == 0.0
    rewards = replay.batch().rewards
    assert (rewards == 1.0).all()  # simulated ones are in the learner's units already


def test_rewards_of_production_come_in_the_learners_units(replay: Replay) -> None:
    replay.produced([production("p", 500)])
    replay.begin(plan(sampling="recent"), is_warm=True)
    assert (replay.batch().rewards == 0.5).all()


def test_a_fresh_round_explores_less_and_less_and_a_plan_can_ask_for_more(replay: Replay) -> None:
    assert replay.epsilon == 1.0
    replay.simulated(chunk(200), "train")
    assert replay.epsilon == pytest.approx(0.55)
    replay.simulated(chunk(400), "train")
    assert replay.epsilon == pytest.approx(0.1)
    replay.begin(plan(exploration=4.0), is_warm=True)
    assert replay.epsilon == pytest.approx(0.4)
    replay.explore(2.0)
    assert replay.epsilon == pytest.approx(0.2) and np.exp(2 * replay.noise) == pytest.approx(2.0)
    replay.begin(plan(), is_warm=True)
    assert replay.epsilon == pytest.approx(0.1)
    replay.begin(plan(exploration=4.0), is_warm=False)
    replay.explore(3.0)
    assert replay.epsilon == 1.0, "a fresh round begins by chance alone"
    replay.simulated(chunk(400), "train")
    assert replay.epsilon == pytest.approx(0.3)
