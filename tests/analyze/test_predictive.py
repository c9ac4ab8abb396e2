"""Is the gate still predictive: quiet courses contradict nothing, a worse world does, and what follows from it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import pytest

from flywheel.analyze.predictive import (
    ERRORS,
    Compared,
    compare,
    doubt,
    failure_evidence,
    judged_by,
    shortfall_evidence,
)
from flywheel.outcomes import Outcome
from flywheel.records import End, Release, Trial, Verdict
from flywheel.tapes import NOMINAL

RANGE = (0.0, 500.0)


def trial(number: int, failed: bool, total: float | None = None, scenario: str = NOMINAL) -> Trial:
    total = (100.0 if failed else 500.0) if total is None else total
    return Trial(
        seed=number, parameters={}, scenario=scenario, total=total, length=1, failed=failed, margin=math.nan, episode=""
    )


def verdict(num_failed: int = 6, num: int = 300, **more: object) -> Verdict:
    given = Verdict(
        digest="policy", baseline=None, task="", config="", simulator="s0", outcome="pass", checks=(),
        trials=tuple(trial(i, i < num_failed) for i in range(num)), seed=0, cost_s=0.0, judged_at=1.0, valid_until=9.0,
    )  # fmt: skip
    return dataclasses.replace(given, **more)  # type: ignore[arg-type]


def outcome(number: int, failed: bool, total: float | None = None, end: End = "truncated") -> Outcome:
    total = (100.0 if failed else 500.0) if total is None else total
    return Outcome(
        started_at=float(number), id=str(number), digest="policy", end=end, failed=failed, total=total, num_steps=1,
        ended_at=0.0,
    )  # fmt: skip


def outcomes(rate: float, num: int, seed: int = 0) -> list[Outcome]:
    failed = np.random.default_rng(seed).random(num) < rate
    return [outcome(i, bool(each)) for i, each in enumerate(failed)]


def compared(seen: Sequence[Outcome], **more: object) -> Compared:
    found = compare(verdict(**more), seen, gap=0.005, loss=0.02, span=RANGE)
    assert found is not None
    return found


def test_production_as_foretold_contradicts_nothing() -> None:
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(150):
        failed = rng.random(1500) < 0.02
        wrong += failure_evidence(failed, int(rng.binomial(300, 0.02)), 300, 0.005).max() >= -math.log(ERRORS[0])
    assert wrong <= 10  # at most 5 % of courses, each looked at after every episode
    assert not compared(outcomes(0.02, 1000)).is_contradicted
    assert not compared(outcomes(0.0, 1000)).is_contradicted


def test_production_that_fails_oftener_contradicts_the_gate() -> None:
    found = compared(outcomes(0.15, 400))
    assert found.is_contradicted and found.failures > found.shortfall
    assert "the gate foretold that 2.0% fail" in str(found) and "of 400 failed" in str(found)


def test_the_most_evidence_there_was_counts_whatever_came_later() -> None:
    bad, good = outcomes(0.3, 100), [outcome(1000 + i, False) for i in range(3000)]
    assert compared([*bad, *good]).is_contradicted


def test_a_lower_return_contradicts_the_gate_without_a_single_failure() -> None:
    rng = np.random.default_rng(1)
    low = [outcome(i, False, 300.0 + rng.normal(0, 20)) for i in range(200)]
    assert compared(low, num_failed=0).is_contradicted
    assert not compared([outcome(i, False, 495.0) for i in range(500)], num_failed=0).is_contradicted
    assert not len(shortfall_evidence([0.5], [0.9, 1.0, 0.8], 0.02)), "the gate saw so little that anything may be"


def test_without_a_range_the_gates_own_one_stands_for_it() -> None:
    spread = tuple(trial(i, False, float(total)) for i, total in enumerate(np.linspace(90.0, 110.0, 300)))
    given = verdict(trials=spread)
    low, same = ([outcome(i, False, total) for i in range(200)] for total in (20.0, 100.0))
    for seen, contradicts in ((low, True), (same, False)):
        found = compare(given, seen, gap=0.005, loss=0.02)
        assert found is not None and found.is_contradicted == contradicts


def test_only_nominal_trials_and_known_outcomes_are_compared() -> None:
    trials = (*(trial(i, False) for i in range(100)), trial(100, True, scenario="stress"))
    seen = [outcome(0, False), outcome(1, False, end="lost"), outcome(2, True, end="lost")]
    found = compare(verdict(trials=trials), seen, gap=0.005, loss=0.02, span=RANGE)
    assert found is not None
    assert (found.num_foretold, found.failed_foretold, found.num, found.num_failed) == (100, 0, 2, 1)
    assert compare(verdict(trials=()), seen, gap=0.005, loss=0.02) is None
    assert compare(verdict(), seen[1:2], gap=0.005, loss=0.02) is None


def test_the_last_passing_verdict_before_a_release_is_its_own() -> None:
    release = Release(digest="policy", stage="full", share=1.0, previous=None, released_at=5.0)
    some = [verdict(judged_at=at, outcome=how) for at, how in ((1.0, "pass"), (3.0, "pass"), (4.0, "fail"))]
    found = judged_by(release, [*some, verdict(judged_at=6.0)])
    assert found is not None and found.judged_at == 3.0
    assert judged_by(dataclasses.replace(release, digest="other"), some) is None


@pytest.mark.parametrize("has_parameters", [True, False])
def test_a_contradicted_simulator_lets_nothing_pass_until_it_is_another(has_parameters: bool) -> None:
    bad = compared(outcomes(0.2, 300))
    good, other = compared(outcomes(0.02, 300)), dataclasses.replace(compared(outcomes(0.02, 300)), simulator="s1")
    found = doubt([good, bad], "s0", has_parameters)
    assert found is not None and found.passed is None and found.value >= 1.0 == found.bound
    assert found.note.startswith("production contradicts the simulator: of policy policy")
    assert ("names no parameters" in found.note) != has_parameters and "analyze.sim_gap" in found.note
    assert doubt([bad], "s1", True) is None, "a calibrated one is another one"
    fine = doubt([other, bad], "s1", True)
    assert fine is not None and fine.passed is True and fine.value < 1.0
    assert doubt([other, bad], "s0", True) is None, "what it was before the last calibration is past"
    assert doubt([], "s0", True) is None
