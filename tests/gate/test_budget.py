"""The error budget: trying often does not wear the gate down."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from flywheel.config import GateConfig
from flywheel.gate import SafetyGate
from flywheel.gate.sequential import aim
from flywheel.task import Limits
from flywheel.tasks.cartpole import cartpole
from flywheel.testing import BAD, GOOD, load_linear
from tests.gate.test_sequential import exact

LIMIT = 0.05
TASK = dataclasses.replace(cartpole, limits=Limits(max_failure_rate=LIMIT, max_latency_s=60.0))
GATE = SafetyGate(TASK, GateConfig(latency_calls=50))


def test_what_all_candidates_may_spend_is_the_budget() -> None:
    budget = GateConfig().budget
    allowances = [GATE.allowance(tries) for tries in range(10_000)]
    assert allowances[0] == budget / 2
    assert all(later < earlier for earlier, later in itertools.pairwise(allowances))
    assert 0.999 * budget < sum(allowances) < budget


def test_ten_bad_candidates_in_a_row_are_hardly_better_off_than_one() -> None:
    one = exact(LIMIT, LIMIT)[0]
    ten = [exact(LIMIT, LIMIT, GATE.allowance(tries))[0] for tries in range(10)]
    assert ten[0] == one and one < sum(ten) < GateConfig().budget


@pytest.mark.parametrize("tries", [30, 100])
def test_a_good_policy_still_passes_after_many_bad_ones(tries: int) -> None:
    assert not GATE.is_spent(tries)
    assert exact(0.01, LIMIT, GATE.allowance(tries))[0] >= 0.99
    assert exact(aim(LIMIT), LIMIT, GATE.allowance(tries))[0] >= 0.5


def test_a_later_candidate_needs_more_simulations() -> None:
    first, later = (GATE.judge(load_linear(TASK), seed=1, now=0.0, tries=tries) for tries in (0, 50))
    assert first.outcome == later.outcome == "pass" and (first.tries, later.tries) == (0, 50)
    assert len(first.trials) < len(later.trials)


def test_where_the_budget_is_spent_nothing_is_simulated_and_nothing_passes() -> None:
    tries = next(tries for tries in range(10_000) if GATE.is_spent(tries))
    assert not GATE.is_spent(tries - 1) and GATE.is_spent(tries + 1) and not GATE.is_spent(0)
    for gains in (GOOD, BAD):
        verdict = GATE.judge(load_linear(TASK, gains), seed=1, now=0.0, tries=tries)
        assert verdict.outcome == "inconclusive" and not verdict.trials
        (check,) = verdict.checks
        assert check.name == "budget" and check.passed is None
        assert f"{tries} candidates were judged since production last confirmed a release" in check.note
        assert "flywheel budget --refill" in check.note
