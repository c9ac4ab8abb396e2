"""Strata have baselines of their own, cost no budget, and a task's error in naming one stops nothing."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from flywheel.config import ObserveConfig
from flywheel.observe.monitors.world import WorldMonitor
from flywheel.observe.observer import Observer
from flywheel.observe.strata import MAX_STRATA, REST, Sorter, Strata
from flywheel.records import Episode
from flywheel.task import task_digest
from flywheel.tasks.cartpole import cartpole
from tests.observe.streams import DIGEST, real

THRESHOLD = 90_000.0


@pytest.fixture(scope="module")
def sites() -> dict[str, list[Episode]]:
    """Episodes of two sites: one has the long pole from the start."""
    return {"near": real(160, seed=1, noise=0.01), "far": real(160, seed=2, noise=0.01, length=0.8)}


def test_another_mix_of_known_strata_is_no_change_and_without_strata_it_is_one(sites) -> None:
    apart, together = Strata(lambda: WorldMonitor(100)), WorldMonitor(100)
    first = [(e, "near") for e in sites["near"][:150]]
    for i, e in enumerate(sites["far"][:60]):
        first.insert(2 * i, (e, "far"))
    for e, site in first:
        apart.update(e.id, e, site)
    for e in sites["near"][:150]:
        together.update(e.id, e)
    assert apart.names == ("far", "near") and apart.testing
    for e in sites["far"][60:90]:
        apart.update(e.id, e, "far")
        together.update(e.id, e)
    assert apart.evidence < THRESHOLD <= together.evidence


def test_a_change_in_one_stratum_is_seen_and_named(sites) -> None:
    apart = Strata(lambda: WorldMonitor(100))
    for near, far in zip(sites["near"][:140], sites["far"][:140], strict=True):
        apart.update(near.id, near, "near")
        assert apart.update(far.id, far, "far") < THRESHOLD
    changed = real(10, seed=3, noise=0.01, length=0.8, force_mag=8.0)
    num_far = 0
    for episode, near in zip(changed, sites["near"][140:], strict=False):
        apart.update(near.id, near, "near")
        num_far += 1
        if apart.update(episode.id, episode, "far") >= THRESHOLD:
            break
    assert apart.evidence >= THRESHOLD and num_far <= 8
    assert (apart.stratum, apart.onset, apart.num_since) == ("far", changed[0].id, num_far)


def test_scores_and_whole_episodes_give_the_same_evidence(sites) -> None:
    one, two = Strata(lambda: WorldMonitor(20)), Strata(lambda: WorldMonitor(20))
    for episode in sites["near"][:60]:
        score = two.score(episode, "near")
        assert one.update(episode.id, episode, "near") == two.update(
            episode.id, episode if score is None else score, "near"
        )


def test_strata_are_bounded_and_the_rest_share_one(sites) -> None:
    strata = Strata(lambda: WorldMonitor(2))
    for i in range(3 * MAX_STRATA):
        strata.update(f"e{i}", sites["near"][i], f"site {i}")
    assert strata.names == (*(f"site {i}" for i in range(MAX_STRATA)), REST)
    assert strata.score(sites["near"][0], "another") is not None


def test_the_sum_over_strata_has_a_mean_of_at_most_the_number_of_episodes() -> None:
    rng = np.random.default_rng(4)
    totals = []
    for _ in range(200):
        strata = Strata(lambda: Toy(2))
        for i in range(100):
            strata.update(str(i), rng.normal(size=2), str(rng.integers(3)))
        totals.append(strata.evidence)
    assert np.mean(totals) <= 100 + 3 * np.std(totals) / np.sqrt(len(totals))


class Toy(WorldMonitor):
    """A monitor of scores that are given."""

    def _sizes(self) -> int:
        return 1


def raising(episode: Episode) -> str:
    raise KeyError("site")


@pytest.mark.parametrize(
    ("strata", "said"), [(raising, "raised KeyError('site')"), (lambda _: 7, "returned '7' (int)")]
)
def test_a_stratum_that_cannot_be_told_is_said_and_counted_and_the_episode_read(strata: Any, said: str) -> None:
    task = dataclasses.replace(cartpole, strata=strata)
    observer = Observer(task, ObserveConfig(baseline_episodes=4)).watch(DIGEST)
    for episode in real(5, seed=5):
        observer.observe(episode)
    status = observer.status()
    assert status["read"] == 5 and status["strata"] == {"names": [REST], "errors": 5}
    assert said in status["trouble"] and "counts as (rest)" in status["trouble"]
    assert status["monitors"]["world"]["testing"], "they share a baseline"


def test_without_a_function_there_is_one_stratum_and_the_tasks_digest_is_what_it_was() -> None:
    assert Sorter(None)(real(1, seed=6)[0]) == ""
    observer = Observer(cartpole).watch(DIGEST)
    assert observer.status()["strata"] == {"names": [], "errors": 0}
    assert task_digest(dataclasses.replace(cartpole, strata=raising)) != task_digest(cartpole)


def test_a_stratum_is_told_once_an_episode() -> None:
    asked = []

    def strata(episode: Episode) -> str:
        asked.append(episode.id)
        return "near"

    observer = Observer(dataclasses.replace(cartpole, strata=strata), ObserveConfig(baseline_episodes=4)).watch(DIGEST)
    episodes = real(8, seed=7)
    for episode in episodes:
        observer.observe(episode)
    assert asked == [e.id for e in episodes] and observer.status()["strata"]["names"] == ["near"]
