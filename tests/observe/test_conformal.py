"""Conformal bets: fair by construction, quick where a change is there."""

from __future__ import annotations

import numpy as np
import pytest

from flywheel.observe.monitors.conformal import NUM_BETS, WINDOW, Conformal, Typical, drift_factors, size_factors
from flywheel.observe.monitors.shiryaev_roberts import ShiryaevRoberts


@pytest.mark.parametrize("num", [1, 2, 3, 7, 50, 51, 100, WINDOW + 1])
def test_every_bet_is_fair_under_uniform_ranks(num: int) -> None:
    p_values = np.arange(1, num + 1) / num
    sizes = np.array([size_factors(np.array([p, p]), num) for p in p_values])
    assert sizes.shape == (num, 2 * NUM_BETS) and np.all(sizes.mean(axis=0) <= 1.0 + 1e-9) and sizes.min() > 0.0
    drifts = drift_factors(num)
    assert np.allclose(drifts.mean(axis=1), 1.0) and drifts.min() > 0.0
    assert np.all(np.diff(drifts, axis=1) <= 0.0), "a tie, which counts as a lower rank, never gains"


def test_factors_have_a_mean_of_one_whatever_the_scores_are() -> None:
    rng = np.random.default_rng(0)
    total, num = 0.0, 3000
    for start in range(30):
        bets = Conformal(1, 2)
        for i in range(num // 30):
            skewed = np.exp(rng.normal(size=3) * (1 + start % 3))
            factors = bets.factors(skewed)
            total += factors.mean() if i else 1.0
    assert total / num == pytest.approx(1.0, abs=0.15)


def test_a_small_drift_of_one_number_adds_up_in_either_direction_and_none_stays_quiet() -> None:
    rng = np.random.default_rng(1)
    for sign in (-1.0, 1.0):
        bets, weights = Conformal(1, 10), Conformal.weights(1, 10)
        detector = ShiryaevRoberts(len(weights), weights)
        for i in range(1000):
            assert detector.update(bets.factors(rng.normal(size=11)), f"clean-{i}") < 80_000
        for delay in range(1, 200):
            score = rng.normal(size=11)
            score[4] += sign
            if detector.update(bets.factors(score), f"changed-{delay}") >= 80_000:
                break
        assert detector.evidence >= 80_000 and delay < 80
        assert detector.onset.startswith("changed") or int(detector.onset.split("-")[1]) > 900


def test_scores_are_ranked_among_the_last_ones_only() -> None:
    bets = Conformal(1, 0)
    for i in range(WINDOW):
        bets.factors(np.array([1000.0 + i]))
    for i in range(WINDOW):
        bets.factors(np.array([float(i)]))
    assert len(bets) == WINDOW
    assert bets.factors(np.array([WINDOW + 1.0])).max() > 100.0, "the old, larger ones are forgotten"


def test_the_distance_from_what_is_typical_knows_correlations_and_directions_never_seen() -> None:
    rng = np.random.default_rng(2)
    one = rng.normal(size=500)
    typical = Typical(
        [np.array([5.0 + x, 5.0 + x + 0.1 * e, 7.0]) for x, e in zip(one, rng.normal(size=500), strict=True)]
    )
    assert typical.distance(np.array([6.0, 6.0, 7.0])) < 3.0
    assert typical.distance(np.array([6.0, 4.0, 7.0])) > 20.0, "each alone is usual, both together are not"
    assert typical.distance(np.array([5.0, 5.0, 8.0])) > 1e6
    assert np.isfinite(Typical([np.zeros(3)]).distance(np.ones(3)))
