"""Observer and store as actors: acknowledged means durable, also when one of them is killed."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flywheel.config import ObserveConfig, StoreConfig
from flywheel.observe.on_ray import ObserverActor
from flywheel.observe.outlook import EARLY, Outlook
from flywheel.records import Release, Reward
from flywheel.store.intake import open_readonly
from flywheel.store.on_ray import StoreActor
from flywheel.tasks.cartpole import cartpole
from flywheel.trace.outlet import Outlet
from tests.observe.streams import DIGEST, rows_of, steps_of

TIMEOUT = 60


class Rooms:
    """A store and an observer, as cluster.py starts them."""

    def __init__(self, ray: Any, run_dir: Path, config: ObserveConfig) -> None:
        self.ray, self.run_dir = ray, run_dir
        lasting = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
        name = f"store-{uuid.uuid4().hex}"
        self.store = ray.remote(StoreActor).options(name=name, **lasting).remote(str(run_dir), StoreConfig())
        self.observer = ray.remote(ObserverActor).options(**lasting).remote(cartpole, config, name)

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self.ray.get(getattr(self.observer, method).remote(*args, **kwargs), timeout=TIMEOUT)

    def restart(self) -> None:
        """Kill the observer, and return when another process answers in its place: a kill comes when it comes."""
        before = self.call("__ray_call__", pid_of)
        self.ray.kill(self.observer, no_restart=False)
        deadline = time.monotonic() + TIMEOUT
        while self.call("__ray_call__", pid_of) == before:
            assert time.monotonic() < deadline


def pid_of(_: Any) -> int:
    return os.getpid()


@pytest.fixture
def rooms(ray_cluster: Any, tmp_path: Path) -> Iterator[Rooms]:
    made = Rooms(ray_cluster, tmp_path, ObserveConfig(wait_s=0.2, episode_timeout_s=1.0))
    yield made
    ray_cluster.kill(made.observer)
    ray_cluster.kill(made.store)


def release(at: float = 0.0) -> Release:
    return Release(digest=DIGEST, stage="full", share=1.0, previous=None, released_at=at)


def test_an_end_is_acknowledged_when_the_episode_can_be_read_from_the_disk(rooms: Rooms) -> None:
    rows = rows_of("a", 5, start=time.time())
    rooms.call("append", steps_of(rows[:3]))
    assert rooms.call("end", steps_of(rows[-1:])) == {"a": (3, 4)}
    rooms.call("append", steps_of(rows[3:5]))
    assert rooms.call("end", steps_of(rows[-1:])) == {"a": ()}
    with_disk = open_readonly(rooms.run_dir)
    assert with_disk.read(["a"])[0].num_steps == 5
    with_disk.close()
    assert rooms.call("status")["digests"][DIGEST]["episodes"] == 1


def test_an_end_waits_for_steps_that_are_on_their_way(rooms: Rooms) -> None:
    rows = rows_of("a", 5, start=time.time())
    rooms.call("append", steps_of(rows[:3]))
    end = rooms.observer.end.remote(steps_of(rows[-1:]))
    rooms.observer.append.remote(steps_of(rows[3:5]))
    assert rooms.ray.get(end, timeout=TIMEOUT) == {"a": ()}


def test_after_the_observer_is_killed_the_store_answers_repeated_ends_and_open_episodes_come_again(
    rooms: Rooms,
) -> None:
    rooms.call("release", release(), 0.05)
    done, open_ = rows_of("done", 4, start=time.time()), rows_of("open", 4, start=time.time())
    assert rooms.call("end", steps_of(done)) == {"done": ()}
    rooms.call("append", steps_of(open_[:2]))
    rooms.restart()
    both = steps_of([done[-1], open_[-1]])
    assert rooms.call("end", both) == {"done": (), "open": (0, 1, 2, 3)}
    assert rooms.call("end", steps_of(open_)) == {"open": ()}
    status = rooms.call("status")
    assert status["release"]["digest"] == DIGEST
    assert status["digests"][DIGEST]["episodes"] == 2


def test_after_its_restart_the_monitors_have_read_what_they_had_and_signals_stay(rooms: Rooms) -> None:
    rooms.call("release", release(), 0.05)
    start = time.time() - 10
    for i in range(12):
        rooms.call("end", steps_of(rows_of(f"e{i}", 3, start=start + i / 10)))
    before = rooms.call("wait", signals=0, timeout_s=10.0)
    assert [(s["kind"], s["since_episode"]) for s in before["signals"]] == [("degradation", "e0")]
    heard = rooms.call("heard", 12)
    rooms.call("release", release(), 0.05)  # the one that is watched already: nothing is forgotten
    assert heard == (12, rooms.call("heard", 12)[1]) and [o.id for o in heard[1]] == [f"e{i}" for i in range(12)]
    rooms.restart()
    assert rooms.call("heard", 12) == heard
    after = rooms.call("status")
    assert after["signals"] == before["signals"] and after["read"] == 12
    assert after["monitors"]["failed"]["raised"]
    assert rooms.call("signals")[0].kind == "degradation"


def test_after_its_restart_a_release_is_held_to_what_was_shown_before_it(rooms: Rooms) -> None:
    rooms.call("release", release(), 0.05)
    start = time.time() - 3000
    rows = [row for i in range(1000) for row in rows_of(f"e{i:04d}", 1, start=start + i, end="truncated")]
    assert not any(rooms.call("end", steps_of(rows)).values())
    rooms.call("wait", digest=DIGEST, episodes=1000, timeout_s=30.0)
    second = Release(digest="e" * 64, stage="full", share=1.0, previous=DIGEST, released_at=time.time())
    rooms.call("release", second, 0.05)
    rooms.restart()
    noted = json.loads(rooms.ray.get(rooms.store.noted.remote("observer.release"), timeout=TIMEOUT))
    assert noted["shown"] == pytest.approx(0.003, rel=0.1)
    rooms.call("release", second, 0.05)
    assert json.loads(rooms.ray.get(rooms.store.noted.remote("observer.release"), timeout=TIMEOUT)) == noted


def test_the_store_may_be_killed_between_any_two_episodes(rooms: Rooms) -> None:
    acknowledged = []
    for i in range(9):
        if i % 3 == 2:
            rooms.ray.kill(rooms.store, no_restart=False)
        answer = rooms.call("end", steps_of(rows_of(f"e{i}", 20, start=time.time())))
        acknowledged += [id_ for id_, missing in answer.items() if not missing]
    assert len(acknowledged) == 9
    assert rooms.ray.get(rooms.store.count.remote(), timeout=TIMEOUT) == 9
    assert sorted(rooms.ray.get(rooms.store.ids.remote(), timeout=TIMEOUT)) == sorted(acknowledged)


def test_a_silent_episode_is_lost_and_stored_so_without_anybody_asking(rooms: Rooms) -> None:
    rooms.call("append", steps_of(rows_of("quiet", 9, start=time.time())[:4]))
    status = rooms.call("wait", digest=DIGEST, episodes=1, timeout_s=20.0)
    assert status["digests"][DIGEST]["lost"] == 1
    assert rooms.ray.get(rooms.store.recent.remote(5), timeout=TIMEOUT)[0].end == "lost"


def test_waiting_ends_with_its_time_and_with_the_episodes(rooms: Rooms) -> None:
    assert rooms.call("wait", signals=0, digest=DIGEST, episodes=1, timeout_s=0.05)["digests"] == {}
    waiting = rooms.observer.wait.remote(digest=DIGEST, episodes=2, timeout_s=50.0)
    for id_ in ("a", "b"):
        rooms.call("end", steps_of(rows_of(id_, 3, start=time.time())))
    assert rooms.ray.get(waiting, timeout=TIMEOUT)["digests"][DIGEST]["episodes"] == 2


async def test_one_commit_carries_what_several_callers_appended(tmp_path: Path) -> None:
    from tests.store.test_intake import episode

    store = StoreActor(str(tmp_path), StoreConfig(group_s=0.01))
    commits = []
    append = store._intake.append
    store._intake.append = lambda episodes: commits.append(len(episodes)) or append(episodes)  # type: ignore[method-assign]
    answers = await asyncio.gather(*(store.append([episode(f"e{i}")]) for i in range(5)))
    assert answers == [{f"e{i}": "stored"} for i in range(5)] and commits == [5]
    with pytest.raises(AttributeError):
        await store.append([None])  # type: ignore[list-item]
    assert await store.count() == 5
    store._intake.close()


class Called:
    """A plain actor, called as Ray's handle of it is."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._actor, name)
        return type("Method", (), {"remote": staticmethod(method)})


async def test_after_its_restart_places_and_rewards_are_waited_for_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.observe.test_leased import episode

    store = StoreActor(str(tmp_path), StoreConfig(group_s=0.0))
    monkeypatch.setattr("flywheel.observe.on_ray.ray.get_actor", lambda *_, **__: Called(store))
    nowhere = Outlet[Any](len, max_waiting=99, flush_s=0.0)
    monkeypatch.setattr("flywheel.observe.on_ray.trace.outlet", lambda *_: nowhere)
    config = ObserveConfig(lease_wait_s=0.6, reward_window_s=30.0)
    now = time.time()
    whole = {name: episode(name, now - start, now) for name, start in (("a", 9.0), ("b", 8.0), ("c", 7.0))}
    whole["c"] = dataclasses.replace(whole["c"], rewards=np.array([1.0, np.nan]), digests=("e" * 64,) * 2)
    whole["d"] = episode("d", now - 6.0, now)
    told = {name: e.started_at for name, e in whole.items()}

    first = ObserverActor(cartpole, config, "store")
    await first.release(release(), 0.05)
    await first.begun(told)
    for name in "bcd":
        assert await first.upload([whole[name]]) == {name: "stored"}
    assert (await first.heard(9))[0] == 0, "a runs, and began before"

    second = ObserverActor(cartpole, config, "store")
    assert (await second.outcomes([DIGEST, "e" * 64], (0.0, ""))) == []
    await second.begun({"a": told["a"]})
    await second._wait_for(lambda: not second._is_behind, 10.0)
    assert not second._is_behind and (await second.heard(9))[0] == 0
    await second.upload([whole["a"]])
    assert [o.id for o in (await second.heard(9))[1]] == ["a", "b"], "c lacks a reward"
    assert [o.id for o in await second.outcomes([DIGEST, "e" * 64], (0.0, ""))] == ["a", "b"]
    assert await second.reward([Reward(episode="c", t=1, reward=1.0, seen_at=now)]) == ["stored"]
    await second._read()
    assert [o.id for o in (await second.heard(9))[1]] == ["a", "b", "d"]
    assert (await second.status())["digests"][DIGEST]["episodes"] == 3
    for actor in (first, second):
        assert actor._ticking is not None
        actor._ticking.cancel()
    store._intake.close()


async def test_what_open_episodes_will_come_to_is_in_the_status_and_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = StoreActor(str(tmp_path), StoreConfig(group_s=0.0))
    monkeypatch.setattr("flywheel.observe.on_ray.ray.get_actor", lambda *_, **__: Called(store))
    nowhere = Outlet[Any](len, max_waiting=99, flush_s=0.0)
    monkeypatch.setattr("flywheel.observe.on_ray.trace.outlet", lambda *_: nowhere)
    asked: list[list[str]] = []

    def foresee(task: Any, closed: Any, begun: Any, now: float) -> str:
        asked.append([episode.id for episode in begun])
        if len(asked) == 2:
            raise ValueError("a task's margin may do anything")
        return f"estimated from {len(closed)} closed ones"

    actor = ObserverActor(cartpole, ObserveConfig(), "store", foresee=foresee)
    await actor.release(release(), 0.05)
    now = time.time()
    await actor.append(steps_of([*rows_of("a", 3, now), *rows_of("b", 3, now)[:2]]))
    await actor.end(steps_of(rows_of("a", 3, now)))
    for _ in range(2):
        actor._outlook._next_at = 0.0
        await actor._look_ahead()
    assert asked[-1] == ["b"] and (await actor.status())["estimated"] == "estimated from 1 closed ones"
    assert Outlook.noted(store._intake.noted(EARLY), now + 1) == "estimated from 1 closed ones"
    assert not (await actor.status())["signals"]
    assert actor._ticking is not None
    actor._ticking.cancel()
    store._intake.close()


@pytest.fixture
def narrow(ray_cluster: Any, tmp_path: Path) -> Iterator[Rooms]:
    made = Rooms(ray_cluster, tmp_path, ObserveConfig(wait_s=0.2, episode_timeout_s=60.0, open_mib=0.02))
    yield made
    ray_cluster.kill(made.observer)
    ray_cluster.kill(made.store)


def test_an_episode_that_was_crowded_out_is_asked_for_at_its_end_and_durable_when_it_is_acknowledged(
    narrow: Rooms,
) -> None:
    rows = {f"e{i:02d}": rows_of(f"e{i:02d}", 6, start=time.time()) for i in range(40)}
    for mine in rows.values():
        narrow.call("append", steps_of(mine[:4]))
    status = narrow.call("status")
    assert status["open_mib"] <= 0.02 and status["counts"]["evicted"] == status["counts"]["lost"] >= 30
    for id_, mine in rows.items():
        missing = narrow.call("end", steps_of(mine[-1:]))[id_]
        if missing:
            assert narrow.call("end", steps_of([mine[t] for t in (*missing, 6)])) == {id_: ()}
    with_disk = open_readonly(narrow.run_dir)
    assert [e.num_steps for e in with_disk.read(list(rows))] == [6] * 40
    with_disk.close()
    assert sum(row["episodes"] for row in narrow.call("status")["digests"].values()) == 40, "each counts once"


def test_after_a_restart_the_watch_for_hacked_rewards_has_its_reference_and_its_evidence_again(rooms: Rooms) -> None:
    def ended(digest: str, names: list[str], at: float, paid: float, action: int | None) -> None:
        found = [row for i, name in enumerate(names) for row in rows_of(name, 8, start=at + i / 100, end="truncated")]
        steps = steps_of(found)
        rooms.call("end", dataclasses.replace(
            steps, digests=tuple(digest if old else "" for old in steps.digests), rewards=steps.rewards + paid,
            raw_actions=steps.raw_actions if action is None else np.full_like(steps.raw_actions, action),
        ))  # fmt: skip

    start, other = time.time() - 30.0, "f" * 64
    rooms.call("release", release(), 1.0)
    ended(DIGEST, [f"old{i:03d}" for i in range(120)], start, 0.0, None)
    ended(other, [f"new{i:03d}" for i in range(8)], start + 10, 30.0, 1)
    before = rooms.call("wait", timeout_s=1.0)
    assert before["hacking"][other]["read"] == 8 and before["hacking"][other]["off"] > 10.0
    rooms.restart()
    rooms.call("heard", 1)
    assert rooms.call("status")["hacking"] == before["hacking"]
    ended(other, [f"new{i:03d}" for i in range(8, 60)], start + 15, 30.0, 1)
    raised = [s for s in rooms.call("wait", timeout_s=1.0)["signals"] if s["kind"] == "reward_hacking"]
    assert [(s["digest"], s["evidence"]["reference"]) for s in raised] == [(other, DIGEST)]
    assert "the return is up by" in raised[0]["evidence"]["words"] and "actions" in raised[0]["evidence"]["off"]
