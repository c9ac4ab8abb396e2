"""The search for failures: it finds a rare one whose margin falls towards it, and the nearest of many."""

from __future__ import annotations

import dataclasses

import numpy as np

from experiments import gate_coverage
from flywheel.config import GateConfig
from flywheel.gate import SafetyGate
from flywheel.gate.search import search
from flywheel.gate.trials import Alone
from flywheel.tapes import SEARCH
from flywheel.task import Limits
from flywheel.tasks.cartpole import cartpole
from flywheel.testing import GOOD, SHORT_POLE, load_linear

SLOPED = gate_coverage.trap(gate_coverage.sloped)
TASK = dataclasses.replace(cartpole, limits=Limits(max_latency_s=60.0))


def test_a_rare_failure_is_found_by_its_margin() -> None:
    policy, found = load_linear(SLOPED, [1.0]), 0
    for seed in range(10):
        gate_coverage.set_trap(np.random.default_rng(seed), 0.0)
        check, worst = search(SLOPED, Alone(SLOPED, 256), policy, SLOPED.nominal, num=500, seed=seed, now=0.0)
        found += check.value < 1.0
        assert check.passed and (check.value < 1.0) == worst[0].failed and worst[0].scenario == SEARCH
    assert found == 10


def test_it_ends_with_its_number_of_simulations_and_is_the_same_for_a_seed() -> None:
    class Counting(Alone):
        played = 0

        def play(self, policy, situations, now):  # type: ignore[no-untyped-def]
            Counting.played += len(situations)
            return super().play(policy, situations, now)

    gate_coverage.set_trap(np.random.default_rng(1), 0.0)
    policy = load_linear(SLOPED, [1.0])
    one, other = (
        search(SLOPED, Counting(SLOPED, 256), policy, SLOPED.nominal, num=130, seed=4, now=0.0) for _ in range(2)
    )
    assert one == other and Counting.played == 260


def test_the_nearest_failure_is_told_and_refuses_nobody() -> None:
    gate = SafetyGate(TASK, GateConfig(latency_calls=20, search_sims=300))
    near = {}
    for name, gains in (("good", GOOD), ("short", SHORT_POLE)):
        verdict = gate.judge(load_linear(TASK, gains), seed=3, now=0.0)
        check = {c.name: c for c in verdict.checks}[SEARCH]
        assert verdict.outcome == "pass" and check.passed and "the nearest one" in check.note
        near[name] = check.value
        worst = [t for t in verdict.trials if t.scenario == SEARCH]
        assert worst and all(t.failed for t in worst)
        assert gate.rerun(worst[0], load_linear(TASK, gains)) == worst[0]
    assert near["short"] < near["good"] < 1.0


def test_without_a_margin_there_is_nothing_to_follow() -> None:
    for task, num in ((dataclasses.replace(TASK, margin=None), 500), (TASK, 0)):
        check, worst = search(task, Alone(task, 256), load_linear(task), task.nominal, num=num, seed=1, now=0.0)
        assert check.passed and worst == () and check.note.startswith("none: ")
