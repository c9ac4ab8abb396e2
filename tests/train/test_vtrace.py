"""V-trace: GAE where the policy that acted is the present one, the sum of its definition where it isn't."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel.train.vtrace import advantages


def drawn(seed: int, num_steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=num_steps), rng.normal(size=num_steps + 1), np.exp(rng.normal(size=num_steps))


@given(st.integers(0, 1000), st.integers(1, 12), st.floats(0.5, 1.0), st.floats(0.0, 1.0))
def test_of_the_present_policys_own_steps_it_is_gae(seed: int, num_steps: int, discount: float, trace: float) -> None:
    rewards, values, _ = drawn(seed, num_steps)
    errors = rewards + discount * values[1:] - values[:-1]
    gae = [sum((discount * trace) ** k * errors[t + k] for k in range(num_steps - t)) for t in range(num_steps)]
    assert advantages(rewards, values, np.ones(num_steps), discount, trace) == pytest.approx(gae)


@given(st.integers(0, 1000), st.integers(1, 12))
def test_of_another_policys_steps_it_is_the_sum_that_defines_it(seed: int, num_steps: int) -> None:
    rewards, values, ratios = drawn(seed, num_steps)
    weights, discount, trace = np.minimum(1.0, ratios), 0.9, 0.8
    errors = rewards + discount * values[1:] - values[:-1]
    wanted = [
        sum(discount ** (s - t) * np.prod(trace * weights[t:s]) * weights[s] * errors[s] for s in range(t, num_steps))
        for t in range(num_steps)
    ]
    assert advantages(rewards, values, ratios, discount, trace) == pytest.approx(wanted)


def test_in_a_known_chain_it_finds_the_present_policys_values_from_anothers_steps() -> None:
    """Of two actions one pays 1 and ends; the steps are of a policy that takes it half as often as the present one."""
    rng, pays = np.random.default_rng(5), 0.6
    acted = rng.random(40_000) < 0.3
    ratios = np.where(acted, pays / 0.3, (1 - pays) / 0.7)
    exact = np.minimum(1.0, ratios)  # what V-trace converges to is the policy whose chances are cut (its equation 3)
    value = 0.0
    for _ in range(50):
        found = [advantages(np.array([float(a)]), np.array([value, 0.0]), np.array([r]), 1.0, 1.0)[0]
                 for a, r in zip(acted[:2000], ratios[:2000], strict=True)]  # fmt: skip
        value += float(np.mean(found))
    target = float((exact * acted).mean() / exact.mean())
    assert value == pytest.approx(target, abs=0.05)
