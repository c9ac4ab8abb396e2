"""Noisy sensors and a restless world neither bias the parameters nor hide what no parameter explains."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from experiments.noisy_pole import World, produce
from flywheel.analyze.calibrate import calibrate
from flywheel.analyze.filtered import fitted
from flywheel.analyze.innovations import Noise, innovations
from flywheel.analyze.noise import guessed, scored, with_gusts
from flywheel.analyze.space import Space
from flywheel.analyze.tracks import Tracks, follow, linear
from flywheel.config import AnalyzeConfig
from flywheel.records import Calibration, Episode
from flywheel.simulate.transitions import Simulator, gather
from flywheel.task import Task
from flywheel.tasks.cartpole import cartpole

CONFIG = AnalyzeConfig(episodes=30)
TASK = dataclasses.replace(
    cartpole,
    parameters=tuple(p for p in cartpole.parameters if p.name in ("gravity", "length", "force_mag")),
    edge_cases=(),
    drift={},
)


def produced(seed: int, num: int = 30, **world: object) -> list[Episode]:
    parameters = world.pop("parameters", {})
    return produce(World(parameters=parameters, **world), num, np.random.default_rng(seed))  # type: ignore[arg-type]


def tracks(space: Space, task: Task, episodes: list[Episode], most: int) -> Tracks:
    space.set_scale(gather(task, episodes, 50))
    return follow(task, space, episodes, most)


def inside(found: Calibration | None, world: dict[str, float]) -> None:
    assert found is not None
    for name, value in world.items():
        low, high = found.intervals[name]
        assert low <= value <= high, f"{name} is {value}, not {low} to {high}"


def test_parameters_are_found_through_noise_within_their_intervals() -> None:
    world = {"gravity": 13.0, "length": 0.8, "force_mag": 8.0}
    episodes = produced(1, parameters=world, sensor=(0.02, 0.1, 0.005, 0.1), process=(0.0, 0.02, 0.0, 0.03))
    found = calibrate(TASK, episodes, CONFIG)
    inside(found, world)
    assert found is not None and found.explained == 1.0
    assert found.values["length"] == pytest.approx(0.8, rel=0.03)
    assert found.values["force_mag"] == pytest.approx(8.0, rel=0.03)
    assert found == calibrate(TASK, episodes, CONFIG), "the same episodes give the same calibration"


def test_noise_comes_out_as_it_went_in() -> None:
    sensor, process = (0.01, 0.02, 0.002, 0.02), (0.0, 0.01, 0.0, 0.02)
    with Simulator(TASK) as simulator:
        space = Space(TASK, simulator.successors)
        found = fitted(space, tracks(space, TASK, produced(2), 100), np.zeros(3))
    assert np.exp(found.noise.sensor[:, 0] / 2) * space.scale == pytest.approx(sensor, rel=0.1)
    shaken = np.exp(found.noise.process[:, 0] / 2) * space.scale
    assert shaken[[1, 3]] == pytest.approx([process[1], process[3]], rel=0.15)
    assert (shaken[[0, 2]] < 0.1 * np.array([sensor[0], sensor[2]])).all()
    assert found.noise.gusts == ()


def test_gusts_are_noise_that_lasts() -> None:
    with Simulator(TASK) as simulator:
        space = Space(TASK, simulator.successors)
        found = fitted(space, tracks(space, TASK, produced(3, gust=1.0), 100), np.zeros(3))
    assert 3 in found.noise.gusts
    assert 1 / (1 + np.exp(-found.noise.keeps[0])) == pytest.approx(0.95, abs=0.03)
    surprise = (found.found.errors**2 / found.found.variances)[1:, :, 0].sum() / (4 * 30 * 100)
    assert surprise == pytest.approx(1.0, abs=0.05), "innovations are as large as the filter says"


@pytest.mark.parametrize("fault", ["swapped", "delayed", "wind"])
def test_what_no_parameter_makes_is_not_explained(fault: str) -> None:
    how = 1.0 if fault == "wind" else True
    found = calibrate(cartpole, produced(4, **{fault: how}), CONFIG, before=produced(5))
    assert found is not None and found.explained < CONFIG.explained


def test_a_change_of_a_parameter_is_explained_in_gusts_too() -> None:
    found = calibrate(
        cartpole, produced(6, gust=0.65, parameters={"length": 0.7}), CONFIG, before=produced(7, gust=0.65)
    )
    inside(found, {"length": 0.7})
    assert found is not None and found.explained >= CONFIG.explained


def test_the_filter_says_what_a_whole_normal_distribution_says() -> None:
    """Against the joint density of all observations of a linear world, inverted whole."""
    rng = np.random.default_rng(8)
    num, length, slope, q, r = 3, 6, 0.9, 0.3, 0.2
    seen = rng.standard_normal((num, length + 1, 1))
    lengths = np.array([length, length - 2, length])
    whole = Tracks(seen=seen, actions=np.zeros((num, length), int), lengths=lengths)
    noise = Noise(
        sensor=np.log([[r]]), process=np.log([[q]]), gusts=(0,), gust=np.log([[0.5]]), keeps=np.array([np.log(4.0)])
    )

    class Half:
        scale = np.ones(1)

        def predicted(self, data: object, points: list[np.ndarray]) -> np.ndarray:
            return np.stack([slope * data.states + x for x in points])  # type: ignore[attr-defined]

    x = np.array([0.1])
    step = linear(Half(), whole, rng.standard_normal((num, length, 1)), x)  # type: ignore[arg-type]
    found = innovations(whole, step, noise, told=True)
    start, keeps = max(seen[:, 0, 0].var() + 1e-12 - r, 0.01 * seen[:, 0, 0].var()), 0.8
    for n in range(num):
        size = lengths[n] + 1
        mean, maps = np.zeros(size), np.zeros((size, 1 + 2 * size))
        mean[0], maps[0, 0] = seen[:, 0, 0].mean(), np.sqrt(start)
        gust = np.zeros(1 + 2 * size)
        gust[size + 1] = np.sqrt(0.5)
        for t in range(1, size):
            mean[t] = slope * mean[t - 1] + x[0]
            maps[t] = slope * maps[t - 1] + gust
            maps[t, t] += np.sqrt(q)
            gust = keeps * gust
            gust[size + 1 + t] += np.sqrt(0.5 * (1 - keeps**2))
        covariance = maps @ maps.T + r * np.eye(size)
        away = seen[n, :size, 0] - mean
        cost = np.linalg.slogdet(covariance)[1] + away @ np.linalg.solve(covariance, away)
        told = np.log(found.variances[:, :, 0, n]) + found.errors[:, :, 0, n] ** 2 / found.variances[:, :, 0, n]
        assert told.sum() == pytest.approx(cost, rel=1e-9)
    other = innovations(whole, dataclasses.replace(step, value=step.value + 1e-6), noise)
    slopes = (other.errors - found.errors)[:, :, 0] / 1e-6
    assert found.by[:, :, 0] == pytest.approx(slopes, abs=1e-6)


def test_scoring_climbs() -> None:
    with Simulator(TASK) as simulator:
        space = Space(TASK, simulator.successors)
        some = tracks(space, TASK, produced(9, num=10, gust=0.65), 50)
        step = linear(space, some, some.seen[:, :-1], np.zeros(3))
    noise, costs = with_gusts(guessed(some, step), [3]), []
    for _ in range(8):
        costs.append(innovations(some, step, noise).costs[0])
        noise, _ = scored(some, step, noise)
    assert all(after <= before + 1e-6 for before, after in itertools.pairwise(costs))


def test_episodes_too_short_to_be_followed_are_fitted_step_by_step() -> None:
    short = [
        dataclasses.replace(e, observations=e.observations[:3], raw_actions=e.raw_actions[:2], rewards=e.rewards[:2])
        for e in produced(11)
    ]
    found = calibrate(TASK, short, CONFIG)
    assert found is not None and found.num_transitions <= 60


def test_a_reset_and_a_gap_end_a_track() -> None:
    first, second, *rest = produced(10, num=10, parameters={"length": 0.8})
    joined = dataclasses.replace(
        first,
        observations=np.concatenate([first.observations[:60], second.observations]),
        raw_actions=np.concatenate([first.raw_actions[:60], second.raw_actions]),
    )
    observations = second.observations.copy()
    observations[30] = np.nan
    gapped = dataclasses.replace(second, observations=observations)
    inside(calibrate(TASK, [joined, gapped, *rest], CONFIG), {"length": 0.8})
    with Simulator(TASK) as simulator:
        space = Space(TASK, simulator.successors)
        some = tracks(space, TASK, [gapped, *rest], 100)
    assert some.lengths[0] == 29 and some.lengths[1] == 100
