"""Serving without training: who answers is told when it changes, an alarm at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flywheel import cluster
from flywheel.config import Config, DeployConfig
from flywheel.deploy.keys import CLIENT
from flywheel.deploy.registry import Registry
from flywheel.errors import UsageError
from flywheel.records import Release, Signal
from flywheel.serve import LOOK_S, serve
from flywheel.task import task_digest
from flywheel.tasks.cartpole import cartpole
from tests.test_archive import SIGNAL

FIRST = Release(digest="a" * 64, stage="full", share=1.0, previous=None, released_at=1.0)
SECOND = dataclasses.replace(FIRST, digest="b" * 64, released_at=2.0)


def test_releases_and_alarms_are_told_as_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    releases: list[Release] = []
    signals: list[Signal] = []
    waits: list[dict[str, Any]] = []
    happens = iter([lambda: releases.append(FIRST), lambda: signals.append(SIGNAL), lambda: releases.append(SECOND)])

    def wait(**given: Any) -> None:
        waits.append(given)
        try:
            next(happens)()
        except StopIteration:
            raise KeyboardInterrupt from None

    watched: list[Release] = []
    observer = SimpleNamespace(
        release=lambda release, bound: watched.append(release), signals=lambda: signals, wait=wait
    )
    serving = SimpleNamespace(observer=observer, deployment=SimpleNamespace(url="http://here"))
    registry = SimpleNamespace(releases=lambda: releases)

    @contextmanager
    def start(task: Any, config: Any, run_dir: Any, say: Any) -> Iterator[Any]:
        yield SimpleNamespace(registry=registry, serving=serving, say=say)

    monkeypatch.setattr(cluster, "start", start)
    monkeypatch.setattr(cluster, "ask", lambda method, *arguments, **named: method(*arguments, **named))
    told: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        serve(cartpole, Config(), tmp_path, lambda stage, text, passing=False: told.append(text))
    assert [text[:24] for text in told[1:]] == [
        "no policy is in service ",
        "policy aaaaaaaa answers ",
        "shift_detected by the wo",
        "policy bbbbbbbb answers ",
    ]
    assert watched[-1] == SECOND
    assert [given["signals"] for given in waits] == [0, 0, 1, 1], "each wait ends with the next alarm"
    assert {given["timeout_s"] for given in waits} == {LOOK_S}


def test_nothing_listens_to_a_network_that_no_token_lets_in(tmp_path: Path) -> None:
    open_to_all = Config(deploy=DeployConfig(host="0.0.0.0"))
    cluster._check_tokens(tmp_path / "new", open_to_all)
    with closing(Registry(tmp_path, task_digest(cartpole))) as registry:
        cluster._check_tokens(tmp_path, open_to_all)
        registry.revoke_token(CLIENT, 1.0)
        with (
            pytest.raises(UsageError, match=r"0\.0\.0\.0, because no token with the scope act .*tokens add NAME"),
            cluster.start(cartpole, open_to_all, tmp_path, lambda *_, **__: None),
        ):
            pass
        cluster._check_tokens(tmp_path, Config())
        registry.add_token("robot", ["act"], 2.0)
        cluster._check_tokens(tmp_path, open_to_all)


def test_simulated_production_says_that_its_token_was_revoked(tmp_path: Path) -> None:
    rooms: Any = SimpleNamespace(_config=Config(), _run_dir=tmp_path, production=SimpleNamespace(is_running=False))
    with pytest.raises(UsageError, match=r"client\.token was revoked.*tokens add client --scope act"):
        cluster.Rooms.produce(rooms)
