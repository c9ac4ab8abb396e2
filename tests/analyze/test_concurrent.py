"""The control says whose doing an alarm is; it is wrong no oftener than stated, however often it is asked."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from flywheel.analyze.concurrent import ERROR, MEASURES, RATIOS, Blame, _above, _apart, _upper_mean, blame
from flywheel.arms import Arms, Count


def counted(num: int, failed: int, loss: float | None = None) -> Count:
    return Count(num=num, num_failed=failed, loss=float(failed) if loss is None else loss)


def arms(champion: Count, control: Count, former: Count | None = None, share: float = 0.1, **sides: Count) -> Arms:
    """Return arms whose alarm's evidence begins with the release, unless there are `sides` before it."""
    before = (sides.get("champion_before", Count()), sides.get("control_before", Count()))
    return Arms(
        champion="new", control="old", share=share, counted_from=0.0, since=1.0, former=former or counted(2000, 40),
        before=before, after=(champion, control),
    )  # fmt: skip


def test_the_release_did_it_where_the_policy_before_it_does_as_well_as_ever() -> None:
    found = blame(arms(counted(120, 19), counted(130, 2), share=0.5))
    assert found.whose == "policy" and found.policy >= found.acts_at == -math.log(ERROR)
    assert found.reason == (
        "the policy before it does as well as ever beside it (2 of 130 failed against 19 of 120): the release did it"
    )


def test_the_world_did_it_where_the_policy_before_it_got_worse_too() -> None:
    found = blame(arms(counted(450, 100), counted(50, 12)))
    assert found.whose == "world" and found.world >= found.acts_at
    assert found.reason == (
        "the policy before it got worse, too (12 of 50 failed since then, 40 of 2,000 before): the world did it, and "
        "going back is no cure"
    )


def test_too_few_episodes_leave_it_open_and_so_does_a_world_that_only_hurts_the_release_more() -> None:
    for few in (arms(counted(18, 9), counted(2, 0)), arms(Count(), Count()), arms(counted(40, 9), Count())):
        found = blame(few)
        assert found.whose == "unknown" and "seen too little" in found.reason
    both = blame(arms(counted(900, 500), counted(100, 15)))
    assert both.whose == "unknown" and "both did it" in both.reason
    assert min(both.policy, both.world) >= both.acts_at


def test_a_control_without_a_record_can_clear_nobody_of_the_world() -> None:
    assert blame(arms(counted(450, 100), counted(50, 12), former=Count())).world < 0.1


def test_a_share_that_is_not_the_one_given_says_nothing_of_whose_failures_they_are() -> None:
    found = blame(arms(counted(1000, 200), counted(20, 0)))
    assert found == Blame(whose="unknown", policy=0.0, world=0.0, acts_at=found.acts_at, reason=found.reason)
    assert "20 of 1,020 episodes" in found.reason and "10%" in found.reason
    assert blame(arms(counted(1000, 200), Count(num=20, num_lost=90))).whose != "unknown", "lost ones began there, too"


def test_losses_count_where_nothing_fails() -> None:
    worse, usual = counted(900, 0, 540.0), counted(2000, 0, 100.0)
    assert blame(arms(worse, counted(100, 0, 5.0), former=usual)).whose == "policy"
    assert blame(arms(worse, counted(100, 0, 60.0), former=usual)).whose == "world"


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5])
def test_what_is_betted_on_whose_a_failure_is_is_fair_where_both_fail_alike(share: float) -> None:
    num = 60
    k = np.arange(num + 1)
    gains = np.array([math.exp(_apart(float(num - i), float(i), share)) for i in k])
    assert float(binom.pmf(k, num, share) @ gains) == pytest.approx(1.0)
    assert float(binom.pmf(k, num, min(0.99, 1.5 * share)) @ gains) < 1.0, "a control that is worse"


@pytest.mark.parametrize("limit", [0.01, 0.2, 0.9])
def test_what_is_betted_on_a_control_that_got_worse_is_fair_at_the_limit(limit: float) -> None:
    num = 60
    k = np.arange(num + 1)
    gains = np.array([math.exp(_above(float(i), num, limit)) for i in k])
    assert float(binom.pmf(k, num, limit) @ gains) == pytest.approx(1.0)
    assert float(binom.pmf(k, num, 0.5 * limit) @ gains) < 1.0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.floats(0.01, 0.9))
def test_sums_of_losses_bet_no_better_than_the_losses_one_by_one(losses: list[float], limit: float) -> None:
    x = np.array(losses)[:, None]
    odds = RATIOS * limit / (1 - limit)
    each = np.log1p(x * (odds / (1 + odds) / limit - 1) + (1 - x) * (1 / (1 + odds) / (1 - limit) - 1)).sum(axis=0)
    assert _above(sum(losses), len(losses), limit) <= np.logaddexp.reduce(each) - math.log(len(RATIOS)) + 1e-9


@given(st.integers(1, 3000), st.floats(0, 1))
def test_the_upper_end_of_a_mean_is_above_it_and_no_more_likely_than_stated(num: int, mean: float) -> None:
    limit = _upper_mean(mean * num, num, 0.01)
    assert mean <= limit <= 1.0
    if mean > 0.0 and limit < 1.0:
        apart = mean * math.log(mean / limit) + (1 - mean) * math.log((1 - mean) / (1 - limit))
        assert num * apart == pytest.approx(-math.log(0.01), rel=1e-4, abs=1e-4)


def test_it_is_wrong_no_oftener_than_stated_although_it_is_asked_again_and_again() -> None:
    rng, num, wrong = np.random.default_rng(7), 300, {"policy": 0, "world": 0}
    for truth, rates in (("policy", (0.12, 0.02)), ("world", (0.12, 0.12))):
        for _ in range(num):
            sides, said = [counted(0, 0), counted(0, 0)], "unknown"
            former = counted(1500, int(rng.binomial(1500, 0.02)))
            for _ in range(30):  # it is asked after every 40 episodes
                k = int(rng.binomial(40, 0.1))
                for side, more, rate in zip((0, 1), (40 - k, k), rates, strict=True):
                    sides[side] = sides[side].plus(counted(more, int(rng.binomial(more, rate))))
                said = blame(arms(sides[0], sides[1], former=former)).whose
                if said != "unknown":
                    break
            wrong[truth] += said not in (truth, "unknown")
    limit = float(binom.ppf(0.999, num, ERROR))
    assert max(wrong.values()) <= limit, wrong
    assert sum(MEASURES.values()) == 1.0
