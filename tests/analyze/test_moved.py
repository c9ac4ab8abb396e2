"""Whether numbers moved: exact under no change, whatever the policies' own levels, and right about where."""

from __future__ import annotations

import numpy as np
import pytest

from flywheel.analyze.moved import Strata, onset, scan


def numbers(seed: int, sizes: tuple[int, int] = (60, 60), num: int = 6) -> tuple[np.ndarray, Strata]:
    """Two policies' episodes with heavy tails, each policy at levels of its own."""
    rng = np.random.default_rng(seed)
    values = rng.standard_t(3, size=(sum(sizes), num))
    values[: sizes[0]] = 100 + 5 * values[: sizes[0]]
    return values, Strata(["a"] * sizes[0] + ["b"] * sizes[1])


def moved(values: np.ndarray, strata: Strata, seed: int = 0) -> float:
    return scan(values, strata, np.ones(len(values), dtype=np.bool_), np.random.default_rng(seed)).p_value


def test_another_policy_is_no_change_and_chance_rarely_is() -> None:
    p_values = np.array([moved(*numbers(seed)) for seed in range(120)])
    assert (p_values <= 0.05).sum() <= 12, "5 % would be 6"
    assert p_values.min() > 0.001


def test_a_change_of_a_few_episodes_is_seen_and_placed() -> None:
    values, strata = numbers(1)
    values[-5:, 2] += 12.0
    found = scan(values, strata, np.ones(len(values), dtype=np.bool_), np.random.default_rng(0))
    assert found.p_value <= 0.002
    assert found.by_number.argmin() == 2 and found.by_number[[0, 1, 3, 4, 5]].min() > 0.02
    assert onset(found.steady[:, [2]]) == len(values) - 5


def test_many_small_changes_are_seen_together() -> None:
    values, strata = numbers(2, num=40)
    values[-30:] += 0.8
    assert moved(values, strata) <= 0.01
    assert moved(values[:, :1], strata) > 0.01


def test_a_change_of_one_policy_beside_another_is_seen() -> None:
    values, _ = numbers(3)
    mixed = Strata([("a", "b")[i % 2] for i in range(120)])
    values[:, 0] = np.random.default_rng(5).normal(size=120) + 50.0 * (np.arange(120) % 2)
    values[80:, 0] += 3.0
    found = scan(values[:, :1], mixed, np.ones(120, dtype=np.bool_), np.random.default_rng(0))
    assert found.p_value <= 0.002 and onset(found.steady) == pytest.approx(80, abs=2)


def test_a_number_that_never_moves_and_a_policy_with_few_episodes_say_nothing() -> None:
    assert moved(np.zeros((40, 2)), Strata(["a"] * 40)) == 1.0
    assert moved(np.arange(8.0)[:, None], Strata(["a"] * 4 + ["b"] * 4)) == 1.0
