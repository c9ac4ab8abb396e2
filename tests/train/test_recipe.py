"""A plan becomes worlds: ranges kept, edge cases at their share, reproducible, unknown names refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel.config import TrainConfig
from flywheel.errors import UsageError
from flywheel.records import Plan, Probe
from flywheel.task import EdgeCase, Task, spec_of
from flywheel.tasks.cartpole import cartpole
from flywheel.tasks.pendulum import pendulum
from flywheel.train.recipe import entropy_at, exploration_at, make_recipe, sample_worlds, spec_for, still_hard


def plan(**changes: object) -> Plan:
    return Plan(strategy="continue_training", reasons=(), **changes)  # type: ignore[arg-type]


def test_without_parameters_every_world_is_nominal_or_an_edge_case() -> None:
    recipe = make_recipe(cartpole, plan(), TrainConfig())
    cases = [({**cartpole.nominal, **case.parameters}, case.state) for case in cartpole.edge_cases]
    for world in sample_worlds(recipe, np.random.default_rng(0), np.arange(200), 200):
        assert (world.parameters, world.state) in [(cartpole.nominal, None), *cases]


@given(low=st.floats(0.2, 1.0), width=st.floats(0.0, 2.0), share=st.floats(0.0, 1.0), seed=st.integers(0, 2**32))
def test_sampled_parameters_stay_in_the_plans_ranges(low: float, width: float, share: float, seed: int) -> None:
    config = TrainConfig(edge_case_share=share)
    recipe = make_recipe(cartpole, plan(parameters={"length": (low, low + width)}), config)
    worlds = sample_worlds(recipe, np.random.default_rng(seed), np.arange(20), 20)
    assert all(low <= world.parameters["length"] <= low + width for world in worlds)
    assert all(set(world.parameters) == set(cartpole.nominal) for world in worlds)
    assert worlds == sample_worlds(recipe, np.random.default_rng(seed), np.arange(20), 20)


def test_edge_cases_come_at_their_share_each_equally_often() -> None:
    recipe = make_recipe(cartpole, plan(), TrainConfig(edge_case_share=0.5))
    worlds = sample_worlds(recipe, np.random.default_rng(1), np.arange(10_000), 10_000)
    for case in cartpole.edge_cases:
        found = sum(w.state == case.state and {**cartpole.nominal, **case.parameters} == w.parameters for w in worlds)
        assert abs(found / 10_000 - 0.5 / len(cartpole.edge_cases)) < 0.02


def test_a_task_without_edge_cases_or_parameters_trains_in_its_only_world() -> None:
    from flywheel.task import Task

    bare = Task(name="bare", env="CartPole-v1", failed=cartpole.failed)
    worlds = sample_worlds(make_recipe(bare, plan(), TrainConfig()), np.random.default_rng(0), np.arange(3), 3)
    assert [(dict(world.parameters), world.state) for world in worlds] == [({}, None)] * 3


@pytest.mark.parametrize(
    ("entropy", "exploration", "expected"),
    [(0.0, 1.0, 0.0), (0.0, 2.0, 0.02), (0.02, 1.0, 0.02), (0.02, 3.0, 0.06), (0.001, 2.0, 0.02)],
)
def test_more_exploration_multiplies_the_entropy_bonus_or_starts_it(
    entropy: float, exploration: float, expected: float
) -> None:
    config = TrainConfig(entropy=entropy, exploration_entropy=0.01)
    assert make_recipe(cartpole, plan(exploration=exploration), config).entropy == pytest.approx(expected)


def test_more_exploration_comes_down_to_none_within_the_round() -> None:
    config = TrainConfig(entropy=0.01, exploration_entropy=0.03, exploration_share=0.1, max_steps=10_000)
    recipe = make_recipe(cartpole, plan(exploration=3.0), config)
    at = [0, 250, 500, 1_000, 9_000]
    assert [entropy_at(recipe, num) for num in at] == pytest.approx([0.09, 0.07, 0.05, 0.01, 0.01])
    assert [exploration_at(recipe, num) for num in at] == pytest.approx([3.0, 2.5, 2.0, 1.0, 1.0])
    quiet = make_recipe(cartpole, plan(), dataclasses.replace(config, exploration_share=0.0))
    assert {(entropy_at(quiet, num), exploration_at(quiet, num)) for num in at} == {(0.01, 1.0)}


def test_the_budget_is_the_plans_or_else_the_configurations() -> None:
    assert make_recipe(cartpole, plan(max_steps=7), TrainConfig()).max_steps == 7
    assert make_recipe(cartpole, plan(), TrainConfig(max_steps=9)).max_steps == 9


def test_an_unknown_parameter_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match="Did you mean 'length'"):
        make_recipe(cartpole, plan(parameters={"lenght": (1.0, 2.0)}), TrainConfig())


def test_edge_cases_that_a_probe_found_failing_come_more_often_and_the_others_still_come() -> None:
    recipe = dataclasses.replace(make_recipe(cartpole, plan(), TrainConfig(edge_case_share=0.5)), hard=("pole_tilted",))
    worlds = sample_worlds(recipe, np.random.default_rng(1), np.arange(10_000), 10_000)
    share = {
        case.name: sum(
            w.state == case.state and {**cartpole.nominal, **case.parameters} == w.parameters for w in worlds
        ) / 10_000
        for case in cartpole.edge_cases
    }  # fmt: skip
    assert abs(share.pop("pole_tilted") - 0.5 * (0.5 + 0.5 / 5)) < 0.02
    assert all(abs(each - 0.5 * 0.5 / 5) < 0.02 for each in share.values())


def test_edge_cases_have_their_share_of_the_worlds_however_soon_their_episodes_end() -> None:
    recipe = dataclasses.replace(make_recipe(cartpole, plan(), TrainConfig(edge_case_share=0.3)), hard=("weak_motor",))
    rng, num = np.random.default_rng(2), np.zeros((2, 8))
    for _ in range(2_000):
        worlds = sample_worlds(recipe, rng, np.arange(8), 8)
        num[0] += [world.is_edge_case for world in worlds]
        num[1] += [world.parameters["force_mag"] == 7.0 for world in worlds]
    assert num[0] == pytest.approx([2_000, 2_000, 800, 0, 0, 0, 0, 0], abs=100)
    # half of 2.4 worlds are the hard one's, and a fifth of the rest
    assert num[1].sum() == pytest.approx(2_000 * (1.2 + 1.2 / 5), rel=0.05) and num[1][0] == 2_000
    alone = [sample_worlds(recipe, rng, np.zeros(1, np.intp), 1)[0].is_edge_case for _ in range(2_000)]
    assert sum(alone) == pytest.approx(600, abs=80)  # a vector of one has its share by chance


def test_an_episode_is_cut_where_nothing_but_its_first_state_was_special() -> None:
    recipe = make_recipe(cartpole, plan(), TrainConfig(edge_case_share=1.0, gamma=0.98))
    rng, places = np.random.default_rng(0), np.arange(100)
    worlds = sample_worlds(recipe, rng, places, 100)
    assert all(world.num_steps is None for world in worlds[50:]), "in the other half it shows what comes later"
    found = {w.state or tuple(w.parameters.values()): w.num_steps for w in worlds[:50]}
    wanted = {
        case.state or tuple({**cartpole.nominal, **case.parameters}.values()): 50 if case.state else None
        for case in cartpole.edge_cases
    }
    assert found == wanted
    strange = dataclasses.replace(recipe, edge_cases=(EdgeCase("both", {"gravity": 14.0}, (1.0, 0.0, 0.0, 0.0)),))
    (world,) = sample_worlds(strange, rng, places[:1], 2)
    assert world.num_steps is None and world.state == (1.0, 0.0, 0.0, 0.0)
    within = dataclasses.replace(strange, ranges=(*recipe.ranges[1:], ("gravity", 9.0, 15.0)))
    assert sample_worlds(within, rng, places[:1], 2)[0].num_steps == 50
    assert sample_worlds(within, rng, places[:1], 1)[0].num_steps is None, "a part of a place has its share by chance"
    assert make_recipe(cartpole, plan(), TrainConfig(gamma=1.0)).horizon is None


@pytest.mark.parametrize(("algorithm", "task", "other"), [("dqn", pendulum, "sac"), ("sac", cartpole, "dqn")])
def test_an_algorithm_that_is_not_for_a_tasks_actions_is_refused_with_one_that_is(
    algorithm: Any, task: Task, other: str
) -> None:
    with pytest.raises(UsageError, match=rf"give train.algorithm={other}, or leave train.algorithm at ppo\.$"):
        spec_for(task, spec_of(task), TrainConfig(algorithm=algorithm))


def test_sac_squashes_and_others_act_as_the_task_says() -> None:
    plain = spec_of(pendulum)
    assert spec_for(pendulum, plain, TrainConfig()) == plain
    assert spec_for(pendulum, plain, TrainConfig(algorithm="sac")).rule.squashed


def test_a_case_stays_hard_until_a_whole_probe_finds_it_mastered() -> None:
    config = TrainConfig(probe_episodes=200)

    def probe(num: int, *failed: str) -> Probe:
        return Probe(num_failed=0, num_episodes=num, mean_return=1.0, edge_failed=failed)

    assert still_hard(("a", "b"), probe(20, "c"), config) == ("c", "a", "b"), "it was broken off before it saw b fail"
    assert still_hard(("a", "b"), probe(20, "b"), config) == ("b", "a")
    assert still_hard(("a", "b"), probe(200, "b"), config) == ("b",)
    assert still_hard(("a", "b"), probe(200), config) == ()
