"""The input monitor sees what transitions don't show: other starts, and sensors that are off."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from flywheel.observe.monitors.inputs import InputMonitor, summary
from flywheel.observe.monitors.world import WorldMonitor
from flywheel.records import Episode
from tests.observe.streams import real

THRESHOLD = 220_000.0


@pytest.fixture(scope="module")
def clean() -> list[Episode]:
    return real(150, seed=1, noise=0.01)


def biased(episodes: list[Episode], by: float) -> list[Episode]:
    """The same, the angle's sensor off by so many radians."""
    off = np.array([0.0, 0.0, by, 0.0], np.float32)
    return [dataclasses.replace(e, observations=e.observations + off) for e in episodes]


def delay(monitor: InputMonitor | WorldMonitor, clean: list[Episode], changed: list[Episode]) -> int | None:
    for episode in clean:
        assert monitor.update(episode.id, episode) < THRESHOLD
    for k, episode in enumerate(changed, start=1):
        if monitor.update(episode.id, episode) >= THRESHOLD:
            return k
    return None


def test_episodes_that_begin_elsewhere_are_other_inputs_and_no_other_world(clean) -> None:
    elsewhere = real(30, seed=2, noise=0.01, spread=0.15)
    found = delay(InputMonitor(100), clean, elsewhere)
    assert found is not None and found <= 12
    assert delay(WorldMonitor(100), clean, elsewhere) is None


def test_a_sensor_that_is_off_by_a_constant_is_seen(clean) -> None:
    found = delay(InputMonitor(100), clean, biased(real(30, seed=3, noise=0.01), 0.02))
    assert found is not None and found <= 12


def test_the_same_inputs_stay_quiet(clean) -> None:
    assert delay(InputMonitor(100), clean, real(300, seed=4, noise=0.01)) is None


def test_a_summary_is_the_first_observation_the_means_and_the_deviations(clean) -> None:
    rows = clean[0].observations.astype(np.float64)
    assert summary(clean[0]).tolist() == pytest.approx([*rows[0], *rows.mean(axis=0), *rows.std(axis=0)])
    whole = dataclasses.replace(clean[0], observations=clean[0].observations.reshape(-1, 2, 2))
    assert np.array_equal(summary(whole), summary(clean[0]))
