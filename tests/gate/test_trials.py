"""Which worlds: seeds that are functions of their place alone, and trials that can be run again."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel.gate.trials import (
    edge_situations,
    nominal_situations,
    play_situations,
    situation_of,
    trial_of,
    world_seed,
)
from flywheel.tasks.cartpole import cartpole
from flywheel.testing import load_linear


@given(st.integers(0, 2**63), st.integers(0, 500), st.integers(0, 500))
def test_more_worlds_leave_the_first_ones_as_they_are(root: int, few: int, more: int) -> None:
    some = nominal_situations(root, "judge", 0, few, {})
    assert nominal_situations(root, "judge", 0, few + more, {})[:few] == some
    assert (
        nominal_situations(root, "judge", few, few + more, {})
        == nominal_situations(root, "judge", 0, few + more, {})[few:]
    )


def test_seeds_of_roots_streams_and_places_differ_and_are_exact_in_json() -> None:
    seeds = {world_seed(root, stream, i) for root in range(5) for stream in ("judge", "probe") for i in range(1000)}
    assert len(seeds) == 10_000 and max(seeds) < 2**53


def test_every_edge_case_gets_its_trials_parameters_and_state() -> None:
    situations = edge_situations(cartpole.edge_cases, 1, "judge", 3, {"length": 2.0, "gravity": 9.8})
    assert len(situations) == 3 * len(cartpole.edge_cases)
    strong = [s for s in situations if s.scenario == "strong_gravity"]
    assert [s.parameters for s in strong] == [{"length": 2.0, "gravity": 14.7}] * 3 and strong[0].state is None
    assert len({s.seed for s in situations}) == len(situations)


def test_a_trial_knows_its_world() -> None:
    situations = nominal_situations(5, "judge", 0, 2, {"length": 1.0})
    situations += edge_situations(cartpole.edge_cases, 5, "judge", 1, {"length": 1.0})
    episodes = play_situations(cartpole, load_linear(cartpole), situations, lockstep=256, now=0.0)
    trials = [trial_of(cartpole, episode) for episode in episodes]
    assert [situation_of(cartpole, trial) for trial in trials] == situations
    assert [trial.episode for trial in trials] == [episode.id for episode in episodes]
    assert all(episode.draw_key == episode.seed for episode in episodes)
    assert all(0 < trial.margin < 1 for trial in trials)
    assert math.isnan(trial_of(dataclasses.replace(cartpole, margin=None), episodes[0]).margin)
    with pytest.raises(ValueError, match="no seed"):
        trial_of(cartpole, dataclasses.replace(episodes[0], seed=None))
