"""What only one of two explanations explains tells them apart."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from flywheel.analyze.rivals import is_noise
from flywheel.analyze.transitions import read
from flywheel.records import Episode
from flywheel.task import spec_of
from flywheel.tasks.cartpole import cartpole

SPEC = spec_of(cartpole)
STEPS = 60
AT = 40
"""The first changed episode."""


def episode(number: int, push: float, noise: float = 0.0) -> Episode:
    """Return an episode in which each action pushes, one way and the other in turn, and a spring pulls back."""
    rng = np.random.default_rng(number)
    acts, path = (np.arange(STEPS) + number) % 2, [0.0]
    for act in acts:
        path.append(0.9 * path[-1] + push * (2.0 * act - 1.0))
    seen = np.zeros((STEPS + 1, 4), np.float32)
    seen[:, 0] = np.array(path) + noise * rng.standard_normal(STEPS + 1)
    return Episode(
        id=f"{number:03}", origin="production", task="", parameters={}, draw_key=0, digests=("d",) * STEPS,
        observations=seen, raw_actions=acts, rewards=np.ones(STEPS), logps=np.zeros(STEPS), end="truncated",
        failed=False,
    )  # fmt: skip


def known(push: float, noise: float, num_late: int = 0) -> Any:
    """Return what is known of production that pushes otherwise, or sees worse, since episode AT; some only later."""
    is_changed = [n >= AT and not (n < AT + 3 * num_late and n % 3 == 1) for n in range(2 * AT)]
    some = [episode(n, *((push, 0.02 + noise) if new else (1.0, 0.02))) for n, new in enumerate(is_changed)]
    return SimpleNamespace(transitions=read(some, SPEC, np.array([0])))


@pytest.mark.parametrize("num_late", [0, 6])
def test_another_answer_to_actions_in_turn_is_no_noise_though_some_episodes_meet_it_later(num_late: int) -> None:
    assert not is_noise(known(3.0, 0.0, num_late), AT)


@pytest.mark.parametrize("num_late", [0, 6])
def test_a_noisier_sensor_is_noise_though_some_episodes_meet_it_later(num_late: int) -> None:
    assert is_noise(known(1.0, 0.3, num_late), AT)
