"""The input monitor sees what transitions don't show: other starts, and sensors that are off."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from flywheel.observe.monitors.conformal import MAX_DRIFTS
from flywheel.observe.monitors.inputs import InputMonitor, summary
from flywheel.observe.monitors.transitions import MAX_NUMBERS
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


def test_observations_of_many_numbers_cost_no_more_than_some() -> None:
    rng = np.random.default_rng(5)
    one = real(1, seed=6)[0]
    world, inputs = WorldMonitor(8), InputMonitor(8)
    for i in range(12):
        seen = rng.normal(size=(41, 4096)).astype(np.float32)
        seen[:, 17:] += 5.0 * (i == 11)
        episode = dataclasses.replace(one, observations=seen, raw_actions=rng.integers(0, 2, 40), rewards=np.ones(40))
        world.update(str(i), episode)
        inputs.update(str(i), episode)
    assert len(summary(episode)) == 3 * MAX_NUMBERS
    assert np.isfinite(world.evidence) and inputs.evidence > 0.0
    score = world.score(episode)
    assert score is not None and len(score) <= 2 + MAX_DRIFTS
