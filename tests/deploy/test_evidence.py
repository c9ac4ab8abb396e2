"""The canary's bets are fair: whatever the rates, none gains on the average while its answer is no."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import binom

from flywheel.deploy import evidence

RATES = st.floats(0.0, 1.0)
SHARES = st.sampled_from([0.01, 0.1, 0.5, 0.9])
MARGINS = st.sampled_from([0.005, 0.02, 0.2])


def chances(champion: float, challenger: float, share: float) -> list[tuple[bool, bool, float]]:
    """Return (failed, is the challenger's, probability) of all that an episode can be."""
    return [
        (failed, mine, (share if mine else 1.0 - share) * (rate if failed else 1.0 - rate))
        for failed, (mine, rate) in itertools.product([True, False], [(True, challenger), (False, champion)])
    ]


@given(RATES, RATES, SHARES)
def test_no_bet_on_worse_gains_while_the_challenger_is_not(one: float, other: float, share: float) -> None:
    challenger, champion = sorted((one, other))
    gain = sum(p * np.exp(evidence.worse(f, mine, share)) for f, mine, p in chances(champion, challenger, share))
    assert np.all(gain <= 1.0 + 1e-9)
    even = sum(p * np.exp(evidence.worse(f, mine, share)) for f, mine, p in chances(champion, champion, share))
    assert even == pytest.approx(np.ones(len(evidence.RATIOS)))


@given(RATES, RATES, SHARES, MARGINS, st.lists(st.tuples(st.integers(0, 3000), RATES), min_size=2, max_size=2))
def test_no_bet_on_good_gains_while_the_challenger_fails_oftener_by_the_margin(
    champion: float, more: float, share: float, margin: float, before: list[tuple[int, float]]
) -> None:
    champion *= 1.0 - margin
    challenger = champion + margin + more * (1.0 - champion - margin)
    num, num_failed = [n for n, _ in before], [round(n * rate) for n, rate in before]
    gain = sum(
        p * np.exp(evidence.good(f, mine, share, margin, num, num_failed))
        for f, mine, p in chances(champion, challenger, share)
    )
    assert np.all(gain <= 1.0 + 1e-9)


@given(SHARES)
def test_no_bet_on_lost_episodes_gains_where_both_arms_lose_alike(share: float) -> None:
    mine, other = (np.exp(evidence.whose(whose, share, evidence.APART)) for whose in (True, False))
    assert share * mine + (1.0 - share) * other == pytest.approx(np.ones(len(evidence.APART)))


@given(st.floats(1e-6, 0.999), st.floats(1e-6, 0.999), SHARES, MARGINS)
def test_the_nearest_worse_pair_is_likeliest(champion: float, challenger: float, share: float, margin: float) -> None:
    if challenger >= champion + margin or champion >= 1.0 - margin - 1e-5:
        return

    def slope(q: float) -> float:
        of_challenger = (q + margin - challenger) / ((q + margin) * (1.0 - q - margin))
        return share * of_challenger + (1.0 - share) * (q - champion) / (q * (1.0 - q))

    found = float(evidence.nearest_worse(champion, challenger, share, margin))
    assert found == pytest.approx(brentq(slope, 1e-12, 1.0 - margin - 1e-12), abs=1e-6)


@given(st.integers(0, 200), st.floats(0.0, 1.0), st.floats(0.001, 0.999), st.sampled_from([0.05, 0.005]))
def test_failures_above_a_limit_are_as_rare_at_the_limit_as_the_error(
    num: int, rate: float, limit: float, error: float
) -> None:
    num_failed = round(num * rate)
    if evidence.is_above(num_failed, num, limit, error):
        assert binom.sf(num_failed - 1, num, limit) <= error and num_failed > num * limit
        assert evidence.is_above(num, num, limit, error), "more failures say so, too"


def test_a_champion_that_fails_is_found_out_by_two_episodes() -> None:
    assert evidence.is_above(2, 2, 0.05, 0.05) and not evidence.is_above(1, 1, 0.05, 0.04)
    assert not evidence.is_above(4, 200, 0.05, 0.05) and not evidence.is_above(9, 9, 1.0, 0.05)
    assert not evidence.is_above(0, 0, 0.0, 0.05) and evidence.is_above(1, 9, 0.0, 0.05)


def test_weights_are_weights() -> None:
    for weights in (evidence.WORSE, evidence.GOOD, evidence.LOST):
        assert np.exp(weights).sum() == pytest.approx(1.0)
