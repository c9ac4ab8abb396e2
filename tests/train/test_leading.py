"""Training begins where given actions lead: in the gate's own scenario, with the world's parameters from there on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest

from flywheel.config import TrainConfig
from flywheel.gate.trials import play_situations, suite_situations
from flywheel.records import Correction, Plan
from flywheel.simulate.corrected import corrected
from flywheel.tapes import Scenario
from flywheel.task import Task
from flywheel.tasks.cartpole import cartpole
from flywheel.tasks.lunarlander import lunarlander
from flywheel.testing import load_linear
from flywheel.train.practice import Practice
from flywheel.train.recipe import Recipe, make_recipe

TASK = dataclasses.replace(lunarlander, edge_cases=())
LED = Scenario(
    name="led", parameters={"wind_power": 15.0}, fork=("e", 12), saved_at=0.0, seed=9, actions=(2,) * 12,
    before=TASK.nominal,
)  # fmt: skip


def recipe(scenario: Scenario, share: float = 1.0) -> Recipe:
    plan = Plan(strategy="continue_training", reasons=())
    return make_recipe(TASK, plan, TrainConfig(edge_case_share=share), [scenario])


def wind(practice: Practice) -> list[float]:
    return [float(env.unwrapped.wind_power) for env in practice.envs.envs]  # type: ignore[attr-defined]


@pytest.fixture
def practice() -> Iterator[Practice]:
    made = Practice(TASK, 3, np.random.default_rng(0))
    yield made
    made.close()


def test_worlds_are_led_there_at_once_and_each_time_they_begin_again(practice: Practice) -> None:
    (situation,) = suite_situations([LED], 1, "judge", 1, TASK.nominal)
    policy = load_linear(TASK, np.zeros((4, 8)), digest="p")
    (episode,) = play_situations(TASK, policy, [situation], lockstep=1, now=0.0)
    there = episode.observations[12]
    assert np.allclose(practice.begin(recipe(LED)), there, atol=1e-6)
    assert wind(practice) == [15.0] * 3
    observations, _, _, _ = practice.step(episode.raw_actions[12:15])
    assert np.allclose(observations[0], episode.observations[13], atol=1e-6), "the gate's world goes on alike"
    num_begun = 0
    for _ in range(150):
        void = practice.ended
        observations, _, _, _ = practice.step(np.zeros(3, np.int64))
        assert np.allclose(observations[void], there, atol=1e-6)
        num_begun += int(void.sum())
    assert num_begun >= 3


def test_worlds_that_were_led_before_begin_elsewhere_when_they_are_not(practice: Practice) -> None:
    practice.begin(recipe(LED))
    practice.go_on_by(recipe(LED, share=0.0))
    starts = []
    for _ in range(300):
        void = practice.ended
        observations, _, _, _ = practice.step(np.zeros(3, np.int64))
        starts += observations[void].tolist()
    assert len(starts) >= 4 and len({tuple(row) for row in starts}) == len(starts)
    assert wind(practice) == [TASK.nominal["wind_power"]] * 3


def test_where_actions_lead_nowhere_any_more_the_world_begins_as_any(practice: Practice) -> None:
    observations = practice.begin(recipe(dataclasses.replace(LED, actions=(0,) * 900)))
    assert len({tuple(row) for row in observations.tolist()}) == 3, "seeds of their own"
    assert wind(practice) == [15.0] * 3 and practice.tally.num_broken == 0


def test_a_vector_form_that_takes_no_state_trains_without_it() -> None:
    def vector(num: int) -> Any:
        return gymnasium.vector.SyncVectorEnv([TASK.make_env] * num)

    blind: Task = dataclasses.replace(TASK, vector=vector)
    plan = Plan(strategy="continue_training", reasons=())
    assert make_recipe(blind, plan, TrainConfig(), [LED]).edge_cases == ()


@pytest.mark.parametrize("task", [cartpole, dataclasses.replace(cartpole, vector=None)], ids=["lockstep", "each"])
@pytest.mark.parametrize("correction", [Correction(actions=(1, 0)), Correction(delay=3)], ids=["swapped", "late"])
def test_in_corrected_worlds_actions_lead_where_the_gates_lead_to(task: Task, correction: Correction) -> None:
    scenario = dataclasses.replace(LED, parameters={}, actions=(1, 1, 1, 0, 1, 1), before=None)
    plan = Plan(strategy="retrain_prioritize_recent", reasons=(), correction=correction)
    (situation,) = suite_situations([scenario], 1, "judge", 1, task.nominal)
    policy = load_linear(task, np.zeros((2, 4)), digest="p")
    (episode,) = play_situations(corrected(task, correction), policy, [situation], lockstep=1, now=0.0)
    task = dataclasses.replace(task, edge_cases=())
    practice = Practice(task, 2, np.random.default_rng(0))
    try:
        begun = practice.begin(make_recipe(task, plan, TrainConfig(edge_case_share=1.0), [scenario]))
        assert np.allclose(begun, episode.observations[6], atol=1e-5)
        if task.vector is None:  # a state alone holds no actions that are on their way
            observations, _, _, _ = practice.step(episode.raw_actions[6:7].repeat(2))
            assert np.allclose(observations, episode.observations[7], atol=1e-5)
    finally:
        practice.close()
