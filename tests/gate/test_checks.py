"""Each check says yes, no or not yet, for the reason it states."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import pytest

from flywheel.gate import checks
from flywheel.records import Trial
from flywheel.task import Limits
from flywheel.tasks.cartpole import cartpole
from flywheel.testing import load_linear

LIMITS = Limits()


def trials(num: int, num_failed: int = 0, *, total: float = 500.0, scenario: str = "nominal") -> list[Trial]:
    return [
        Trial(
            seed=i,
            parameters={},
            scenario=scenario,
            total=9.0 if i < num_failed else total,
            length=9 if i < num_failed else 500,
            failed=i < num_failed,
            margin=math.nan,
            episode=str(i),
        )
        for i in range(num)
    ]


@pytest.mark.parametrize(
    ("num", "num_failed", "passed"),
    [(50, 0, None), (100, 0, True), (200, 0, True), (60, 20, False), (60, 1, None), (100, 2, None)],
)
def test_failure_rate(num: int, num_failed: int, passed: bool | None) -> None:
    check = checks.failure_rate(trials(num, num_failed), LIMITS, 0.05, 0.05)
    assert check.passed is passed and check.value == num_failed / num
    assert (check.interval[1] < check.bound) == (passed is True)


def test_what_comes_after_an_answer_does_not_change_it() -> None:
    first = [*trials(200), *trials(300, 300)]
    check = checks.failure_rate(first, LIMITS, 0.05, 0.05)
    assert check.passed and check.value == 0.6
    at = int(check.note.removeprefix("300 of 500 simulations failed, settled after "))
    assert checks.failure_rate(first[: at - 1], LIMITS, 0.05, 0.05).passed is None
    refused = checks.failure_rate(trials(100, 10), LIMITS, 0.05, 0.05)
    assert refused.passed is False and refused.note.endswith(": more than the 2.1% of a good policy")


def test_less_error_takes_more_simulations() -> None:
    def needed(error: float) -> int:
        return next(n for n in range(1, 2000) if checks.failure_rate(trials(n), LIMITS, error, 0.05).passed)

    assert needed(0.05) < needed(0.01) < needed(1e-4) < 400


def test_regression_without_a_policy_in_service_passes_and_says_so() -> None:
    check = checks.regression(cartpole, trials(100, 50), None, 0.05, 0.05)
    assert check.passed and check.note == "no policy in service"


@pytest.mark.parametrize(
    ("new", "old", "passed"),
    [
        (trials(100), trials(100), True),
        (trials(100, 30), trials(100), False),
        (trials(100, 5), trials(100), None),
        (trials(100, 5), trials(100, 5), True),
        (trials(100, 40), trials(100, 90), True),
        (trials(100, total=300.0), trials(100), False),
    ],
)
def test_regression(new: list[Trial], old: list[Trial], passed: bool | None) -> None:
    check = checks.regression(cartpole, new, old, 0.05, 0.05)
    assert check.passed is passed
    assert check.interval[0] <= check.value <= check.interval[1]


def test_loss_counts_a_failure_as_one_and_a_missed_return_by_its_share() -> None:
    assert checks.loss(cartpole, trials(1, 1)[0]) == 1.0
    assert checks.loss(cartpole, trials(1, total=400.0)[0]) == pytest.approx(0.2)
    assert checks.loss(cartpole, trials(1, total=600.0)[0]) == 0.0
    assert checks.loss(dataclasses.replace(cartpole, return_range=None), trials(1, total=1.0)[0]) == 0.0


def test_edge_cases_must_all_be_tried_and_mastered() -> None:
    tried = [trial for case in cartpole.edge_cases for trial in trials(4, scenario=case.name)]
    good = checks.edge_cases(tried, cartpole.edge_cases)
    assert good.passed and good.value == 1.0
    missing = checks.edge_cases(tried[4:], cartpole.edge_cases)
    assert missing.passed is False and missing.note == f"not mastered: {cartpole.edge_cases[0].name}"
    one = checks.edge_cases([*tried, *trials(1, 1, scenario="weak_motor")], cartpole.edge_cases)
    assert one.passed is False and one.value == pytest.approx(0.8) and one.note == "not mastered: weak_motor"
    some = [trial for case in cartpole.edge_cases for trial in trials(20, 2, scenario=case.name)]
    assert checks.edge_cases(some, cartpole.edge_cases, max_failed=2).passed
    assert checks.edge_cases(some, cartpole.edge_cases, max_failed=1).passed is False
    assert checks.edge_cases([], ()).passed


def test_cost_reads_the_99th_percentile_and_the_size() -> None:
    seconds, many = np.full((1, 500), 0.001), np.full((1, 50), 0.003)
    assert checks.cost(seconds, many, 1000, LIMITS).passed
    seconds[0, :4] = 1.0
    assert checks.cost(seconds, many, 1000, LIMITS).passed
    seconds[0, :10] = 1.0
    slow = checks.cost(seconds, many, 1000, LIMITS)
    assert slow.passed is False and slow.value == 1.0 and "median 1000 µs" in slow.note
    assert "64 at once 3000 µs; 1,000 of" in slow.note
    assert checks.cost(np.full((1, 500), 0.001), many, LIMITS.max_bytes + 1, LIMITS).passed is False


def test_the_policy_in_service_is_timed_beside_the_candidate_and_held_to_no_limit() -> None:
    both = np.array([np.full(500, 0.001), np.full(500, 0.1)])
    check = checks.cost(both, both, 1000, LIMITS)
    assert check.passed and ", 0.01 times the policy in service;" in check.note


def test_decisions_are_timed_one_by_one() -> None:
    def ticks() -> Iterator[float]:
        now = 0.0
        while True:
            yield now
            now += 0.25

    ticking = ticks()
    observations = np.zeros((3, 4), np.float32)
    policies = [load_linear(cartpole), load_linear(cartpole)]
    for batch in (1, 64):
        seconds = checks.time_decisions(policies, observations, 7, lambda: next(ticking), batch)
        assert seconds.tolist() == [[0.25] * 7] * 2
