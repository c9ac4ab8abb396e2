"""What a plan's strategy comes to in the rooms: where training begins, what is barred, what the artifact says of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flywheel import feeding, growth, stages
from flywheel.candidates import Candidate
from flywheel.config import Config, TrainConfig
from flywheel.records import Plan, Probe, Progress, Release
from flywheel.train.ending import ending
from tests.test_stages import opened
from tests.train.test_replay import production


@pytest.fixture
def asked() -> dict[str, Any]:
    """Return what the rooms were asked for, by the method's name."""
    return {}


def test_a_rollback_puts_the_one_before_into_service_trains_on_from_it_and_bars_the_bad_ones_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]
) -> None:
    start = opened(tmp_path, Config(train=TrainConfig(algorithm="dqn")), monkeypatch)
    monkeypatch.setattr(growth, "look", lambda *_: growth.Look())
    releases = [Release(digest="bad", stage="full", share=1.0, previous="good", released_at=1.0)]
    condemned: set[str] = set()

    def rollback() -> Release:
        condemned.add("bad")
        releases.append(Release(digest="good", stage="full", share=1.0, previous=None, released_at=2.0))
        return releases[-1]

    def learn_from(episodes: Any, barred: Any, *_: Any, **__: Any) -> int:
        asked["barred"] = dict(barred)
        return len(episodes)

    start._rooms.registry = SimpleNamespace(
        scenarios=lambda: (), set_terms=lambda *_: None, champion=lambda: releases[-1].digest, rollback=rollback,
        releases=lambda: releases, condemned=lambda: frozenset(condemned),
        files=SimpleNamespace(remote=lambda digest: {"of": digest}),
    )  # fmt: skip
    start._rooms.gate = SimpleNamespace(grow=None)
    start._rooms.trainer = SimpleNamespace(
        begin=lambda plan, files, suite: asked.update(files=files), learn_from=learn_from, learnt_to=lambda: ""
    )
    serving = SimpleNamespace(
        store=SimpleNamespace(
            recent=lambda *_: [production("p", 10, "bad")], excluded=lambda: {("episode", "q"): "a sensor was off"}
        ),
        observer=SimpleNamespace(release=lambda *_: None),
        deployment=SimpleNamespace(confirm=lambda digest: asked.update(served=digest), url=""),
    )
    start._rooms.serving = serving  # type: ignore[misc,assignment]
    start._rooms.produce = lambda: None  # type: ignore[method-assign]
    start._feed = feeding.Feed(start._config.train, lambda method, *given: method(*given), start._rooms, print)
    alarm: Any = SimpleNamespace(kind="degradation")
    plan = Plan(strategy="rollback_and_retrain", reasons=(), signals=(alarm,), sampling="recent", warm_start="good")
    start.rollback(plan)
    start.begin(plan)
    assert asked["served"] == "good" and asked["files"] == {"of": "good"}
    assert asked["barred"] == {("policy", "bad"): "it was rolled back", ("episode", "q"): "a sensor was off"}


def test_an_artifact_says_in_which_worlds_it_was_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]
) -> None:
    start = opened(tmp_path, Config(seed=7), monkeypatch)
    start._rooms.registry = SimpleNamespace(
        next_version=lambda: 3, write=lambda digest, _: SimpleNamespace(digest=digest)
    )

    def export(version: int, parent: str | None, trained_on: Any, now: float) -> tuple[str, dict[str, bytes]]:
        asked.update(version=version, parent=parent, trained_on=trained_on)
        return "new", {}

    start._rooms.trainer = SimpleNamespace(export=export)
    plan = Plan(strategy="retrain_prioritize_recent", reasons=(), warm_start="old", parameters={"length": (1.5, 2.5)})
    progress = Progress(iteration=2, num_steps=500, num_steps_total=900, mean_return=1.0, seconds=1.0, network=b"")
    probe = Probe(num_failed=0, num_episodes=200, mean_return=1.0, edge_failed=())
    start._ending = ending(plan, None, start._config.train, None, None, 1.0)
    start._candidate = Candidate(start._ending, stages.ask, start._rooms, 7, start._say, start._look)
    artifact = start.export(plan, progress, probe, None)
    assert artifact is not None and artifact.digest == "new"
    assert (asked["version"], asked["parent"]) == (3, "old")
    assert asked["trained_on"] == {
        "strategy": "retrain_prioritize_recent", "parameters": {"length": [1.5, 2.5]}, "steps": 500, "seed": 7,
    }  # fmt: skip
