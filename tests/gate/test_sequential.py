"""The gate's statistics: error held at every stopping time, power where it is needed, intervals that agree."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import beta

from flywheel.gate.sequential import (
    Side,
    aim,
    bounds,
    evidence,
    log_evidence,
    log_mean_evidence,
    mean_bounds,
    mean_evidence,
    worse,
)

ERROR = 0.05
ENOUGH = np.log(1 / ERROR)
NUM = 1000


def settled(limit: float, side: Side, looks: list[int]) -> list[NDArray[np.bool_]]:
    """Return, for each look, whether the evidence is enough at 0, 1, … failures."""
    return [log_evidence(np.arange(n + 1), n, limit, side) >= ENOUGH for n in looks]


def exact(rate: float, limit: float, error: float = ERROR, num: int = NUM) -> tuple[float, float, float]:
    """Return P(pass), P(fail) and mean simulations of the gate's test, by dynamic programming over failures."""
    chances, passes, fails, sims = np.ones(1), 0.0, 0.0, 0.0
    for n in range(1, num + 1):
        chances = np.convolve(chances, [1 - rate, rate])
        k = np.arange(n + 1)
        passed = log_evidence(k, n, limit, "below") >= -np.log(error)
        refused = log_evidence(k, n, aim(limit), "above") >= ENOUGH
        assert not (passed & refused & (chances > 0)).any()
        passes += chances[passed].sum()
        fails += chances[refused].sum()
        sims += n * chances[passed | refused].sum()
        chances = np.where(passed | refused, 0.0, chances)
    return passes, fails, sims + num * chances.sum()


@pytest.mark.parametrize("limit", [0.01, 0.05, 0.2, 0.9])
def test_a_policy_at_the_limit_passes_and_one_at_the_aim_is_refused_at_most_with_the_error(limit: float) -> None:
    assert 0 < exact(limit, limit)[0] <= ERROR
    assert 0 < exact(aim(limit), limit)[1] <= ERROR


@pytest.mark.parametrize("side", ["below", "above"])
def test_the_error_is_held_in_simulation(side: Side) -> None:
    limit, num_streams = 0.05, 20_000
    table = settled(limit, side, list(range(1, NUM + 1)))
    edges = np.array([np.flatnonzero(row)[-1 if side == "below" else 0] if row.any() else -1 for row in table])
    rng = np.random.default_rng(7)
    failures = np.cumsum(rng.random((num_streams, NUM), dtype=np.float32) < limit, axis=1, dtype=np.int16)
    crossed = (failures <= edges) if side == "below" else (failures >= edges) & (edges >= 0)
    num_crossed = int(crossed.any(axis=1).sum())
    assert 0 < beta.ppf(0.025, num_crossed, num_streams - num_crossed + 1) <= ERROR


@pytest.mark.parametrize(
    ("rate", "least_pass", "most_sims"), [(0.005, 0.999, 120), (0.01, 0.99, 150), (0.02, 0.95, 250)]
)
def test_good_policies_pass_soon(rate: float, least_pass: float, most_sims: float) -> None:
    passes, _, sims = exact(rate, 0.05)
    assert passes >= least_pass and sims <= most_sims


@pytest.mark.parametrize(
    ("rate", "most_pass", "most_sims"), [(0.05, 0.05, 300), (0.06, 0.02, 200), (0.08, 0.001, 90), (0.3, 1e-6, 20)]
)
def test_bad_policies_do_not_pass_and_are_refused_soon(rate: float, most_pass: float, most_sims: float) -> None:
    passes, fails, sims = exact(rate, 0.05)
    assert passes <= most_pass and fails >= 0.94 and sims <= most_sims


@given(st.integers(1, 2000), st.floats(0, 1), st.sampled_from([0.2, 0.05, 0.001]), st.floats(0.001, 0.999))
def test_bounds_and_evidence_say_the_same(num: int, share: float, error: float, limit: float) -> None:
    failures = round(share * num)
    lower, upper = bounds(failures, num, error)
    assert 0 <= lower <= failures / num <= upper <= 1
    if abs(limit - upper) > 1e-9:
        assert (evidence(failures, num, limit, "below") >= 1 / error) == (limit > upper)
    if abs(limit - lower) > 1e-9:
        assert (evidence(failures, num, limit, "above") >= 1 / error) == (limit < lower)


def test_nothing_seen_says_nothing() -> None:
    assert bounds(0, 0, ERROR) == (0.0, 1.0) and mean_bounds([], ERROR) == (-1.0, 1.0)
    for side in ("below", "above"):
        assert evidence(0, 0, 0.05, side) == pytest.approx(1) and mean_evidence([], 0.05, side) == pytest.approx(1)


def test_evidence_is_a_martingale_at_the_limit() -> None:
    for side in ("below", "above"):
        for failures, num in ((0, 3), (2, 40), (9, 100)):
            now, same, more = (
                evidence(k, n, 0.05, side) for k, n in ((failures, num), (failures, num + 1), (failures + 1, num + 1))
            )
            assert 0.95 * same + 0.05 * more == pytest.approx(now)


@pytest.mark.parametrize("side", ["below", "above"])
@pytest.mark.parametrize("chances", [(0.08, 0.03), (0.05, 0.0), (0.5, 0.45)])
def test_the_error_is_held_for_paired_differences(side: Side, chances: tuple[float, float]) -> None:
    up, down = chances
    limit, num_streams = up - down, 5000
    rng = np.random.default_rng(11)
    differences = rng.choice([1.0, -1.0, 0.0], size=(NUM, num_streams), p=[up, down, 1 - up - down])
    gain = (limit - differences) / (1 - limit) if side == "below" else (differences - limit) / (1 + limit)
    fractions = (np.arange(20) + 0.5) / 20
    capital, most = np.ones((20, num_streams)), np.ones(num_streams)
    for now in gain:
        capital *= 1 + fractions[:, None] * now
        most = np.maximum(most, capital.mean(axis=0))
    assert np.log(capital[:, 0].mean()) == pytest.approx(log_mean_evidence(differences[:, 0], limit, side)[-1])
    num_crossed = int((most >= 1 / ERROR).sum())
    assert beta.ppf(0.975, num_crossed + 1, num_streams - num_crossed) <= ERROR


def test_an_equal_policy_is_seen_at_the_first_look_and_a_much_worse_one_too() -> None:
    assert mean_evidence(np.zeros(100), 0.05, "below") >= 1 / ERROR
    assert mean_evidence(np.ones(100), 0.05, "above") >= 1 / ERROR
    lower, upper = mean_bounds(np.zeros(100), ERROR)
    assert -0.05 < lower < 0 < upper < 0.05


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.3])
def test_an_equal_policy_is_found_worse_no_more_often_than_the_error_says(rate: float) -> None:
    rng, num_runs = np.random.default_rng(5), 3000
    new, old = rng.random((2, num_runs, 300)) < rate
    found = sum(worse(differences, 300, ERROR, 0.0)[0] is True for differences in new * 1.0 - old)
    assert beta.ppf(0.025, found, num_runs - found + 1) <= ERROR and (found > 0.5 * ERROR * num_runs or rate < 0.05)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=200), st.floats(-0.99, 0.99))
def test_mean_bounds_and_evidence_say_the_same(differences: list[float], limit: float) -> None:
    lower, upper = mean_bounds(differences, ERROR)
    assert -1 <= lower <= np.mean(differences) + 1e-9 and np.mean(differences) - 1e-9 <= upper <= 1
    if abs(limit - upper) > 1e-6:
        assert (mean_evidence(differences, limit, "below") >= 1 / ERROR) == (limit > upper)
    if abs(limit - lower) > 1e-6:
        assert (mean_evidence(differences, limit, "above") >= 1 / ERROR) == (limit < lower)
