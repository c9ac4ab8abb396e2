"""Where the change begins, and what is made of the episodes since."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from flywheel.analyze.diagnose import diagnose, enough, split
from flywheel.config import AnalyzeConfig
from flywheel.records import Episode, Signal, SignalKind
from flywheel.task import Task

Produce = Callable[..., list[Episode]]
CONFIG = AnalyzeConfig()


def signal(since: str, at: str = "gone", kind: SignalKind = "shift_detected") -> Signal:
    return Signal(
        kind=kind, monitor="m", digest="d", value=1, threshold=1, since_episode=since, at_episode=at, evidence={}, at=0
    )


def test_the_change_begins_where_the_world_monitor_says(produce: Produce) -> None:
    episodes = produce(6)
    ids = [e.id for e in episodes]
    before, changed = split(episodes[::-1], [signal(ids[1], kind="degradation"), signal(ids[4])])
    assert [e.id for e in before] == ids[:4]
    assert [e.id for e in changed] == ids[4:]
    assert [e.id for e in split(episodes, [signal(ids[2], kind="degradation")])[1]] == ids[2:]
    assert [e.id for e in split(episodes, [signal("gone", at=ids[5])])[1]] == ids[5:]
    assert len(split(episodes, [signal("gone")])[1]) == 6
    assert split(episodes, []) == (episodes, [])


def test_it_waits_for_transitions_or_for_as_many_episodes_as_it_would_read(task: Task, produce: Produce) -> None:
    episodes = produce(12, length=2.0)
    one, all_ = [signal(episodes[-1].id)], [signal(episodes[0].id)]
    assert sum(e.num_steps for e in episodes) >= CONFIG.min_transitions > episodes[-1].num_steps
    assert enough(task, episodes, all_, CONFIG)
    assert not enough(task, episodes, one, CONFIG)
    assert enough(task, episodes, one, dataclasses.replace(CONFIG, episodes=1))
    assert not enough(task, episodes, [], CONFIG)
    blind = dataclasses.replace(task, observed_state=None)
    assert not enough(blind, episodes, all_, CONFIG), "whole episodes are what it would fit"
    assert enough(blind, episodes, all_, dataclasses.replace(CONFIG, episodes=12))


def test_the_changed_world_is_measured_and_sensor_noise_is_no_part_of_the_change(task: Task, produce: Produce) -> None:
    changed = produce(15, first=100, noise=0.01, length=2.0)
    found = diagnose(task, [*produce(15, noise=0.01), *changed], [signal(changed[0].id)], CONFIG)
    assert found.calibration is not None and found.obstacle == "" and found.num_changed == 15
    assert found.calibration.values["length"] == pytest.approx(2.0, rel=0.1)
    assert found.calibration.explained > 0.95


def test_what_stands_in_the_way_is_said(task: Task, produce: Produce) -> None:
    episodes = produce(3)
    blind = dataclasses.replace(task, observed_state=None)
    alarm = signal(episodes[0].id)
    assert diagnose(blind, episodes, [alarm], CONFIG).obstacle.endswith("the policy that served isn't at hand")
    frozen = [dataclasses.replace(e, observations=0 * e.observations) for e in produce(3, first=50)]
    broken = diagnose(task, [*episodes, *frozen], [signal(frozen[0].id)], CONFIG)
    assert broken.calibration is None and "broken sensor" in broken.obstacle
    quiet = diagnose(task, episodes, [], CONFIG)
    assert quiet.calibration is None and quiet.obstacle == "production raised no alarm"
