"""Worlds beside the nominal ones: what they hold, how far they go, and what two policies are compared by there."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel.config import GateConfig
from flywheel.gate import SafetyGate, checks
from flywheel.gate.stress import (
    LEVELS,
    PILOT,
    Gauge,
    all_cells,
    cell_situations,
    cells_failed,
    cells_of,
    cells_tried,
    gauge,
    stress_situations,
)
from flywheel.gate.trials import Alone, Situation
from flywheel.records import Trial
from flywheel.tapes import CELLS, STRESS
from flywheel.task import Limits, Parameter, Task
from flywheel.tasks.cartpole import cartpole
from flywheel.testing import BAD, GOOD, SHORT_POLE, load_linear

TASK = dataclasses.replace(cartpole, limits=Limits(max_latency_s=60.0))
CREW = Alone(TASK, 256)
CONFIG = GateConfig(latency_calls=20, search_sims=0)


def with_parameters(*some: Parameter) -> Task:
    return dataclasses.replace(TASK, parameters=some, edge_cases=(), drift={})


def trial(situation: Situation | None = None, **told: object) -> Trial:
    return Trial(
        **{
            "seed": 1, "parameters": situation.parameters if situation else {}, "total": 500.0, "length": 500,
            "scenario": situation.scenario if situation else STRESS, "failed": False, "margin": 1.0, "episode": "e",
            **told,
        }  # type: ignore[arg-type]
    )  # fmt: skip


def test_a_stressed_world_does_not_depend_on_how_many_are_asked_for() -> None:
    many = stress_situations(TASK, 7, "judge", 0, 40, TASK.nominal, 0.5)
    assert stress_situations(TASK, 7, "judge", 10, 20, TASK.nominal, 0.5) == many[10:20]
    assert stress_situations(TASK, 8, "judge", 0, 40, TASK.nominal, 0.5) != many
    assert len({world.seed for world in many}) == 40


@given(st.floats(0.0, 1.0), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_stressed_worlds_go_as_far_as_they_may(stretch: float, seed: int) -> None:
    values = {**TASK.nominal, "length": 3.0}
    for world in stress_situations(TASK, seed, "judge", 0, 20, values, stretch):
        for each in TASK.parameters:
            low, high = (values[each.name] + stretch * (end - values[each.name]) for end in (each.low, each.high))
            assert low - 1e-9 <= world.parameters[each.name] <= high + 1e-9


@given(st.integers(1, 6), st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_few_worlds_hold_every_pair_of_settings(num: int, seed: int) -> None:
    task = with_parameters(*(Parameter(f"p{i}", 0.5, -float(i), 1.0 + i) for i in range(num)))
    worlds = cell_situations(task, seed, "judge", task.nominal)
    assert cells_tried(task, [trial(world) for world in worlds]) == all_cells(task)
    assert len(all_cells(task)) == (LEVELS if num == 1 else math.comb(num, 2) * LEVELS**2)
    assert len(worlds) <= 50
    check = checks.coverage(task, {CELLS: [trial(world) for world in worlds], STRESS: []}, {CELLS: [], STRESS: []})
    assert check.passed and check.value == 1.0
    short = checks.coverage(task, {CELLS: [trial(world) for world in worlds[1:]], STRESS: []}, {CELLS: [], STRESS: []})
    assert short.passed is None and short.value < 1.0


def test_a_task_without_ranges_has_nothing_to_cover_and_says_so() -> None:
    fixed = with_parameters(Parameter("length", 0.5, 0.5, 0.5))
    assert cell_situations(fixed, 1, "judge", fixed.nominal) == [] and all_cells(fixed) == set()
    check = checks.coverage(fixed, {CELLS: [], STRESS: []}, {CELLS: [], STRESS: []})
    assert check.passed and "no parameters that have a range" in check.note


def test_a_cell_failed_where_nothing_in_it_survived() -> None:
    one, other = ({**TASK.nominal, "length": length} for length in (0.2, 3.9))
    trials = [trial(parameters=one, failed=True), trial(parameters=other, failed=True), trial(parameters=other)]
    assert cells_failed(TASK, trials) == set(cells_of(TASK, one)) - set(cells_of(TASK, other))
    assert (("length", 0), ("force_mag", 1)) in cells_failed(TASK, trials)


def test_the_policy_in_service_says_how_far_worlds_are_stressed() -> None:
    found = {
        name: gauge(TASK, CREW, load_linear(TASK, gains), TASK.nominal, seed=5, now=0.0)
        for name, gains in (("good", GOOD), ("short", SHORT_POLE), ("bad", BAD))
    }
    assert found["good"].stretch > found["short"].stretch > 0
    assert found["good"].is_telling and 0 < found["good"].near < 1
    assert found["bad"] == Gauge(stretch=0.0, near=0.0, num_failed=PILOT) and not found["bad"].is_telling


def test_a_policy_that_is_worse_only_under_stress_is_refused_for_that() -> None:
    gate = SafetyGate(TASK, CONFIG)
    verdict = gate.judge(load_linear(TASK, SHORT_POLE), baseline=load_linear(TASK, GOOD), seed=3, now=0.0)
    assert verdict.outcome == "fail" and [c.name for c in verdict.checks if c.passed is False] == ["stress"]
    (check,) = (c for c in verdict.checks if c.name == "stress")
    assert check.value > 0 and check.interval[0] > 0 and "the policy in service" in check.note
    better = gate.judge(load_linear(TASK, GOOD), baseline=load_linear(TASK, SHORT_POLE), seed=3, now=0.0)
    assert better.outcome == "pass"
    pairs = [(t.scenario, t.seed, t.parameters) for t in verdict.rivals]
    assert pairs == [(t.scenario, t.seed, t.parameters) for t in verdict.trials][: len(pairs)]


def test_an_identical_policy_is_never_refused() -> None:
    gate, policy = SafetyGate(TASK, CONFIG), load_linear(TASK, SHORT_POLE)
    for seed in range(3):
        verdict = gate.judge(policy, baseline=policy, seed=seed, now=0.0)
        assert verdict.outcome == "pass"
        assert {c.name: c.value for c in verdict.checks}["stress"] == 0.0


def test_a_cure_is_not_held_to_what_a_failing_policy_mastered_elsewhere() -> None:
    gate, long = SafetyGate(TASK, CONFIG), {"length": 2.0}
    verdict = gate.judge(
        load_linear(TASK, GOOD), baseline=load_linear(TASK, SHORT_POLE), parameters=long, seed=3, now=0.0
    )
    (check,) = (c for c in verdict.checks if c.name == "stress")
    assert verdict.outcome == "pass" and "would say no more" in check.note


@pytest.mark.parametrize("worse", [0.0, 0.1])
def test_equal_policies_are_refused_rarely_and_worse_ones_mostly(worse: float) -> None:
    rng, refused, runs = np.random.default_rng(3), 0, 200
    known = Gauge(stretch=0.5, near=0.1, num_failed=3)
    for _ in range(runs):
        old, new = (rng.random(200) < rate for rate in (0.15, 0.15 + worse))
        pairs = ([trial(failed=bool(fell)) for fell in some] for some in (new, old))
        refused += checks.stress(TASK, *pairs, known, 200, 0.05).passed is False
    assert refused <= 0.05 * runs + 8 if not worse else refused >= 0.4 * runs


def test_near_misses_count() -> None:
    known = Gauge(stretch=0.5, near=0.2, num_failed=0)
    old = [trial(margin=0.5) for _ in range(100)]
    check = checks.stress(TASK, [trial(margin=0.1) for _ in range(100)], old, known, 200, 0.05)
    assert check.value == pytest.approx(0.25) and check.passed is False
    fine = checks.stress(TASK, [trial(margin=0.25) for _ in range(100)], old, known, 200, 0.05)
    assert fine.value == 0.0 and fine.passed is True
