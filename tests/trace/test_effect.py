"""The interval of an effect holds the truth as often as it says, rare failures included."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from flywheel.trace.carry import packed, unpacked
from flywheel.trace.effect import Effect, effect_of, effect_of_one, mean_interval, rate
from tests.trace.test_fork import SHORT, cartpole, played

Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]


def rare(share: float) -> Draw:
    """Return differences that are 0 but for a few great losses, as where an edit makes a policy fail now and then."""
    return lambda rng, n: np.where(rng.random(n) < share, -rng.uniform(100.0, 400.0, n), 0.0)


CASES: dict[str, tuple[Draw, float]] = {
    "normal": (lambda rng, n: rng.normal(5.0, 30.0, n), 5.0),
    "skewed": (lambda rng, n: rng.exponential(40.0, n), 40.0),
    "one in seven fails": (rare(0.15), -0.15 * 250.0),
    "one in fifty fails": (rare(0.02), -0.02 * 250.0),
    "none fails where one in a hundred would": (rare(0.01), -0.01 * 250.0),
    "most are changed alike": (lambda rng, n: 300.0 - rare(0.05)(rng, n), 300.0 + 0.05 * 250.0),
}


@pytest.mark.parametrize("num", [10, 30, 100])
@pytest.mark.parametrize("case", CASES)
def test_the_interval_holds_the_truth(case: str, num: int) -> None:
    draw, truth = CASES[case]
    rng = np.random.default_rng(num)
    runs = 600
    held = 0
    for _ in range(runs):
        low, high = mean_interval(draw(rng, num), 500.0)
        held += low <= truth <= high
    # 600 runs of a true 95 % stay above 93 % with a probability of 98 %; ten pairs of skewed data have a little less
    assert held / runs >= (0.93 if num > 10 else 0.90)


def test_more_pairs_tell_more() -> None:
    rng = np.random.default_rng(1)
    widths = [np.ptp(mean_interval(rng.normal(size=n), 10.0)) for n in (10, 100, 1000)]
    assert widths[0] > widths[1] > widths[2] and widths[2] < 0.15


def test_pairs_that_are_all_alike_leave_room_unless_nothing_is_drawn() -> None:
    episodes = [played(cartpole, 3)] * 30
    low, high = effect_of(episodes, episodes, 500.0).interval
    assert (low, high) == pytest.approx((-57.85, 57.85), abs=0.1), "1 - 0.025 ** (1 / 30) of the range"
    assert effect_of(episodes, episodes, 500.0, by_chance=False).interval == (0.0, 0.0)
    assert effect_of(episodes, episodes, None).interval == (0.0, 0.0), "no other return was ever seen"


def test_where_nothing_is_drawn_there_is_no_doubt_and_it_travels_so() -> None:
    effect = effect_of_one(played(cartpole, 3), played(cartpole, 3, SHORT, length=2.0))
    assert effect.interval == (effect.mean,) * 2 and effect.differences == (effect.mean,)
    assert effect.unedited.interval == (0.0, 0.0) and effect.edited.interval == (1.0, 1.0)
    assert unpacked(packed(effect), Effect) == effect and not effect.is_drawn


def test_rates_have_exact_intervals() -> None:
    assert rate(0, 30).interval == pytest.approx((0.0, 0.1157), abs=1e-4)
    assert rate(30, 30).interval == pytest.approx((0.8843, 1.0), abs=1e-4)
    assert rate(6, 30).interval == pytest.approx((0.0771, 0.3857), abs=1e-4)
